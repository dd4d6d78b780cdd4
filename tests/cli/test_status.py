"""`nanobanana status` knows of a run that was killed before anybody launches it again."""

import json
from datetime import timedelta

import pytest

from nanobanana_pipeline.emulator import EmulatorThread
from nanobanana_pipeline.lineage.openlineage.facts import EventType, RunFacts
from nanobanana_pipeline.lineage.openlineage.recorder import Recording
from nanobanana_pipeline.storage import ObjectStore, bucket
from tests.buying_child import kill_once_accepted
from tests.cli.conftest import Command
from tests.conftest import Emulators, account_for
from tests.later import later
from tests.launching import SMALL, keep_prompts, launch, planned, prompts


@pytest.fixture
def emulator(emulators: Emulators) -> EmulatorThread:
    return emulators(latency_seconds=(4, 4))


def test_a_killed_run_is_shown_until_the_partition_is_launched_again(
    nanobanana: Command,
    store: ObjectStore,
    emulator: EmulatorThread,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keep_prompts(store, "set", prompts(2))
    account = account_for(emulator.base_url, store)
    launch(store, account, seed=1)
    made = planned(store, seed=2, run_id="killed")
    kill_once_accepted(store, emulator.base_url, made, before=0)
    shown = nanobanana("status")
    assert shown.exit_code == 1
    assert "killed" in shown.output
    assert "under way, or died in the last 15 minutes" in shown.output
    monkeypatch.setattr(bucket, "ObjectStore", lambda *_: later(store, timedelta(minutes=16)))
    assert "died: launch it again" in nanobanana("status").output
    [run] = json.loads(nanobanana("status", "--json").output)["unfinished_runs"]
    assert (run["run_id"], run["prompt_set"], run["seed"], run["buy"]) == ("killed", "set", 2, 2)
    assert run["is_dead"]
    assert run["quiet_seconds"] > 900
    record = Recording(store, "generated_images", "killed", RunFacts, None)
    record.emit(EventType.ABORT, KeyboardInterrupt())
    assert "stopped as asked: launch it again" in nanobanana("status").output
    launch(store, account, seed=2, parameters=SMALL)
    assert nanobanana("status").exit_code == 0
    assert "killed" not in nanobanana("status").output
