"""One ledger entry that cannot be read is named, and never bought; everything else goes on."""

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from typing import Any, Final

import pytest

from nanobanana_pipeline.audit.audit import audit
from nanobanana_pipeline.bucket_keys import ledger_key, run_done_key
from nanobanana_pipeline.errors import EntryDamaged
from nanobanana_pipeline.generation.engine.engine import Report
from nanobanana_pipeline.generation.launch_steps import collect, settle_shard
from nanobanana_pipeline.generation.planning.run_files import read_request_keys
from nanobanana_pipeline.generation.recovery.doubts import find_doubts
from nanobanana_pipeline.generation.recovery.rescue import rescue
from nanobanana_pipeline.generation.recovery.run_outcome import run_outcome
from nanobanana_pipeline.ledger import Held, Ledger, State
from nanobanana_pipeline.money import Budget, Cap
from nanobanana_pipeline.storage import ObjectStore
from tests.conftest import Emulators, account_for
from tests.launching import PLANNER, bought, keep_prompts, launch, planned, prompts

CELLS = 20
DAMAGES: Final[dict[str, Callable[[bytes], bytes]]] = {
    "cut off": lambda body: body[: len(body) // 2],
    "empty": lambda _: b"",
    "newer": lambda body: json.dumps(json.loads(body) | {"schema": 99}).encode(),
    "of another": lambda body: json.dumps(json.loads(body) | {"request_key": "f" * 64}).encode(),
}
REMEDIES = {"newer": "upgrade nanobanana-pipeline"}


def damage(store: ObjectStore, request_key: str, how: str) -> str:
    """Damage an entry; gives its address."""
    key = ledger_key(request_key)
    stored = store.get(key)
    body = stored.body if stored is not None else b'{"schema": 1, "request_key": "x"}'
    store.put(key, DAMAGES[how](body))
    return store.uri(key)


@pytest.mark.parametrize("how", DAMAGES)
def test_one_that_was_damaged_before_the_launch_holds_up_no_other(
    store: ObjectStore, emulators: Emulators, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    emulator = emulators()
    account = account_for(emulator.base_url, store)
    keep_prompts(store, "set", [*prompts(CELLS - 1), {"prompt": "two", "samples": 2}])
    first = planned(store)
    (bad, *_) = keys = list(read_request_keys(store, first))
    address = damage(store, bad, how)
    remedy = REMEDIES.get(how, "restore it from a backup or from the bucket's versions")
    with caplog.at_level(logging.WARNING):
        again = launch(store, account)
    assert any(address in r.getMessage() and remedy in r.getMessage() for r in caplog.records)
    assert (again.made.buy, again.made.states) == (CELLS - 1, {"in_doubt": 1, "open": CELLS - 1})
    assert again.states == {"in_doubt": 1, "settled": CELLS - 1}
    (row,) = again.rows[again.rows["state"] == "in_doubt"].to_dict("records")
    assert row["request_key"] == bad
    assert address in row["reason"]
    assert remedy in row["reason"]
    assert bought(emulator) == CELLS - 1
    # It is none of this run's: that has nothing to rescue.
    assert store.head(run_done_key(again.made.run_id)) is not None
    assert launch(store, account, rebuy=True).made.buy == 0
    found = list(Ledger(store).read_many(keys))
    assert [each.request_key for each in found if isinstance(each, EntryDamaged)] == [bad]
    assert len(found) == CELLS
    report = audit(store)
    assert any(ledger_key(bad) == finding.key for finding in report.findings)
    assert find_doubts(store, None) == []


def test_a_row_is_written_for_every_sample_of_a_damaged_request(store: ObjectStore) -> None:
    keep_prompts(store, "set", [{"prompt": "three", "samples": 3}])
    (bad,) = read_request_keys(store, planned(store))
    damage(store, bad, "empty")
    current = collect(store, PLANNER, planned(store), Report())
    assert (current.cells, current.rows, current.gaps) == ({"in_doubt": 1}, 3, 1)


@pytest.mark.parametrize("how", DAMAGES)
def test_one_that_is_damaged_after_the_plan_ends_in_doubt_and_the_rest_is_bought(
    store: ObjectStore, emulators: Emulators, how: str
) -> None:
    emulator = emulators()
    account = account_for(emulator.base_url, store)
    keep_prompts(store, "set", prompts(CELLS))
    made = planned(store)
    (bad, *_) = read_request_keys(store, made)
    address = damage(store, bad, how)
    report = settle_shard(store, account, made.run_id, made.shards[0])
    assert report.states == {State.SETTLED: CELLS - 1, State.IN_DOUBT: 1}
    assert any(address in reason for reason in report.reasons)
    assert collect(store, PLANNER, made, report).cells == {"in_doubt": 1, "settled": CELLS - 1}
    assert bought(emulator) == CELLS - 1
    assert store.head(run_done_key(made.run_id)) is None, "it may be what this run has bought"
    outcome = run_outcome(store, made.run_id)
    assert outcome is not None
    assert outcome.states == {State.SETTLED: CELLS - 1, State.IN_DOUBT: 1}


def test_rescue_brings_the_others_and_leaves_the_run_unfinished(
    store: ObjectStore, emulators: Emulators
) -> None:
    emulator = emulators()
    account = account_for(emulator.base_url, store)
    keep_prompts(store, "set", prompts(3))
    made = planned(store)
    settle_shard(store, account, made.run_id, made.shards[0])
    (bad, *_) = read_request_keys(store, made)
    damage(store, bad, "cut off")
    ids = iter(("rescue-1", "rescue-2"))
    settled = rescue(store, account, made.run_id, new_run_id=lambda: next(ids))
    assert settled.current.cells == {"in_doubt": 1, "settled": 2}
    assert store.head(run_done_key(made.run_id)) is None
    assert bought(emulator) == 3


def test_what_is_settled_already_stays_settled_whatever_becomes_of_its_entry(
    store: ObjectStore, emulators: Emulators
) -> None:
    account = account_for(emulators().base_url, store)
    keep_prompts(store, "set", prompts(3))
    first = launch(store, account)
    damage(store, first.rows["request_key"][0], "empty")
    again = launch(store, account)
    assert (again.made.buy, again.states) == (0, {"settled": 3})


def test_an_entry_damaged_while_its_picture_is_brought_stops_nobody(
    store: ObjectStore, emulators: Emulators, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The purchase counts as spent: whether it can be brought is another matter."""
    emulator = emulators(mode="sync")
    account = account_for(emulator.base_url, store)
    account = replace(account, budget=Budget(Decimal("0.04"), run=Cap(images=9)))
    keep_prompts(store, "set", prompts(4))
    made = planned(store)
    (bad, *_) = read_request_keys(store, made)
    apply = Ledger.apply

    def damaged_first(ledger: Ledger, held: Held, *args: Any, **more: Any) -> Held:
        if held.entry.request_key == bad:
            damage(store, bad, "cut off")
        return apply(ledger, held, *args, **more)

    monkeypatch.setattr(Ledger, "apply", damaged_first)
    report = settle_shard(store, account, made.run_id, made.shards[0])
    assert report.states == {State.SETTLED: 3, State.IN_DOUBT: 1}
    assert (report.spent, bought(emulator)) == (4, 4)
