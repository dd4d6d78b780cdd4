"""Dead runs are found by their silence, and what they bought is brought without buying."""

import itertools
from collections.abc import Callable
from datetime import timedelta

import pytest

from nanobanana_pipeline.audit import audit
from nanobanana_pipeline.bucket_keys import run_done_key, unfinished_key
from nanobanana_pipeline.errors import PlanError
from nanobanana_pipeline.generation.budget.counters import day_scope, partition_scope
from nanobanana_pipeline.generation.manifest.manifest import read_current
from nanobanana_pipeline.generation.planning.run_files import list_unfinished, unfinished_plans
from nanobanana_pipeline.generation.recovery.doubts import find_doubts
from nanobanana_pipeline.generation.recovery.rescue import Run, expired_runs, rescue
from nanobanana_pipeline.ledger import State
from nanobanana_pipeline.money import Budget
from nanobanana_pipeline.storage import ObjectStore
from tests.buying_child import kill_once_accepted
from tests.conftest import Emulators, account_for
from tests.later import later
from tests.launching import admin, keep_prompts, launch, planned, prompts, spent_and_open, states

DEAD = timedelta(minutes=16)


def names() -> Callable[[], str]:
    count = itertools.count()
    return lambda: f"rescue-{next(count)}"


def dead_after(store: ObjectStore, by: timedelta = DEAD) -> list[Run]:
    """The unfinished runs that are dead after some time."""
    return expired_runs(later(store, by), list_unfinished(store))


def test_a_run_is_dead_once_it_is_silent_and_not_done(
    store: ObjectStore, emulators: Emulators
) -> None:
    keep_prompts(store, "set", prompts(2))
    launch(store, account_for(emulators().base_url, store), run_id="done")
    planned(store, seed=2, run_id="died")
    assert list_unfinished(store) == ["died"]
    assert dead_after(store, timedelta()) == []
    [dead] = dead_after(store)
    assert (dead.run_id, dead.round) == ("died", 0)
    rounds = [dead_after(store, timedelta(hours=hours))[0].round for hours in (3, 5, 23, 25, 99)]
    assert rounds == [0, 1, 5, 6, 6]


@pytest.mark.parametrize("change", ["nothing", "the table", "the limit"])
def test_what_a_killed_run_bought_is_brought_whatever_has_changed_since(
    store: ObjectStore, emulators: Emulators, change: str
) -> None:
    emulator = emulators(latency_seconds=(4, 4))
    account = account_for(emulator.base_url, store)
    keep_prompts(store, "set", prompts(4))
    if change == "the limit":
        launch(store, account, run_id="pilot", limit=1)
    made = planned(store)
    kill_once_accepted(store, emulator.base_url, made)
    if change == "the table":
        keep_prompts(store, "set", prompts(4, "machine"))
    settled = rescue(store, account, made.run_id, new_run_id=names())
    assert states(store) == {State.SETTLED: 4}
    expected = {
        "nothing": {"settled": 4},
        "the table": {"pending": 4},
        "the limit": {"not_requested": 3, "settled": 1},
    }
    assert settled.current.cells == expected[change]
    assert settled.report.bought == settled.report.spent == 0
    record = admin(emulator, "purchases")
    assert (record["total"], record["bought_twice"]) == (4, 0)
    assert dead_after(store) == []


def accounts(store: ObjectStore) -> list[tuple[int, int]]:
    """Images spent, and shards with reservations, of the day and the partition."""
    scopes = (day_scope(store, Budget()), partition_scope(store, Budget(), "set", 1))
    return [spent_and_open(scope.read()) for scope in scopes]


@pytest.mark.parametrize("who", ["the next launch", "a rescue", "a launch that buys nothing"])
def test_what_a_killed_run_reserved_is_settled_without_a_cap(
    store: ObjectStore, emulators: Emulators, who: str
) -> None:
    emulator = emulators(latency_seconds=(4, 4))
    account = account_for(emulator.base_url, store)
    keep_prompts(store, "set", prompts(3))
    made = planned(store)
    kill_once_accepted(store, emulator.base_url, made)
    assert accounts(store) == [(0, 1)] * 2
    if who == "the next launch":  # seconds later, so that the dead run does not count as dead yet
        assert launch(store, account).report.bought == 0
    else:
        # A cell that cannot be had leaves the partition incomplete.
        keep_prompts(store, "set", prompts(4))
        if who == "a rescue":
            rescue(later(store, DEAD), account, made.run_id, new_run_id=names())
        else:
            launch(store, account, max_images=0)
            assert accounts(store) == [(0, 1)] * 2, "it may live"
            launch(later(store, DEAD), account, max_images=0)
    assert accounts(store) == [(3, 0)] * 2
    assert audit(later(store, DEAD)).agrees


def test_a_run_that_bought_nothing_gets_the_manifest_it_owes(
    store: ObjectStore, emulators: Emulators
) -> None:
    emulator = emulators()
    keep_prompts(store, "set", prompts(2))
    made = planned(store)
    account = account_for(emulator.base_url, store)
    rescue(store, account, made.run_id, new_run_id=names())
    current, _ = read_current(store, "set", 1)
    assert current is not None
    assert (current.cells, current.parameters) == ({"pending": 2}, made.parameters)
    assert admin(emulator, "purchases")["total"] == 0
    assert dead_after(store) == []


def test_a_manifest_that_has_everything_is_not_published_again(
    store: ObjectStore, emulators: Emulators
) -> None:
    account = account_for(emulators().base_url, store)
    keep_prompts(store, "set", prompts(2))
    dead = planned(store, run_id="died")
    whole = launch(store, account)
    before = set(store.keys(""))
    settled = rescue(later(store, DEAD), account, dead.run_id, new_run_id=names())
    assert settled.current.manifest == whole.current.manifest
    assert set(store.keys("")) - before == {run_done_key(dead.run_id)}
    assert dead_after(store) == []


def test_what_stays_in_doubt_keeps_its_run_unfinished(
    store: ObjectStore, emulators: Emulators
) -> None:
    account = account_for(emulators(moods={"lost_answer_after": 1.0}).base_url, store)
    keep_prompts(store, "set", prompts(1))
    first = launch(store, account)
    assert first.states == {"in_doubt": 1}
    rescue(store, account, first.made.run_id, new_run_id=names())
    assert [run.run_id for run in dead_after(store)] == [first.made.run_id]
    # After the provider's 24 hours nobody looks for it by itself; it is still listed.
    rescue(later(store, timedelta(hours=25)), account, first.made.run_id, new_run_id=names())
    assert list_unfinished(store) == []
    assert [made.run_id for made in unfinished_plans(store)] == [first.made.run_id]
    assert [doubt.run_id for doubt in find_doubts(store, None)] == [first.made.run_id]


def test_a_run_whose_end_was_cut_off_is_looked_at_once_more(
    store: ObjectStore, emulators: Emulators
) -> None:
    account = account_for(emulators().base_url, store)
    keep_prompts(store, "set", prompts(1))
    whole = launch(store, account, run_id="cut-off")
    store.put(unfinished_key("cut-off"), b"")
    assert [run.run_id for run in dead_after(store)] == ["cut-off"]
    settled = rescue(later(store, DEAD), account, "cut-off", new_run_id=names())
    assert settled.current.manifest == whole.current.manifest
    assert list_unfinished(store) == []


def test_a_run_that_nobody_planned_or_whose_files_are_gone_is_not_dead(store: ObjectStore) -> None:
    store.put(unfinished_key("gone"), b"")
    assert dead_after(store) == []


def test_a_run_that_there_is_not_is_refused_with_those_that_have_not_ended(
    store: ObjectStore, emulators: Emulators
) -> None:
    account = account_for(emulators().base_url, store)
    with pytest.raises(PlanError, match=r"no run 'dyed' in .*; none is left that has not ended"):
        rescue(store, account, "dyed", new_run_id=names())
    keep_prompts(store, "set", prompts(1))
    planned(store, run_id="died")
    with pytest.raises(PlanError, match=r"no run 'dyed' in .*; those that .* are died$"):
        rescue(store, account, "dyed", new_run_id=names())
