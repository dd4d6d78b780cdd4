"""`docs/scaling.md` is held to its word: what it counts is counted anew, its tables computed."""

import math
from collections import Counter
from collections.abc import Callable

import pytest
from dagster import serialize_value

from benchmarks.scaling import COUNTED, tables
from dagster_nanobanana import resources
from dagster_nanobanana.assets.image_features import image_features
from dagster_nanobanana.automation.free_sensors import (
    DOUBTFUL_RUNS_A_TICK,
    RUNS_A_TICK,
    rescue_sensor,
    webhook_inbox,
)
from nanobanana_pipeline.generation.engine.timing import DEFAULT_TIMING
from nanobanana_pipeline.ledger.ledger import ENTRY_READERS
from nanobanana_pipeline.storage import ObjectStore, s3_client
from tests.conftest import Emulators, account_for
from tests.dagster_nanobanana.conftest import Project
from tests.deploy.counting import Calls
from tests.launching import Launched, keep_prompts, launch, prompts
from tests.test_provider_page import ROOT

PAGE = (ROOT / "docs" / "scaling.md").read_text("utf-8")
FEW, MORE = 4, 12
A_THREAD_OR_TWO = ("GetObject", "delivery.json")
"""Read once, or once more by whoever comes at the same moment."""


def sizes(store: ObjectStore, prefix: str) -> list[int]:
    return [listed.size for listed in store.listing(prefix)]


def test_a_request_takes_the_calls_and_bytes_that_the_page_says(
    store: ObjectStore, emulators: Emulators
) -> None:
    account = account_for(emulators(latency_seconds=(0.1, 0.2)).base_url, store)
    calls = Calls(store)

    def settle(count: int) -> tuple[Counter[tuple[str, str]], Launched]:
        keep_prompts(store, f"set{count}", prompts(count, f"animal of {count},"))
        calls.take()
        launched = launch(store, account, f"set{count}")
        assert launched.states == {"settled": count}
        return calls.take(), launched

    (few, first), (more, second) = settle(FEW), settle(MORE)
    more.subtract(few)
    a_request = {
        call: made / (MORE - FEW) for call, made in more.items() if made and call != A_THREAD_OR_TWO
    }
    assert a_request == {
        ("GetObject", "ledger"): COUNTED.reads,
        ("PutObject", "ledger"): COUNTED.writes - 1,
        ("PutObject", "images"): 1,
    }
    entries = sizes(store, "ledger/")
    assert sum(entries) / len(entries) == pytest.approx(COUNTED.entry_bytes, rel=0.1)
    [small] = sizes(store, first.current.manifest)
    [large] = sizes(store, second.current.manifest)
    assert (large - small) / (MORE - FEW) == pytest.approx(COUNTED.row_bytes, rel=0.2)


def test_a_partition_takes_the_calls_and_events_that_the_page_says(
    project: Callable[..., Project], store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[Calls] = []

    def watched(**given: object) -> object:
        client = s3_client(**given)  # type: ignore[arg-type]
        counted.append(Calls(ObjectStore(client, store.bucket, store.prefix)))
        return client

    monkeypatch.setattr(resources, "s3_client", watched)
    here = project()
    assert here.make_prompt_set().success
    counted.clear()
    pictures = here.generate()
    assert pictures.success
    made = sum(sum(calls.take().values()) for calls in counted)
    besides = made - 3 * (COUNTED.writes + COUNTED.reads)
    assert COUNTED.calls_besides / 2 < besides <= COUNTED.calls_besides
    assert len(list(store.keys("runs/"))) == COUNTED.run_objects
    features = here.run(image_features, "demo|1", {})
    log = [
        serialize_value(event)
        for run in (pictures, features)
        for event in here.instance.all_logs(run.run_id)
    ]
    assert len(log) == pytest.approx(COUNTED.events, rel=0.2)
    assert sum(map(len, log)) == pytest.approx(COUNTED.event_bytes, rel=0.3)


@pytest.mark.parametrize("name", tables())
def test_the_pages_table_is_what_is_computed(name: str) -> None:
    assert tables()[name] in PAGE, f"put what python -m benchmarks.scaling prints as {name} there"


def test_the_pages_words_name_the_codes_own_bounds() -> None:
    words = " ".join(PAGE.split())
    assert f"moves at most {DEFAULT_TIMING.transfer_workers} pictures at a time" in words
    assert f"not settled in a manifest, {ENTRY_READERS} at a time" in words
    for sensor in (rescue_sensor, webhook_inbox):
        seconds = sensor.minimum_interval_seconds
        assert seconds is not None
        assert f"their ticks, every {seconds / 60:.0f} minutes" in words
    assert f"look at {RUNS_A_TICK} and {DOUBTFUL_RUNS_A_TICK} runs of it at most" in words
    assert rescue_sensor.minimum_interval_seconds is not None
    hours = 5_000 / RUNS_A_TICK * rescue_sensor.minimum_interval_seconds / 3_600
    assert f"each of 5,000 unfinished ones is looked at within {math.ceil(hours)} hours" in words
