"""Launching partitions against the emulator and real S3, and looking at what came of it."""

import hashlib
import json
import tempfile
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pandas as pd
import requests
from pydantic import SecretStr

from nanobanana_pipeline.bucket_keys import image_owner_key
from nanobanana_pipeline.emulator import EmulatorThread
from nanobanana_pipeline.generation.budget.counters import Counter as BudgetCounter
from nanobanana_pipeline.generation.budget.counters import Reservation, Scope
from nanobanana_pipeline.generation.engine.engine import Report
from nanobanana_pipeline.generation.engine.timing import Timing
from nanobanana_pipeline.generation.launch_steps import collect, plan, settle_shard
from nanobanana_pipeline.generation.manifest.manifest import CurrentManifest, read_manifest
from nanobanana_pipeline.generation.planning.planner import Launch
from nanobanana_pipeline.generation.planning.run_files import RunPlan
from nanobanana_pipeline.ledger import Entry, State
from nanobanana_pipeline.money import Budget
from nanobanana_pipeline.prompts import prompt_set
from nanobanana_pipeline.prompts.table import read_prompt_table
from nanobanana_pipeline.prompts.validation import check_prompts
from nanobanana_pipeline.provider.account import Account
from nanobanana_pipeline.provider.downloads import Downloader
from nanobanana_pipeline.provider.modelslab.client import ModelsLab
from nanobanana_pipeline.storage import ObjectStore

SMALL = {"width": 1024, "height": 1024}
"""Drawn fast."""
NO_CAPS = Budget()
PLANNER = Account("emulator", ModelsLab("http://127.0.0.1:9/", SecretStr("any")), Downloader(), 1)
"""An account for what asks no provider."""
QUICK = Timing(
    failed_pause_seconds=0.05,
    max_backoff_seconds=0.05,
    others_claim_poll_seconds=0.3,
    stuck_poll_seconds=0.2,
    grace_seconds=60.0,
)
"""Pauses of a provider and a bucket on this machine; a stop may take its time on a loaded one."""


def reserve(
    scope: Scope,
    name: str,
    images: int,
    *,
    price: Decimal | None = None,
    opened: datetime | None = None,
) -> None:
    """Put a reservation of another shard into a counter."""
    since = (opened or datetime.now(UTC)).isoformat()
    reservation = Reservation(images=images, price=price, opened=since)
    scope.change(lambda counter: counter.with_reservation(name, reservation))


def spent_and_open(counter: BudgetCounter) -> tuple[int, int]:
    """Images that closed reservations spent, and how many reservations are open."""
    return counter.images_counted - sum(r.images for r in counter.open.values()), len(counter.open)


@dataclass(frozen=True)
class Launched:
    """One launch from plan to manifest."""

    made: RunPlan
    report: Report
    current: CurrentManifest
    rows: pd.DataFrame

    @property
    def states(self) -> dict[str, int]:
        return dict(self.current.cells)


def keep_prompts(store: ObjectStore, name: str, rows: Sequence[str | Mapping[str, Any]]) -> None:
    """Make a prompt set of prompts, or of whole rows."""
    lines = [json.dumps({"prompt": row} if isinstance(row, str) else row) for row in rows]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "prompts.jsonl")
        path.write_text("\n".join(lines))
        prompt_set.snapshot(store, name, check_prompts(read_prompt_table(path)))


def prompts(count: int, word: str = "animal") -> list[str]:
    return [f"{word} number {number}" for number in range(count)]


def planned(
    store: ObjectStore,
    name: str = "set",
    *,
    seed: int = 1,
    run_id: str | None = None,
    parameters: Mapping[str, Any] = SMALL,
    budget: Budget = NO_CAPS,
    **more: Any,
) -> RunPlan:
    run_id = run_id or f"run-{uuid.uuid4().hex[:8]}"
    asked = Launch(name, seed, run_id=run_id, parameters=parameters, **more)
    return plan(store, replace(PLANNER, budget=budget), asked)


def launch(
    store: ObjectStore,
    account: Account,
    name: str = "set",
    *,
    timing: Timing = QUICK,
    **more: Any,
) -> Launched:
    made = planned(store, name, budget=account.budget, **more)
    report = Report()
    for shard in made.shards:
        report += settle_shard(store, account, made.run_id, shard, timing=timing)
    current = collect(store, account, made, report)
    return Launched(made, report, current, read_manifest(store, current.manifest))


def hasty(account: Account, base_url: str, submit_seconds: float) -> Account:
    """The same account with a shorter deadline for a POST."""
    client = ModelsLab(base_url, SecretStr("any"), submit_seconds=submit_seconds)
    return replace(account, provider=client)


def entries(store: ObjectStore) -> list[Entry]:
    """The whole ledger."""
    found = [(key, store.get(key)) for key in store.keys("ledger/")]
    return [Entry.from_json(stored.body, key) for key, stored in found if stored is not None]


def states(store: ObjectStore) -> dict[State, int]:
    return dict(Counter(entry.state for entry in entries(store)))


def admin(emulator: EmulatorThread, name: str) -> dict[str, Any]:
    answer: dict[str, Any] = requests.get(f"{emulator.root_url}/admin/{name}", timeout=10).json()
    return answer


def tell(emulator: EmulatorThread, name: str, **words: object) -> None:
    requests.post(f"{emulator.root_url}/admin/{name}", json=words, timeout=10).raise_for_status()


def bought(emulator: EmulatorThread) -> int:
    total: int = admin(emulator, "purchases")["total"]
    return total


def check_images(store: ObjectStore, rows: pd.DataFrame) -> None:
    """Every picture of a manifest, and of the ledger, lies under its own hash."""
    for row in rows[rows["image_sha256"].notna()].to_dict("records"):
        key = row["image_uri"].removeprefix(store.uri(""))
        assert key == f"images/{row['image_sha256'][:2]}/{row['image_sha256']}.{row['format']}"
        stored = store.get(key)
        assert stored is not None
        assert hashlib.sha256(stored.body).hexdigest() == row["image_sha256"]
        assert len(stored.body) == row["bytes"]
        owner = stored.metadata["request-key"]
        assert (
            owner == row["request_key"]
            or store.head(image_owner_key(row["image_sha256"], row["request_key"])) is not None
        )
        assert stored.metadata["run-id"]
    for entry in entries(store):
        assert (entry.state is State.SETTLED) == (len(entry.images) == entry.samples)
        for image in entry.images:
            stored = store.get(image.key)
            assert stored is not None
            assert hashlib.sha256(stored.body).hexdigest() == image.sha256
            assert len(stored.body) == image.size
