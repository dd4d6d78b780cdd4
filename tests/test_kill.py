"""kill -9 in the middle of a launch: nothing lost, nothing bought twice, doubts counted."""

import subprocess
import sys
from collections import Counter

from nanobanana_pipeline.emulator import EmulatorThread
from nanobanana_pipeline.generation.manifest import read_current, read_manifest
from nanobanana_pipeline.layout import run_done_key, run_plan_key, run_shard_key
from nanobanana_pipeline.ledger import State
from nanobanana_pipeline.storage import ObjectStore
from tests.conftest import Emulators
from tests.launching import admin, bought, check_images, entries, keep_prompts, prompts, states
from tests.s3_proxy import wait_until

REQUESTS = 40
SLOTS = 10


def run(emulator: EmulatorThread, store: ObjectStore, run_id: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "tests.killable"),
            *(emulator.base_url, store.bucket, store.prefix, run_id),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_killed_three_times_and_nothing_is_lost_or_bought_twice(
    store: ObjectStore, emulators: Emulators
) -> None:
    emulator = emulators(latency_seconds=(0.2, 0.4), cap=SLOTS)
    keep_prompts(store, "set", prompts(REQUESTS))
    kills = {"kill-1": 3, "kill-2": 14, "kill-3": 26}
    for run_id, moment in kills.items():
        with run(emulator, store, run_id) as process:
            wait_until(lambda moment=moment: bought(emulator) >= moment, 30)  # type: ignore[misc]
            process.kill()
        assert process.returncode == -9

    with run(emulator, store, "to-the-end") as process:
        said, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors

    left = states(store)
    doubts = left.get(State.IN_DOUBT, 0)
    assert left[State.SETTLED] + doubts == REQUESTS
    assert doubts <= SLOTS * len(kills)
    current, _ = read_current(store, "set", 1)
    assert current is not None
    assert str(dict(current.cells)) in said
    assert current.cells["settled"] == left[State.SETTLED]
    assert current.cells.get("in_doubt", 0) == doubts
    check_images(store, read_manifest(store, current.manifest))

    record = admin(emulator, "purchases")
    assert record["bought_twice"] == 0
    assert left[State.SETTLED] <= record["total"] <= REQUESTS
    with run(emulator, store, "again") as process:
        process.communicate(timeout=60)
    assert bought(emulator) == record["total"]

    run_of = {
        f"{entry.request_key}.{attempt.nonce}": attempt.run_id
        for entry in entries(store)
        for attempt in entry.attempts
    }
    for group in record["groups"]:
        for track_id, moment in zip(group["track_ids"], group["times"], strict=True):
            for key in (run_plan_key, lambda run_id: run_shard_key(run_id, "shard-0000")):
                written = store.get(key(run_of[track_id]))
                assert written is not None
                assert written.last_modified.timestamp() <= moment
    assert set(Counter(run_of.values())) >= set(kills)
    assert not any(store.get(run_done_key(run_id)) for run_id in kills)
