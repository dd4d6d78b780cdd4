"""Caps on images and money hold over shards, runs and machines, and say too much at worst."""

import itertools
import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from typer.testing import CliRunner

from nanobanana_pipeline.bucket_keys import run_alive_key, run_done_key, run_plan_key
from nanobanana_pipeline.cli.app import app
from nanobanana_pipeline.errors import PlanError, StorageError
from nanobanana_pipeline.generation.budget.counters import (
    Counter,
    Scope,
    day_scope,
    partition_scope,
    run_scope,
)
from nanobanana_pipeline.generation.budget.incarnation import DEFAULT_HEARTBEAT, HeartbeatTiming
from nanobanana_pipeline.generation.budget.reclaim import reclaim, recount
from nanobanana_pipeline.generation.budget.reservations import ShardBudget, open_shard_budget
from nanobanana_pipeline.generation.launch_steps import settle_shard
from nanobanana_pipeline.generation.planning.run_files import (
    list_unfinished,
    mark_done,
    read_shard_keys,
)
from nanobanana_pipeline.ledger import Entry, Held, Ledger, State, new_nonce
from nanobanana_pipeline.money import Budget, Cap
from nanobanana_pipeline.provider.account import Account
from nanobanana_pipeline.provider.modelslab.request import ModelsLabRequest
from nanobanana_pipeline.storage import ObjectStore, StoredObject, cas
from nanobanana_pipeline.storage.cas import Instant
from tests.conftest import Emulators, account_for, settings_for
from tests.later import later
from tests.launching import (
    SMALL,
    bought,
    entries,
    keep_prompts,
    launch,
    planned,
    prompts,
    reserve,
    spent_and_open,
    states,
    tell,
)
from tests.s3_proxy import Loss, S3Proxy, wait_until

PRICE = Decimal("0.04")


def counted(store: ObjectStore) -> Counter:
    """Today's counter."""
    return day_scope(store, Budget()).read()


def capped(account: Account, **budget: Any) -> Account:
    return replace(account, budget=Budget(**{"price": PRICE, **budget}))


@pytest.fixture
def emulator_and_account(store: ObjectStore, emulators: Emulators) -> tuple[Any, Account]:
    emulator = emulators()
    return emulator, account_for(emulator.base_url, store)


@pytest.mark.parametrize(
    "caps",
    [
        {"run": Cap(images=3)},
        {"day": Cap(images=3)},
        {"partition": Cap(images=3)},
        {"day": Cap(cost=Decimal("0.15"))},
        {"run": Cap(images=100, cost=Decimal("0.12"))},
    ],
)
def test_a_cap_stops_buying_and_marks_the_rest(
    store: ObjectStore, emulator_and_account: tuple[Any, Account], caps: dict[str, Cap]
) -> None:
    emulator, account = emulator_and_account
    keep_prompts(store, "set", prompts(5))
    made = launch(store, capped(account, **caps))
    assert made.states == {"over_budget": 2, "settled": 3}
    assert (bought(emulator), made.report.spent, made.report.over_budget) == (3, 3, 2)
    assert made.current.gaps == 2
    assert any("has its cap of" in reason for reason in made.report.reasons)
    day = counted(store)
    assert (day.images_counted, day.cost_counted, day.open) == (3, 3 * PRICE, {})
    again = launch(store, replace(account, budget=Budget()))
    assert again.states == {"settled": 5}
    assert bought(emulator) == 5
    assert counted(store).images_counted == 5


def test_a_runs_own_cap_holds_over_its_shards(
    store: ObjectStore, emulator_and_account: tuple[Any, Account]
) -> None:
    emulator, account = emulator_and_account
    keep_prompts(store, "set", prompts(9))
    made = launch(store, account, shard_size=3, max_images=4)
    assert made.states == {"over_budget": 5, "settled": 4}
    assert bought(emulator) == 4
    dear = launch(store, capped(account), max_cost=Decimal("0.09"))
    assert dear.states == {"over_budget": 3, "settled": 6}


def test_samples_count_each(store: ObjectStore, emulator_and_account: tuple[Any, Account]) -> None:
    emulator, account = emulator_and_account
    keep_prompts(store, "set", prompts(3))
    three = {"width": 1024, "height": 1024, "samples": 3}
    made = launch(store, account, parameters=three, max_images=7)
    assert made.states == {"over_budget": 1, "settled": 2}
    assert (bought(emulator), made.report.spent) == (2, 6)
    assert made.made.buy_images == 9


def test_what_surely_bought_nothing_is_given_back_and_doubts_and_losses_are_not(
    store: ObjectStore, emulators: Emulators
) -> None:
    emulator = emulators(moods={"error_list": 1})
    account = account_for(emulator.base_url, store)
    keep_prompts(store, "set", prompts(2))
    assert launch(store, account).states == {"refused": 2}
    assert counted(store).images_counted == 0
    tell(emulator, "moods", error_list=0, http_500_after=1)
    keep_prompts(store, "doubts", prompts(2, "doubt"))
    assert launch(store, account, "doubts").states == {"in_doubt": 2}
    assert counted(store).images_counted == 2
    tell(emulator, "moods", http_500_after=0, forget=1)
    keep_prompts(store, "losses", prompts(2, "loss"))
    assert launch(store, account, "losses").states == {"lost": 2}
    assert counted(store).images_counted == 4
    tell(emulator, "moods", forget=0, failed=1)
    keep_prompts(store, "failures", prompts(2, "failure"))
    assert launch(store, account, "failures").states == {"failed": 2}
    assert counted(store).images_counted == 4
    mine = partition_scope(store, Budget(), "losses", 1).read()
    assert (mine.images_counted, mine.open) == (2, {})


def test_what_had_no_price_adds_an_unknown_cost(
    store: ObjectStore, emulator_and_account: tuple[Any, Account]
) -> None:
    _, account = emulator_and_account
    keep_prompts(store, "set", prompts(5))
    launch(store, account, max_images=2)
    assert counted(store).cost_text == "unknown"
    launch(store, capped(account))
    assert (counted(store).images_counted, counted(store).cost_text) == (5, "0.12 + unknown")
    scope = day_scope(store, Budget())
    scope.change(lambda counter: counter.model_copy(update={"reservations": {}}))
    reserve(scope, "a/shard-0000/0", 3, price=PRICE)
    assert counted(store).cost_text == "0.12"
    reserve(scope, "b/shard-0000/0", 1)
    assert counted(store).cost_text == "0.12 + unknown"


def test_a_cap_on_money_without_a_price_is_refused(store: ObjectStore) -> None:
    keep_prompts(store, "set", prompts(1))
    with pytest.raises(PlanError, match="NANOBANANA_PRICE_PER_IMAGE"):
        planned(store, max_cost=Decimal(1))
    for wrong in (Decimal(0), Decimal(-1), Decimal("NaN"), Decimal("Infinity")):
        with pytest.raises(PlanError, match="out of range"):
            planned(store, max_cost=wrong)


def budget_of(
    store: ObjectStore, cap: int, run_id: str, timing: HeartbeatTiming = DEFAULT_HEARTBEAT
) -> ShardBudget:
    """A shard's, under a cap on today's images."""

    def scopes(day: str) -> list[Scope]:
        return [day_scope(store, Budget(day=Cap(images=cap)), day)]

    return ShardBudget(store, scopes, price=None, run_id=run_id, shard="shard-0000", timing=timing)


def test_many_shards_at_once_never_get_more_than_the_cap(store: ObjectStore) -> None:
    def take_all(number: int) -> int:
        mine = budget_of(store, 50, f"run-{number}")
        mine.open(9)
        return sum(mine.take(1) is not None for _ in range(9))

    with ThreadPoolExecutor(8) as pool:
        taken = sum(pool.map(take_all, range(10)))
    assert taken <= 50
    assert counted(store).images_counted == taken, "what one scope refused is given back in all"


def test_one_shard_twice_at_once_never_gets_more_than_the_cap(
    store: ObjectStore, emulator_and_account: tuple[Any, Account]
) -> None:
    emulator, account = emulator_and_account
    keep_prompts(store, "set", prompts(20))
    tight = replace(account, budget=Budget(day=Cap(images=10), partition=Cap(images=10)))
    made = planned(store, max_images=10)
    with ThreadPoolExecutor(2) as pool:
        reports = pool.map(lambda _: settle_shard(store, tight, made.run_id, "shard-0000"), "ab")
    assert sum(report.spent for report in reports) == bought(emulator) <= 10
    assert counted(store).images_counted == bought(emulator)


def test_what_others_give_back_is_asked_for_at_the_end(
    store: ObjectStore, emulators: Emulators
) -> None:
    emulator = emulators(latency_seconds=(1, 1))
    account = account_for(emulator.base_url, store)
    keep_prompts(store, "set", prompts(3))
    tight = replace(account, budget=Budget(day=Cap(images=5)))
    other = budget_of(store, 5, "other")
    other.open(4)
    made = planned(store)
    with ThreadPoolExecutor(1) as pool:
        settling = pool.submit(settle_shard, store, tight, made.run_id, "shard-0000")
        wait_until(lambda: states(store).get(State.ACCEPTED, 0) == 1)
        other.close()
        report = settling.result()
    assert (report.states, report.over_budget) == ({State.SETTLED: 3}, 0)


def test_what_is_reserved_is_taken_without_a_call_and_what_has_no_room_is_asked_for_once(
    store: ObjectStore, s3_url: str
) -> None:
    with S3Proxy(s3_url) as proxy:
        mine = budget_of(proxy.store_like(store), 4, "run")
        mine.open(3)
        before = len(proxy.calls)
        permits = [mine.take(1) for _ in range(3)]
        assert None not in permits
        assert len(proxy.calls) == before
        assert mine.take(2) is None
        assert mine.reason is not None
        before = len(proxy.calls)
        assert mine.take(1) is not None, "the cap had room for one"
        assert mine.take(1) is None
        assert len(proxy.calls) == before


def test_no_more_is_asked_for_again_than_the_shard_expects_to_buy(store: ObjectStore) -> None:
    scope = day_scope(store, Budget())
    reserve(scope, "other/shard-0000/0", 4)
    mine = budget_of(store, 5, "run")
    mine.open(3)
    assert [mine.take(1) is not None for _ in range(2)] == [True, False]
    assert not mine.ask_again()
    scope.change(lambda counter: counter.closed("other/shard-0000/0", 0, datetime.now(UTC)))
    assert mine.ask_again()
    assert counted(store).images_counted == 3
    assert [mine.take(1) is not None for _ in range(3)] == [True, True, True]
    assert counted(store).images_counted == 4


def test_what_an_expired_shard_reserved_counts_until_its_spending_is_counted(
    store: ObjectStore, emulator_and_account: tuple[Any, Account]
) -> None:
    _, account = emulator_and_account
    keep_prompts(store, "set", prompts(5))
    made = planned(store, run_id="dead", limit=2)
    assert settle_shard(store, account, made.run_id, made.shards[0]).spent == 2
    for scope in (day_scope(store, Budget()), partition_scope(store, Budget(), "set", 1)):
        (name,) = scope.read().reservations
        scope.change(lambda counter: counter.model_copy(update={"reservations": {}}))
        reserve(scope, name, 5, opened=datetime.now(UTC) - timedelta(hours=1))
    keep_prompts(store, "other", prompts(6, "other"))
    tight = replace(account, budget=Budget(day=Cap(images=6)))
    heartbeat = run_alive_key("dead", ".".join(name.split("/")[1:]))
    store.put(heartbeat, b"")
    assert launch(store, tight, "other").states == {"over_budget": 5, "settled": 1}
    assert counted(store).open[name].images == 5
    store.delete(heartbeat)
    assert launch(store, tight, "other").states == {"over_budget": 2, "settled": 4}
    assert spent_and_open(counted(store)) == (6, 0)


def test_a_reservation_without_a_heartbeat_is_not_expired_before_it_is_old(
    store: ObjectStore,
) -> None:
    reserve(day_scope(store, Budget()), "fresh/shard-0000/0123abcd", 5)
    mine = budget_of(store, 6, "run")
    mine.open(3)
    assert [mine.take(1) is not None for _ in range(2)] == [True, False]


def test_an_incarnation_is_over_after_a_silence_and_the_shard_goes_on_as_another(
    store: ObjectStore,
) -> None:
    timing = HeartbeatTiming(silent_seconds=0.5)
    mine = budget_of(store, 3, "run", timing)
    mine.open(3)
    mark_done(store, "run", 0)
    first = mine.take(1)
    assert first is not None
    time.sleep(0.6)
    assert not first.holds()
    second = mine.take(2)
    assert second is not None
    assert first.nonce[:8] != second.nonce[:8]
    assert mine.take(1) is None, "the first permit is not given back"
    assert list_unfinished(store) == ["run"], "a rescue finds again what it buys from now on"
    assert store.head(run_done_key("run")) is None
    mine.close()
    assert spent_and_open(counted(store)) == (3, 0)


def test_what_is_closed_is_not_opened_again_by_its_owner(store: ObjectStore) -> None:
    mine = budget_of(store, 3, "run")
    mine.open(3)
    assert mine.take(1)
    (name,) = counted(store).open
    scope = day_scope(store, Budget())
    scope.change(lambda counter: counter.closed(name, 1, datetime.now(UTC)))
    reserve(scope, "another/shard-0000/0123abcd", 1)
    assert [mine.take(1) is not None for _ in range(4)].count(True) <= 3
    mine.close()
    assert counted(store).reservations[name].images == 1


@pytest.mark.parametrize("age", [0, 60])
def test_an_incarnation_belongs_to_one_day(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch, age: int
) -> None:
    """At midnight by S3's clock, which is put forward here, permits end.

    The first heartbeat may be read long after it was written.
    """
    shift, ahead = timedelta(), 0.0
    get, clock = ObjectStore.get, cas.boot_clock

    def shifted(self: ObjectStore, key: str) -> StoredObject | None:
        found = get(self, key)
        return found and replace(
            found,
            last_modified=found.last_modified + shift - timedelta(seconds=age),
            age_seconds=found.age_seconds + age,
        )

    monkeypatch.setattr(ObjectStore, "get", shifted)
    monkeypatch.setattr(cas, "boot_clock", lambda: clock() + ahead)
    now = datetime.now(UTC)
    midnight = (now + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
    left = timedelta(hours=6, seconds=2)
    shift = midnight - now - left
    mine = budget_of(store, 2, "run", HeartbeatTiming(silent_seconds=1e6))
    mine.open(3)
    assert mine.reason is not None, "the old day's cap has no room for three"
    old = mine.take(1)
    assert old is not None
    ahead = left.total_seconds() - 60
    assert old.holds()
    ahead += 60
    assert not old.holds()
    shift += left
    new = mine.take(2)
    assert new is not None, "the new day has a cap of its own"
    mine.close()
    days = [now.date() + timedelta(days=n) for n in (0, 1)]
    spent = [day_scope(store, Budget(), day.isoformat()).read().images_counted for day in days]
    assert spent == [1, 2]


def test_all_scopes_are_asked_before_anything_is_reserved_in_one(
    store: ObjectStore, s3_url: str
) -> None:
    with S3Proxy(s3_url) as proxy:
        far = proxy.store_like(store)

        def scopes(day: str) -> list[Scope]:
            budget = Budget(day=Cap(images=9), partition=Cap(images=1))
            return [day_scope(far, budget, day), partition_scope(far, budget, "set", 1)]

        mine = ShardBudget(far, scopes, price=None, run_id="run", shard="shard-0000")
        mine.open(5)
        assert proxy.count("PUT", "/budget/days/") == 1
    assert counted(store).images_counted == 1
    assert mine.reason == "over budget: the partition set, seed 1 has its cap of 1 image"


def test_an_incarnation_that_took_nothing_gives_all_back_and_one_without_room_leaves_nothing(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead, clock = 0.0, cas.boot_clock
    monkeypatch.setattr(cas, "boot_clock", lambda: clock() + ahead)
    mine = budget_of(store, 3, "run")
    mine.open(3)
    ahead = 600
    assert mine.take(3) is not None
    before = counted(store)
    late = budget_of(store, 3, "late")
    late.open(2)
    assert late.take(1) is None
    assert counted(store) == before


def test_old_reservations_are_folded_into_a_sum_in_a_write_of_their_own(store: ObjectStore) -> None:
    scope = day_scope(store, Budget())
    reserve(scope, "old/shard-0000/0", 3, price=PRICE)
    reserve(scope, "new/shard-0000/0", 2)
    now = datetime.now(UTC)
    scope.change(lambda c: c.closed("old/shard-0000/0", 1, now - timedelta(days=8)))
    scope.change(lambda c: c.closed("new/shard-0000/0", 2, now - timedelta(days=6)))
    after = scope.read()
    assert (after.images, after.cost, set(after.reservations)) == (1, PRICE, {"new/shard-0000/0"})
    assert after.images_counted == 3


def test_images_without_a_price_stay_so_when_they_are_folded(store: ObjectStore) -> None:
    scope = day_scope(store, Budget())
    long_ago = datetime.now(UTC) - timedelta(days=8)
    for name, price in (("bare/shard-0000/0", None), ("priced/shard-0000/0", PRICE)):
        reserve(scope, name, 3, price=price)
        scope.change(lambda c, name=name: c.closed(name, 2, long_ago))  # type: ignore[misc]
    after = scope.change(lambda counter: counter)
    assert after.reservations == {}
    assert (after.images, after.cost, after.unpriced) == (4, 2 * PRICE, 2)
    assert (after.images_counted, after.unpriced_counted) == (4, 2)
    assert after.cost_text == "0.08 + unknown"


def test_heartbeats_keep_an_incarnation_alive_and_a_late_one_revives_nothing(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead, clock = 0.0, cas.boot_clock
    monkeypatch.setattr(cas, "boot_clock", lambda: clock() + ahead)
    mine = budget_of(store, 9, "run")
    mine.open(3)
    permit = mine.take(1)
    assert permit is not None
    (heartbeat,) = (key for key in store.keys("runs/") if key.endswith(".alive"))
    for _ in range(3):
        ahead += 400
        store.delete(heartbeat)
        mine.beat()
        assert permit.holds()
        assert store.head(heartbeat) is not None
    ahead += 600
    mine.beat()
    assert not permit.holds()
    assert mine.take(1) is not None
    store.delete(heartbeat)
    mine.beat()
    assert store.head(heartbeat) is not None, "what the first one bought is not closed yet"


def test_a_shard_beats_while_it_lasts_and_leaves_nothing_open(store: ObjectStore) -> None:
    keep_prompts(store, "set", prompts(3))
    made = planned(store, max_images=2)
    timing = HeartbeatTiming(renew_seconds=0.1)
    scopes = [
        partition_scope(store, Budget(), "set", 1),
        day_scope(store, Budget()),
        run_scope(store, made.run_id, Cap()),
    ]

    def heartbeats() -> list[str]:
        return [key for key in store.keys("runs/") if key.endswith(".alive")]

    with open_shard_budget(store, Budget(price=PRICE), made, "shard-0000", 3, timing) as mine:
        assert [scope.read().images_counted for scope in scopes] == [2, 2, 2]
        assert [mine.take(1) is not None for _ in range(3)] == [True, True, False]
        assert mine.reason == "over budget: this run has its cap of 2 images"
        assert [spent_and_open(scope.read()) for scope in scopes] == [(0, 1)] * 3
        (heartbeat,) = heartbeats()
        store.delete(heartbeat)
        wait_until(lambda: heartbeats() == [heartbeat])
    assert [spent_and_open(scope.read()) for scope in scopes] == [(2, 0)] * 3
    assert [scope.read().cost_counted for scope in scopes] == [2 * PRICE] * 3
    assert heartbeats() == []


def test_a_lost_answer_does_not_reserve_twice(store: ObjectStore, s3_url: str) -> None:
    with S3Proxy(s3_url) as proxy:
        far = proxy.store_like(store)
        mine = budget_of(far, 9, "run")
        mine.open(2)
        lost = 0

        def rule(method: str, path: str) -> Loss | None:
            """An answer is lost, and another shard writes on top before it is looked for."""
            nonlocal lost
            if method == "PUT" and "/budget/days/" in path and not lost:
                lost = 1
                return Loss.ANSWER
            if method == "GET" and "/budget/days/" in path and lost == 1:
                lost = 2
                reserve(day_scope(store, Budget()), "other/shard-0000/0", 1)
            return None

        proxy.rule = rule
        assert mine.take(1)
        assert mine.take(5)
    assert lost == 2
    assert counted(store).images_counted == 6 + 1


def test_a_counter_that_cannot_be_read_stops_the_spending(
    store: ObjectStore, emulator_and_account: tuple[Any, Account]
) -> None:
    emulator, account = emulator_and_account
    keep_prompts(store, "set", prompts(1))
    made = planned(store)
    key = "budget/partitions/set/seed=1.json"
    for body, word in ((b"{", "damaged"), (b'{"schema": 99}', "upgrade")):
        store.put(key, body)
        with pytest.raises(StorageError, match=word):
            settle_shard(store, account, made.run_id, made.shards[0])
    assert bought(emulator) == 0


def test_a_counter_of_0_1_0_is_read_and_becomes_one_of_today_when_it_changes(
    store: ObjectStore,
) -> None:
    old = {"images": 3, "since": "2026-01-01T00:00:00+00:00", "sign": "1"}
    stored: dict[str, Any] = {
        "schema": 1,
        "images": 2,
        "cost": "0.08",
        "unpriced": 1,
        "reserved": {"run/shard-0000": old, "run/shard-0001": {**old, "price": "0.04"}},
    }
    scope = partition_scope(store, Budget(), "set", 1)
    store.put(scope.key, json.dumps(stored).encode())
    read = scope.read()
    assert (read.images_counted, read.cost_counted, read.unpriced_counted) == (8, 5 * PRICE, 4)
    assert {r.opened for r in read.open.values()} == {old["since"]}
    reserve(scope, "new/shard-0000/0123abcd", 1)
    changed = store.get(scope.key)
    assert changed is not None
    written = json.loads(changed.body)
    assert written["schema"] == 2
    assert set(written["reservations"]) == {*stored["reserved"], "new/shard-0000/0123abcd"}
    store.put(scope.key, json.dumps({**stored, "reserved": []}).encode())
    with pytest.raises(StorageError, match="its reservations are no object"):
        scope.read()


def test_a_scope_has_room_as_its_cap_says() -> None:
    cap = Cap(images=10, cost=Decimal(1))
    assert cap.room(0, Decimal(0), None) == 10
    assert cap.room(4, Decimal("0.85"), Decimal("0.1")) == 1
    assert cap.room(11, Decimal(0), None) == 0
    assert Cap().room(10**9, Decimal(0), PRICE) is None
    assert Cap(images=5).tightened(Cap(images=3, cost=PRICE)) == Cap(images=3, cost=PRICE)
    assert str(Cap(images=1000, cost=Decimal("12.5"))) == "1,000 images and 12.50"


@pytest.mark.parametrize("plan", [None, b"{"])
def test_an_expired_shard_whose_run_files_are_gone_counts_in_full(
    store: ObjectStore, plan: bytes | None
) -> None:
    if plan is not None:
        store.put(run_plan_key("gone"), plan)
    scope = day_scope(store, Budget())
    reserve(scope, "gone/shard-0000/0", 5, opened=datetime.now(UTC) - timedelta(hours=1))
    mine = budget_of(store, 6, "run")
    mine.open(3)
    assert [mine.take(1) is not None for _ in range(2)] == [True, False]
    assert spent_and_open(counted(store)) == (5, 1)


def test_an_expired_incarnation_counts_its_own_attempts_and_one_of_0_1_0_its_runs(
    store: ObjectStore,
) -> None:
    keep_prompts(store, "set", prompts(4))
    made = planned(store, parameters={**SMALL, "samples": 2})
    ledger, now = Ledger(store), datetime.now(UTC)
    opened = now - timedelta(hours=1)

    def attempt(key: str, nonce: str, run_id: str, started: datetime) -> Held:
        request = ModelsLabRequest(prompt="a red panda", seed=1, samples=2)
        fresh = Entry.new(request, key, realm="emulator")
        held = ledger.claim(None, fresh, run_id=run_id, nonce=nonce, lease_seconds=60)
        assert held is not None

        def start(entry: Entry) -> Entry:
            changed = entry.attempts[0].model_copy(update={"started": started.isoformat()})
            return entry.model_copy(update={"attempts": (changed,), "revision": new_nonce()})

        return ledger.apply(held, start)

    keys = read_shard_keys(store, made.run_id, "shard-0000")
    attempt(keys[0], "aaaaaaaa00000000", made.run_id, opened - timedelta(minutes=4))
    attempt(keys[1], "aaaaaaaa11111111", made.run_id, opened - timedelta(minutes=6))
    attempt(keys[2], "bbbbbbbb22222222", "another", now)
    unsent = attempt(keys[3], "aaaaaaaa33333333", made.run_id, now)
    ledger.apply(unsent, lambda entry: entry.not_sent("aaaaaaaa33333333", "stopped"))
    scopes = [
        day_scope(store, Budget()),
        partition_scope(store, Budget(), "set", 1),
        run_scope(store, made.run_id, Cap()),
    ]
    expected = {"/aaaaaaaa": 4, "/bbbbbbbb": 2, "/cccccccc": 0, "": 2}
    for scope, incarnation in itertools.product(scopes, expected):
        reserve(scope, f"{made.run_id}/shard-0000{incarnation}", 9, opened=opened)
    assert reclaim(store, scopes[0])
    for scope in scopes:
        closed = scope.read().reservations.items()
        assert {name.partition("shard-0000")[2]: r.images for name, r in closed} == expected
        assert all(reservation.closed for _, reservation in closed)
    assert not reclaim(store, scopes[0])


def test_an_incarnation_expires_with_its_heartbeat_and_no_sooner(store: ObjectStore) -> None:
    scope = day_scope(store, Budget())
    old = datetime.now(UTC) - timedelta(hours=1)
    reserve(scope, "gone/shard-0000/0123abcd", 5, opened=old)
    reserve(scope, "mine/shard-0000/0123abcd", 5, opened=old)
    store.put(run_alive_key("gone", "shard-0000.0123abcd"), b"")
    for soon in (0, 14):
        assert not reclaim(
            later(store, timedelta(minutes=soon)), scope, but="mine/shard-0000/0123abcd"
        )
    assert reclaim(later(store, timedelta(minutes=16)), scope, but="mine/shard-0000/0123abcd")
    assert set(scope.read().open) == {"mine/shard-0000/0123abcd"}


def test_what_was_bought_before_is_brought_when_no_cap_has_room(
    store: ObjectStore, emulators: Emulators
) -> None:
    emulator = emulators(moods={"image_404": 1})
    account = account_for(emulator.base_url, store)
    keep_prompts(store, "set", prompts(3))
    made = planned(store, run_id="first")
    with S3Proxy(os.environ["AWS_ENDPOINT_URL_S3"]) as proxy:
        proxy.rule = lambda method, path: (
            Loss.REQUEST if method == "PUT" and "/images/" in path else None
        )
        stopping = proxy.store_like(store)
        thread = threading.Thread(
            target=lambda: settle_shard(stopping, account, made.run_id, made.shards[0]), daemon=True
        )
        thread.start()
        wait_until(lambda: states(store).get(State.ACCEPTED, 0) == 3)
        full = replace(account, budget=Budget(day=Cap(images=3)))
        keep_prompts(store, "set", prompts(4))
        later = launch(store, full)
        proxy.rule = lambda *_: None
        thread.join(60)
    assert not thread.is_alive()
    assert later.states == {"over_budget": 1, "settled": 3}
    assert bought(emulator) == 3


def test_what_was_in_doubt_is_counted_anew_once_it_is_known(
    store: ObjectStore, emulators: Emulators, monkeypatch: pytest.MonkeyPatch
) -> None:
    emulator = emulators(moods={"http_500_after": 1})
    account = account_for(emulator.base_url, store)
    keep_prompts(store, "set", prompts(2))
    assert launch(store, account).states == {"in_doubt": 2}
    first = entries(store)[0]
    ledger = Ledger(store)
    held = ledger.read(first.request_key)
    assert held is not None
    nonce = first.attempts[0].nonce
    ledger.apply(held, lambda entry: entry.not_sent(nonce, "the provider's list does not have it"))
    settings = settings_for(emulator.base_url, store)
    monkeypatch.setenv("NANOBANANA_BUCKET", str(settings.bucket))
    monkeypatch.setenv("NANOBANANA_PREFIX", settings.prefix)
    for said in ("counted anew", "the counters agree with the ledger"):
        done = CliRunner().invoke(app, ["budget", "recount"])
        assert (done.exit_code, said in done.output) == (0, True), done.output
        assert spent_and_open(counted(store)) == (1, 0)
        assert partition_scope(store, Budget(), "set", 1).read().images_counted == 1


def test_a_recount_closes_what_has_expired_and_leaves_what_cannot_be_counted(
    store: ObjectStore,
) -> None:
    scope = day_scope(store, Budget())
    old = datetime.now(UTC) - timedelta(hours=1)
    for name in ("gone/shard-0000/0123abcd", "alive/shard-0000/0123abcd"):
        reserve(scope, name, 5, opened=old)
    store.put(run_alive_key("alive", "shard-0000.0123abcd"), b"")
    assert list(recount(store)) == []
    assert set(scope.read().open) == {"alive/shard-0000/0123abcd"}
    assert scope.read().images_counted == 10


def test_a_shard_that_has_ended_takes_and_sends_nothing_more(store: ObjectStore) -> None:
    mine = budget_of(store, 3, "run")
    mine.open(3)
    permit = mine.take(1)
    assert permit is not None
    mine.close()
    assert not permit.holds()
    assert mine.take(1) is None
    assert spent_and_open(counted(store)) == (1, 0)
    assert not [key for key in store.keys("runs/") if key.endswith(".alive")]


def test_what_one_look_finds_over_no_other_look_undoes(store: ObjectStore) -> None:
    """A thread that looked before another found the reservation closed revives nothing."""
    mine = budget_of(store, 3, "run")
    mine.open(3)
    permit = mine.take(1)
    assert permit is not None
    elapsed = Instant.elapsed

    def closed_meanwhile(self: Instant) -> float:
        found = elapsed(self)
        permit.incarnation._is_over = True
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Instant, "elapsed", closed_meanwhile)
        assert not permit.holds()
    assert not permit.holds()
