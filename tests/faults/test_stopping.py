"""A launch that is told to stop: from a shell, by a supervisor, in Dagster's UI."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from nanobanana_pipeline.emulator import EmulatorThread
from nanobanana_pipeline.generation.manifest.manifest import read_current
from nanobanana_pipeline.ledger import State
from nanobanana_pipeline.storage import ObjectStore
from tests.cli.test_profile import (
    START_SECONDS,
    nanobanana,
    wait_for_purchases,
)
from tests.conftest import API_KEY, Emulators
from tests.graphql import Dev, running_dev
from tests.launching import admin, bought, entries, states
from tests.lineage.openlineage.schemas import events_of, ours, states_of
from tests.s3_proxy import wait_until

ROWS = 60
TABLE = "prompt,width,height\n" + "".join(f"number {n},1024,1024\n" for n in range(ROWS))
STOPPED = 130
ABORTED = ["START", "RUNNING", "ABORT"]


def environment_for(emulator: EmulatorThread, store: ObjectStore) -> dict[str, str]:
    """What a command in a process of its own needs to know."""
    return {
        "NANOBANANA_API_KEY": API_KEY,
        "NANOBANANA_BASE_URL": emulator.base_url,
        "NANOBANANA_BUCKET": store.bucket,
        "NANOBANANA_PREFIX": store.prefix.rstrip("/"),
        "NANOBANANA_ALLOWED_HOSTS": "127.0.0.1",
    } | {name: value for name, value in os.environ.items() if name.startswith("AWS_")}


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_command_sends_nothing_more_and_leaves_nothing_in_the_air(
    tmp_path: Path, store: ObjectStore, emulators: Emulators, how: signal.Signals
) -> None:
    emulator = emulators(latency_seconds=(0.5, 1.0))
    table, log = tmp_path / "many.csv", tmp_path / "generate.log"
    table.write_text(TABLE)
    environment = environment_for(emulator, store)
    command = ("generate", table, "--seeds", "1,2")
    process = nanobanana(*command, log=log, more_env=environment)
    wait_for_purchases(emulator, 8)
    process.send_signal(how)
    assert process.wait(START_SECONDS) == STOPPED, log.read_text()
    sold = bought(emulator)
    assert sold < ROWS
    left = states(store)
    assert left[State.SETTLED] == sold
    assert set(left) <= {State.SETTLED, State.OPEN}
    assert {entry.request["seed"] for entry in entries(store)} == {1}, "the next seed is not begun"
    current, _ = read_current(store, "many", 1)
    assert current is not None
    assert current.cells == {"settled": sold, "pending": ROWS - sold}
    told = events_of(store, job="generated_images")
    assert states_of(told) == ABORTED
    assert {ours(event)["runId"] for event in told} == {current.run_id}
    assert ours(told[-1])["cells"] == current.cells
    assert nanobanana(*command, log=log, more_env=environment).wait(START_SECONDS) == 0
    record = admin(emulator, "purchases")
    assert (record["total"], record["bought_twice"]) == (2 * ROWS, 0)


def test_an_impatient_stop_is_accounted_for_too(
    tmp_path: Path, store: ObjectStore, emulators: Emulators
) -> None:
    emulator = emulators(latency_seconds=(2, 2))
    table, log = tmp_path / "many.csv", tmp_path / "generate.log"
    table.write_text(TABLE)
    command, environment = ("generate", table, "--seeds", "1"), environment_for(emulator, store)
    process = nanobanana(*command, log=log, more_env=environment)
    wait_for_purchases(emulator, 8)
    for _ in range(3):
        process.send_signal(signal.SIGINT)
        time.sleep(0.2)
    assert process.wait(START_SECONDS) == STOPPED, log.read_text()
    current, _ = read_current(store, "many", 1)
    assert current is not None, log.read_text()
    assert f"{current.cells['pending']} pending" in log.read_text()
    assert states_of(events_of(store, current.run_id)) == ABORTED
    assert nanobanana(*command, log=log, more_env=environment).wait(START_SECONDS) == 0
    record = admin(emulator, "purchases")
    assert (record["total"], record["bought_twice"]) == (ROWS, 0)


@pytest.fixture
def dev(tmp_path: Path) -> Iterator[Dev]:
    """`nanobanana dev` with one table."""
    with running_dev(tmp_path, {"many.csv": TABLE}) as dev:
        yield dev


@pytest.mark.timeout(900)
def test_terminate_in_dagster_ends_every_shard_and_the_next_launch_goes_on(
    dev: Dev,
) -> None:
    dagster, emulator, store = dev.dagster, dev.emulator, dev.store

    def record() -> dict[str, Any]:
        found: dict[str, Any] = requests.get(f"{emulator}/admin/purchases", timeout=10).json()
        return found

    dagster.add_partition("prompt_set", "many")
    dagster.add_partition("seed", "7")
    assert dagster.wait_for(dagster.launch("prompt_set", {}, prompt_set="many")) == "SUCCESS"
    # Two shards, one after the other: the second must not buy on when the first is stopped.
    pictures: dict[str, Any] = {
        "asset": "generated_images",
        "config": {"shard_size": ROWS // 2, "slots": 4},
        "prompt_set": "many",
        "seed": "7",
    }
    run_id = dagster.launch(**pictures)
    wait_until(lambda: record()["total"] >= 6, START_SECONDS)
    dagster.terminate(run_id)
    assert dagster.wait_for(run_id) == "CANCELED"
    sold = record()["total"]
    left = states(store)
    assert set(left) <= {State.SETTLED, State.OPEN}, (left, dagster.log_of(run_id))
    assert left[State.SETTLED] == sold < ROWS // 2
    assert states_of(events_of(store, run_id)) == ABORTED
    time.sleep(3)
    assert record()["total"] == sold

    assert dagster.wait_for(dagster.launch(**pictures)) == "SUCCESS"
    assert states(store) == {State.SETTLED: ROWS}
    assert (record()["total"], record()["bought_twice"]) == (ROWS, 0)
