"""The rehearsal of `benchmarks.every_quirk`, in short."""

from dataclasses import replace

import pandas as pd
import pytest
from pydantic import SecretStr

from benchmarks import every_quirk
from benchmarks.every_quirk import Provider, rehearse
from nanobanana_pipeline.generation.engine.timing import Timing
from nanobanana_pipeline.provider.modelslab.operations import Operations
from nanobanana_pipeline.storage import ObjectStore
from tests.conftest import API_KEY, Emulators, account_for
from tests.launching import check_images
from tests.webhooks.serving import receiving

REQUESTS = 100


@pytest.mark.timeout(600)
def test_every_cell_ends_with_its_reason_and_nothing_is_bought_twice(
    store: ObjectStore, emulators: Emulators
) -> None:
    timing = Timing(download_seconds=0.5, webhook_patience_seconds=1.0)
    emulator = emulators(
        latency_seconds=(0.05, 0.2),
        late_webhook_seconds=0.5,
        slow_answer_seconds=0.5,
        retry_after_seconds=0.2,
    )
    operations = Operations(emulator.base_url, SecretStr(API_KEY))
    with receiving(store) as webhooks:
        account = replace(account_for(emulator.base_url, store), webhooks=webhooks)
        provider = Provider(emulator.root_url, account, operations, timing)
        found = rehearse(store, provider, REQUESTS)
    assert found.faults == []
    check_images(store, found.rows)
    cells = found.rows.drop_duplicates(["prompt_set", "prompt_id"])
    assert len(cells) == REQUESTS * 6 // 5
    assert {"settled", "refused", "lost", "in_doubt"} <= set(cells["state"])
    assert found.reasons()["cells"].sum() == len(cells)
    assert set(cells.loc[cells["prompt_set"] == "account", "state"]) == {"settled"}
    assert found.launches["account"] > 1 + every_quirk.CALM, "a halt was launched again"
    assert list(store.keys("webhooks/"))
    assert list(store.keys("deliveries/"))


@pytest.mark.parametrize(
    ("state", "reason", "sha256", "fault"),
    [
        ("pending", "stopped", None, "is pending: stopped"),
        ("over_budget", "a cap", None, "is over_budget"),
        ("lost", None, None, "without a reason"),
        ("in_doubt", "", None, "without a reason"),
        ("settled", None, None, "without a picture"),
        ("settled", None, "ab", None),
        ("refused", "no", None, None),
    ],
)
def test_what_must_not_be_is_a_fault(
    state: str, reason: str | None, sha256: str | None, fault: str | None
) -> None:
    row = {"prompt": "p", "sample": 0, "state": state, "reason": reason, "image_sha256": sha256}
    faults = list(every_quirk._faults(pd.DataFrame([row], dtype=object)))
    assert len(faults) == (fault is not None)
    assert all(str(fault) in each for each in faults)
    assert len(list(every_quirk._twice({"bought_twice": 1}))) == 1
