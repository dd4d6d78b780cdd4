"""Caps on images and money hold over shards, runs and machines, and say too much at worst."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from nanobanana_pipeline.bucket_keys import run_done_key
from nanobanana_pipeline.errors import PlanError, StorageError
from nanobanana_pipeline.generation.budget.counters import Counter, day_scope, partition_scope
from nanobanana_pipeline.generation.budget.reservations import HeartbeatTiming, ShardBudget
from nanobanana_pipeline.generation.launch import settle_shard
from nanobanana_pipeline.generation.planning.run_files import list_unfinished, mark_done
from nanobanana_pipeline.ledger import State
from nanobanana_pipeline.money import Budget, Cap
from nanobanana_pipeline.provider.account import Account
from nanobanana_pipeline.storage import ObjectStore
from tests.conftest import Emulators, account_for
from tests.launching import QUICK, bought, keep_prompts, launch, planned, prompts, states, tell
from tests.s3_proxy import Loss, S3Proxy, wait_until

PRICE = Decimal("0.04")
EXPIRED = HeartbeatTiming(expired_seconds=-1.0)
"""To others every shard has expired."""


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
    assert (day.images, day.cost, day.reserved) == (3, 3 * PRICE, {})
    again = launch(store, replace(account, budget=Budget()))
    assert again.states == {"settled": 5}
    assert bought(emulator) == 5
    assert counted(store).images == 5


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
    assert counted(store).images == 0
    tell(emulator, "moods", error_list=0, http_500_after=1)
    keep_prompts(store, "doubts", prompts(2, "doubt"))
    assert launch(store, account, "doubts").states == {"in_doubt": 2}
    assert counted(store).images == 2
    tell(emulator, "moods", http_500_after=0, forget=1)
    keep_prompts(store, "losses", prompts(2, "loss"))
    assert launch(store, account, "losses").states == {"lost": 2}
    assert counted(store).images == 4
    tell(emulator, "moods", forget=0, failed=1)
    keep_prompts(store, "failures", prompts(2, "failure"))
    assert launch(store, account, "failures").states == {"failed": 2}
    assert counted(store).images == 4
    mine = partition_scope(store, Budget(), "losses", 1).read()
    assert (mine.images, mine.reserved) == (2, {})


def test_what_had_no_price_adds_an_unknown_cost(
    store: ObjectStore, emulator_and_account: tuple[Any, Account]
) -> None:
    _, account = emulator_and_account
    keep_prompts(store, "set", prompts(5))
    launch(store, account, max_images=2)
    assert counted(store).cost_text == "unknown"
    launch(store, capped(account))
    assert (counted(store).images, counted(store).cost_text) == (5, "0.12 + unknown")
    scope = day_scope(store, Budget())
    scope.change(lambda counter: counter.model_copy(update={"unpriced": 0, "revision": "known"}))
    assert counted(store).cost_text == "0.12"
    scope.reserve("alive/shard-0000", 1, None)
    assert counted(store).cost_text == "0.12 + unknown"


def test_a_cap_on_money_without_a_price_is_refused(store: ObjectStore) -> None:
    keep_prompts(store, "set", prompts(1))
    with pytest.raises(PlanError, match="NANOBANANA_PRICE_PER_IMAGE"):
        planned(store, max_cost=Decimal(1))
    for wrong in (Decimal(0), Decimal(-1), Decimal("NaN"), Decimal("Infinity")):
        with pytest.raises(PlanError, match="out of range"):
            planned(store, max_cost=wrong)


def test_many_shards_at_once_never_get_more_than_the_cap(store: ObjectStore) -> None:
    def reserve(number: int) -> int:
        scope = day_scope(store, Budget(day=Cap(images=50)))
        return scope.reserve(f"run/shard-{number}", 9, None)

    with ThreadPoolExecutor(8) as pool:
        granted = list(pool.map(reserve, range(10)))
    assert sum(granted) == 50
    assert counted(store).images_counted == 50


def a_dead_shard(store: ObjectStore, account: Account, sold: int) -> str:
    """A run that reserved for 5 images, bought some, and died; gives its id."""
    keep_prompts(store, "set", prompts(5))
    made = planned(store, run_id="dead", limit=sold)
    assert settle_shard(store, account, made.run_id, made.shards[0]).spent == sold
    for scope in (day_scope(store, Budget()), partition_scope(store, Budget(), "set", 1)):
        scope.change(
            lambda c: c.model_copy(update={"images": 0}).with_reserved("dead/shard-0000", 5, None)
        )
    return made.run_id


def test_a_dead_shards_reservation_counts_until_its_spending_is_counted(
    store: ObjectStore,
    emulator_and_account: tuple[Any, Account],
) -> None:
    _, account = emulator_and_account
    a_dead_shard(store, account, 2)
    keep_prompts(store, "other", prompts(6, "other"))
    tight = replace(account, budget=Budget(day=Cap(images=6)))
    store.put("runs/dead/shard-0000.alive", b"")
    assert launch(store, tight, "other").states == {"over_budget": 5, "settled": 1}
    assert counted(store).reserved["dead/shard-0000"].images == 5
    hasty = replace(QUICK, heartbeat=EXPIRED)
    assert launch(store, tight, "other", timing=hasty).states == {"over_budget": 2, "settled": 4}
    day = counted(store)
    assert (day.images, day.reserved) == (6, {})


def test_a_shard_that_runs_again_under_its_name_counts_what_it_spent_before(
    store: ObjectStore, emulator_and_account: tuple[Any, Account]
) -> None:
    emulator, account = emulator_and_account
    a_dead_shard(store, account, 2)
    settle_shard(store, account, "dead", "shard-0000")
    day = counted(store)
    assert (day.images, day.reserved, bought(emulator)) == (2, {}, 2)


def test_a_shard_that_was_taken_for_dead_reserves_anew(store: ObjectStore) -> None:
    scope = day_scope(store, Budget(day=Cap(images=3)))
    purse = ShardBudget(store, [scope], price=None, run_id="run", shard="shard-0000")
    purse.open(3)
    assert purse.take(1)
    scope.change(lambda counter: counter.closed("run/shard-0000", 1))
    scope.reserve("another/shard-0000", 1, None)
    store.put("runs/another/shard-0000.alive", b"")
    purse._timing = HeartbeatTiming(stale_seconds=-1.0)
    assert purse.take(1)
    assert not purse.take(1)
    assert counted(store).images_counted == 3


def test_a_run_that_goes_on_after_it_was_called_done_can_be_rescued_again(
    store: ObjectStore,
) -> None:
    scope = day_scope(store, Budget(day=Cap(images=3)))
    purse = ShardBudget(store, [scope], price=None, run_id="run", shard="shard-0000")
    purse.open(3)
    mark_done(store, "run", 0)
    assert purse.take(1)
    assert list_unfinished(store) == []
    purse._timing = HeartbeatTiming(stale_seconds=-1.0)
    assert purse.take(1)
    assert list_unfinished(store) == ["run"]
    assert store.head(run_done_key("run")) is None


def test_a_lost_answer_does_not_reserve_twice(store: ObjectStore, s3_url: str) -> None:
    with S3Proxy(s3_url) as proxy:
        lost = threading.Event()

        def rule(method: str, path: str) -> Loss | None:
            if method == "PUT" and "/budget/" in path and not lost.is_set():
                lost.set()
                return Loss.ANSWER
            return None

        proxy.rule = rule
        scope = day_scope(proxy.store_like(store), Budget())
        assert scope.reserve("run/shard-0000", 5, None) == 5
    assert lost.is_set()
    assert counted(store).images_counted == 5


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


def test_a_scope_has_room_as_its_cap_says() -> None:
    cap = Cap(images=10, cost=Decimal(1))
    assert cap.room(0, Decimal(0), None) == 10
    assert cap.room(4, Decimal("0.85"), Decimal("0.1")) == 1
    assert cap.room(11, Decimal(0), None) == 0
    assert Cap().room(10**9, Decimal(0), PRICE) is None
    assert Cap(images=5).tightened(Cap(images=3, cost=PRICE)) == Cap(images=3, cost=PRICE)
    assert str(Cap(images=1000, cost=Decimal("12.5"))) == "1,000 images and 12.50"


def test_a_dead_shard_whose_run_file_is_gone_counts_in_full(store: ObjectStore) -> None:
    scope = day_scope(store, Budget(day=Cap(images=6)))
    scope.reserve("gone/shard-0000", 5, None)
    purse = ShardBudget(
        store, [scope], price=None, run_id="run", shard="shard-0000", timing=EXPIRED
    )
    purse.open(3)
    assert (purse.take(1), purse.take(1)) == (True, False)
    assert counted(store).images == 5


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
