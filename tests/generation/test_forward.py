"""Manifests only go forward: a run that collects late keeps what a newer plan has in force."""

import threading
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from nanobanana_pipeline.bucket_keys import partition_plan_key, run_done_key
from nanobanana_pipeline.errors import PlanError
from nanobanana_pipeline.generation.engine.engine import Report
from nanobanana_pipeline.generation.launch_steps import collect, settle_shard
from nanobanana_pipeline.generation.manifest.manifest import CurrentManifest, read_manifest
from nanobanana_pipeline.generation.planning.partition_plan import read_partition_plan
from nanobanana_pipeline.generation.planning.planner import Launch
from nanobanana_pipeline.generation.planning.run_files import RunPlan, read_shard
from nanobanana_pipeline.generation.recovery.relaunch_partitions import relaunch
from nanobanana_pipeline.ledger import Entry, Held, Ledger, State
from nanobanana_pipeline.provider.account import Account
from nanobanana_pipeline.storage import ObjectStore, StoredObject
from tests.conftest import Emulators, account_for
from tests.launching import (
    PLANNER,
    SMALL,
    admin,
    bought,
    check_images,
    entries,
    keep_prompts,
    launch,
    planned,
    prompts,
)

WIDE = {"width": 1280, "height": 1024}


@pytest.fixture
def emulator(emulators: Emulators) -> Any:
    return emulators()


@pytest.fixture
def account(store: ObjectStore, emulator: Any) -> Account:
    return account_for(emulator.base_url, store)


def bring(store: ObjectStore, account: Account, made: RunPlan) -> CurrentManifest:
    """Settle and collect a launch that was planned."""
    report = Report()
    for shard in made.shards:
        report += settle_shard(store, account, made.run_id, shard)
    return collect(store, account, made, report)


def test_an_older_run_collects_late_and_nothing_settled_is_lost(
    store: ObjectStore, emulator: Any, account: Account
) -> None:
    keep_prompts(store, "set", prompts(5))
    older = planned(store)
    keep_prompts(store, "set", prompts(9))
    newer = launch(store, account)
    assert newer.states == {"settled": 9}
    late = bring(store, account, older)
    assert (late.cells, late.plan_number) == ({"settled": 9}, newer.made.plan_number)
    assert late.fingerprint == newer.current.fingerprint
    assert late.content == newer.current.content
    assert bought(emulator) == 9
    check_images(store, read_manifest(store, late.manifest))


def test_an_older_run_brings_what_the_newer_plan_asks_for_and_only_that(
    store: ObjectStore, emulator: Any, account: Account
) -> None:
    keep_prompts(store, "set", prompts(5))
    older = planned(store)
    keep_prompts(store, "set", prompts(9)[3:])
    newer = planned(store, max_images=0)
    assert collect(store, account, newer, Report()).cells == {"pending": 6}
    late = bring(store, account, older)
    assert late.cells == {"pending": 4, "settled": 2}
    assert (bought(emulator), Counter(e.state for e in entries(store))) == (5, {State.SETTLED: 5})
    # Launched again with the old table, the other three cost nothing.
    keep_prompts(store, "set", prompts(5))
    again = launch(store, account)
    assert (again.made.buy, again.states) == (0, {"settled": 5})


def test_an_older_limit_and_older_parameters_do_not_come_back(
    store: ObjectStore, account: Account
) -> None:
    keep_prompts(store, "set", prompts(4))
    pilot = planned(store, limit=1)
    whole = planned(store)
    assert collect(store, account, whole, Report()).cells == {"pending": 4}
    changed = launch(store, account, parameters=WIDE, change_parameters=True)
    assert changed.states == {"settled": 4}
    for older in (pilot, whole):
        late = bring(store, account, older)
        assert (late.cells, late.limit) == ({"settled": 4}, None)
        assert late.parameters == changed.current.parameters
    assert {older.plan_number for older in (pilot, whole)} == {1, 2}
    assert late.plan_number == changed.made.plan_number == 3


def test_an_older_runs_cap_does_not_mark_cells_that_it_never_asked_for(
    store: ObjectStore, account: Account
) -> None:
    keep_prompts(store, "set", prompts(3))
    older = planned(store, max_images=1)
    keep_prompts(store, "set", prompts(6))
    collect(store, account, planned(store), Report())
    assert bring(store, account, older).cells == {"pending": 5, "settled": 1}


def test_an_older_run_with_something_to_rescue_is_not_marked_as_done(
    store: ObjectStore, account: Account
) -> None:
    """What it bought is behind requests that the plan in force does not ask for."""
    keep_prompts(store, "set", prompts(2))
    older = planned(store)
    (request, *_) = _requests(store, older)
    claimed = Ledger(store).claim(None, request, run_id=older.run_id, nonce="n1", lease_seconds=60)
    assert isinstance(claimed, Held)
    Ledger(store).apply(claimed, lambda entry: entry.accept("n1", "1"))
    keep_prompts(store, "set", prompts(2, "plant"))
    collect(store, account, planned(store), Report())
    assert collect(store, account, older, Report()).cells == {"pending": 2}
    assert store.head(run_done_key(older.run_id)) is None
    rest = planned(store, max_images=0)
    collect(store, account, rest, Report())
    assert store.head(run_done_key(rest.run_id)) is not None


def _requests(store: ObjectStore, made: RunPlan) -> list[Entry]:
    model = PLANNER.provider.request_model
    return [
        Entry.new(each.request, each.request_key, realm="emulator")
        for shard in made.shards
        for each in read_shard(store, made.run_id, shard, model)
    ]


def test_collecting_at_once_ends_with_the_newest_plan(store: ObjectStore, account: Account) -> None:
    plans = []
    for count in (2, 3, 4, 5):
        keep_prompts(store, "set", prompts(count))
        plans.append(planned(store, run_id=f"run-{count}"))
    assert [made.plan_number for made in plans] == [1, 2, 3, 4]
    for made in plans:
        for shard in made.shards:
            settle_shard(store, account, made.run_id, shard)
    with ThreadPoolExecutor(len(plans)) as collectors:
        list(collectors.map(lambda made: collect(store, PLANNER, made, Report()), plans))
    for made in plans:
        late = collect(store, PLANNER, made, Report())
        assert (late.cells, late.plan_number) == ({"settled": 5}, 4)


def plan_together(
    store: ObjectStore, *parameters: Mapping[str, Any], **more: Any
) -> list[RunPlan | PlanError]:
    """Plan launches that have all read the partition before any of them takes its number."""
    ready = threading.Barrier(len(parameters))

    class Waiting(ObjectStore):
        waits = True

        def get(self, key: str) -> StoredObject | None:  # type: ignore[override]
            found = super().get(key)
            if key.startswith("manifests/") and key.endswith("plan.json") and self.waits:
                self.waits = False
                ready.wait(30)
            return found

    def plan(chosen: Mapping[str, Any]) -> RunPlan | PlanError:
        try:
            waiting = Waiting(store.client, store.bucket, store.prefix)
            return planned(waiting, parameters=chosen, **more)
        except PlanError as error:
            return error

    with ThreadPoolExecutor(len(parameters)) as planners:
        return list(planners.map(plan, parameters))


def test_of_two_first_launches_with_different_parameters_one_is_refused_before_it_buys(
    store: ObjectStore, emulator: Any, account: Account
) -> None:
    keep_prompts(store, "set", prompts(3))
    outcomes = plan_together(store, SMALL, WIDE)
    (made,) = [each for each in outcomes if isinstance(each, RunPlan)]
    (refused,) = [each for each in outcomes if isinstance(each, PlanError)]
    assert "was made with other parameters (" in str(refused)
    assert "width" in str(refused)
    assert "height" not in str(refused), "it is the same"
    assert "set change_parameters to buy the new ones" in str(refused)
    runs = {key.split("/")[1] for key in store.keys("runs/")}
    assert runs == {made.run_id}, "the refused one has written nothing that it could buy"
    assert bring(store, account, made).cells == {"settled": 3}
    assert bought(emulator) == 3


def test_first_launches_with_the_same_parameters_or_leave_to_change_them_both_go_on(
    store: ObjectStore,
) -> None:
    keep_prompts(store, "set", prompts(3))
    same = plan_together(store, SMALL, SMALL)
    assert [each.plan_number for each in same if isinstance(each, RunPlan)] == [1, 1]
    changed = planned(store, parameters=WIDE, change_parameters=True)
    assert changed.plan_number == 2


def test_the_second_launch_keeps_what_the_first_named_though_there_is_no_manifest(
    store: ObjectStore,
) -> None:
    keep_prompts(store, "set", prompts(3))
    first = planned(store, limit=2)
    second = planned(store, parameters={})
    assert second.parameters == first.parameters
    with pytest.raises(PlanError, match="was made with other parameters"):
        planned(store, parameters=WIDE)
    again = relaunch(store, "set", 1, "again", last=replace(first, parameters=WIDE))
    assert again == Launch("set", 1, "again", limit=None)


def test_a_launch_with_nothing_to_buy_costs_one_call_more(
    store: ObjectStore, emulator: Any, account: Account
) -> None:
    """A GET, and no PUT: it asks for what the newest plan asked for."""
    keep_prompts(store, "set", prompts(2))
    launch(store, account)
    newest = store.get(partition_plan_key("set", 1))
    gets: Counter[str] = Counter()

    class Counting(ObjectStore):
        def get(self, key: str) -> StoredObject | None:  # type: ignore[override]
            gets[key] += 1
            return super().get(key)

    counting = Counting(store.client, store.bucket, store.prefix)
    assert planned(counting).buy == 0
    assert gets[partition_plan_key("set", 1)] == 1
    now = store.get(partition_plan_key("set", 1))
    assert newest is not None
    assert now is not None
    assert now.last_modified == newest.last_modified
    assert admin(emulator, "purchases")["total"] == 2


def test_a_partition_of_before_counts_as_number_0(store: ObjectStore, account: Account) -> None:
    keep_prompts(store, "set", prompts(3))
    first = launch(store, account)
    store.delete(partition_plan_key("set", 1))
    old = replace(first.made, plan_number=0)
    key = "manifests/set/seed=1/current.json"
    stored = store.get(key)
    assert stored is not None
    store.put(key, stored.body.replace(b'"plan_number": 1', b'"plan_number": 0'))
    assert collect(store, account, old, Report()).plan_number == 0
    keep_prompts(store, "set", prompts(4))
    assert launch(store, account).current.plan_number == 1
    assert collect(store, account, old, Report()).cells == {"settled": 4}
    newest = read_partition_plan(store, "set", 1)
    assert newest is not None
    assert newest.number == 1
