"""Every way a request can end, and every way a shard can be stopped."""

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import pytest
import tenacity

from nanobanana_pipeline.errors import StorageError
from nanobanana_pipeline.generation.engine.engine import Progress, Report
from nanobanana_pipeline.generation.engine.timing import Timing
from nanobanana_pipeline.generation.launch_steps import collect, settle_shard
from nanobanana_pipeline.ledger import Entry, Ledger, Outcome, State
from nanobanana_pipeline.local import free_port
from nanobanana_pipeline.provider.account import Account
from nanobanana_pipeline.provider.modelslab.request import ModelsLabRequest
from nanobanana_pipeline.request import request_key
from nanobanana_pipeline.storage import ObjectStore
from tests.conftest import API_KEY, Emulators, account_for
from tests.launching import (
    PLANNER,
    QUICK,
    admin,
    bought,
    check_images,
    entries,
    hasty,
    keep_prompts,
    launch,
    planned,
    prompts,
    states,
    tell,
)
from tests.s3_proxy import Loss, S3Proxy, wait_until

DAY = 24 * 3600


@pytest.fixture(autouse=True)
def _no_threads_left() -> Iterator[None]:
    """Whatever happens to a shard, its threads end with it."""
    yield
    wait_until(lambda: not engine_threads())


def engine_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith(("submit-", "transfer-"))]


@pytest.fixture
def proxy(s3_url: str) -> Iterator[S3Proxy]:
    with S3Proxy(s3_url) as proxy:
        yield proxy


def request_for(prompt: str) -> tuple[str, ModelsLabRequest]:
    """As `launch` asks for a plain prompt under seed 1."""
    request = ModelsLabRequest(prompt=prompt, seed=1, width=1024, height=1024)
    return request_key(request, realm="emulator"), request


def claimed(store: ObjectStore, prompt: str, lease_seconds: float = 60) -> str:
    """Leave a claim behind as a worker does that is sending, or dead."""
    key, request = request_for(prompt)
    held = Ledger(store).claim(
        None,
        Entry.new(request, key, realm="emulator"),
        run_id="dead",
        nonce="dead-nonce",
        lease_seconds=lease_seconds,
    )
    assert held is not None
    return key


def posts(emulator: object) -> int:
    calls: dict[str, int] = admin(emulator, "stats")["calls"].get("text2img", {})  # type: ignore[arg-type]
    return sum(calls.values())


# --- what the provider may answer ---


@pytest.mark.parametrize("mood", ["http_500_after", "lost_answer_after", "html_answer", "cut_json"])
def test_what_was_bought_without_a_readable_answer_is_in_doubt_and_not_bought_again(
    store: ObjectStore, emulators: Emulators, mood: str
) -> None:
    emulator = emulators(moods={mood: 1})
    account = account_for(emulator.base_url, store)
    keep_prompts(store, "set", prompts(3))
    first = launch(store, account)
    assert (first.states, first.report.bought) == ({"in_doubt": 3}, 0)
    assert first.report.states == {State.IN_DOUBT: 3}
    assert sum(first.report.reasons.values()) == 3
    assert first.rows["reason"].notna().all()
    tell(emulator, "moods", **{mood: 0})
    again = launch(store, account)
    assert (again.states, again.made.buy, again.made.look) == ({"in_doubt": 3}, 0, 3)
    assert bought(emulator) == 3


def test_a_500_without_a_purchase_is_in_doubt_too(store: ObjectStore, emulators: Emulators) -> None:
    emulator = emulators(moods={"http_500_before": 1})
    keep_prompts(store, "set", prompts(2))
    assert launch(store, account_for(emulator.base_url, store)).states == {"in_doubt": 2}
    assert bought(emulator) == 0


def test_an_error_in_200_refuses_the_request_for_good(
    store: ObjectStore, emulators: Emulators
) -> None:
    emulator = emulators(moods={"error_200": 1})
    account = account_for(emulator.base_url, store)
    keep_prompts(store, "set", prompts(2))
    refused = launch(store, account)
    assert (refused.states, refused.current.gaps) == ({"refused": 2}, 0)
    assert refused.rows["reason"].str.contains("not allowed").all()
    assert launch(store, account).made.buy == 0
    assert posts(emulator) == 2


def test_rate_limits_are_waited_out(store: ObjectStore, emulators: Emulators) -> None:
    emulator = emulators(
        cap=2, latency_seconds=(0.1, 0.2), retry_after_seconds=0.1, moods={"rate_limited": 0.3}
    )
    keep_prompts(store, "set", prompts(10))
    made = launch(store, account_for(emulator.base_url, store))
    assert (made.states, made.report.bought) == ({"settled": 10}, 10)
    assert made.report.rate_limited > 0
    record = admin(emulator, "purchases")
    assert (record["total"], record["bought_twice"]) == (10, 0)


@pytest.mark.parametrize("mode", ["queued", "sync"])
def test_what_fails_at_the_provider_is_tried_three_times(
    store: ObjectStore, emulators: Emulators, mode: str
) -> None:
    emulator = emulators(mode=mode, moods={"failed": 1})
    account = account_for(emulator.base_url, store)
    keep_prompts(store, "set", prompts(2))
    failed = launch(store, account)
    assert failed.states == {"failed": 2}
    assert failed.report.states == {State.FAILED: 2}
    assert [len(entry.attempts) for entry in entries(store)] == [3, 3]
    assert launch(store, account).made.buy == 0
    record = admin(emulator, "purchases")
    assert (record["total"], record["failed"], record["bought_twice"]) == (6, 6, 0)


def test_what_failed_once_may_settle_at_the_next_try(
    store: ObjectStore, emulators: Emulators
) -> None:
    emulator = emulators(moods={"failed": 0.5}, seed=4)
    keep_prompts(store, "set", prompts(8))
    made = launch(store, account_for(emulator.base_url, store))
    assert made.states["settled"] >= 6
    assert made.rows["attempts"].max() > 1
    assert admin(emulator, "purchases")["bought_twice"] == 0


def test_what_the_provider_forgets_is_lost_and_held_and_brought_when_it_remembers(
    store: ObjectStore, emulators: Emulators
) -> None:
    emulator = emulators(moods={"forget": 1})
    account = account_for(emulator.base_url, store)
    keep_prompts(store, "set", prompts(2))
    first = launch(store, account)
    assert first.states == {"lost": 2}
    assert first.rows["provider_id"].notna().all()
    again = launch(store, account)
    assert (again.states, again.made.buy, again.made.look) == ({"lost": 2}, 0, 2)
    tell(emulator, "moods", forget=0)
    assert launch(store, account).states == {"settled": 2}
    assert bought(emulator) == 2


@pytest.mark.parametrize("mood", ["unauthorized", "no_credit"])
def test_a_refused_account_stops_the_shard_at_once(
    store: ObjectStore, emulators: Emulators, mood: str
) -> None:
    emulator = emulators(moods={mood: 1})
    account = account_for(emulator.base_url, store)
    keep_prompts(store, "set", prompts(30))
    halted = launch(store, account, shard_size=30)
    assert halted.report.halted
    assert halted.states == {"pending": 30}
    assert halted.report.states == {State.OPEN: 30}
    assert posts(emulator) <= 4  # slots start small
    assert set(states(store)) == {State.OPEN}
    assert API_KEY not in str([entry.to_json() for entry in entries(store)])
    tell(emulator, "moods", **{mood: 0})
    assert launch(store, account).states == {"settled": 30}


@pytest.mark.parametrize("mood", ["image_404", "truncated_image"])
def test_bad_bytes_are_fetched_again(store: ObjectStore, emulators: Emulators, mood: str) -> None:
    emulator = emulators(moods={mood: 1})
    keep_prompts(store, "set", prompts(3))
    made = launch(store, account_for(emulator.base_url, store))
    assert made.states == {"settled": 3}
    check_images(store, made.rows)
    assert bought(emulator) == 3


def test_a_provider_that_cannot_be_reached_leaves_no_doubt(store: ObjectStore) -> None:
    account = account_for(f"http://127.0.0.1:{free_port()}/nano_banana/", store)
    keep_prompts(store, "set", prompts(3))
    made = launch(store, account)
    assert (made.states, made.report.bought) == ({"pending": 3}, 0)
    assert made.rows["reason"].str.contains("refused").all()
    assert all(a.outcome is Outcome.NOT_SENT for e in entries(store) for a in e.attempts)
    assert [entry.tries for entry in entries(store)] == [QUICK.unsent_tries] * 3
    assert [len(entry.attempts) for entry in entries(store)] == [1] * 3


# --- what others left behind ---


def test_what_a_dead_run_was_sending_is_waited_for_and_then_in_doubt(
    store: ObjectStore, emulators: Emulators
) -> None:
    emulator = emulators()
    keep_prompts(store, "set", prompts(2))
    claimed(store, prompts(2)[0], lease_seconds=2)
    began = time.monotonic()
    made = launch(store, account_for(emulator.base_url, store))
    assert time.monotonic() - began < 45
    assert made.states == {"in_doubt": 1, "settled": 1}
    assert made.rows["reason"].dropna().to_list() == ["run dead ended while it was sending"]
    assert bought(emulator) == 1


def test_what_another_run_is_sending_is_taken_from_it_when_it_is_settled(
    store: ObjectStore, emulators: Emulators
) -> None:
    emulator = emulators()
    account = account_for(emulator.base_url, store)
    keep_prompts(store, "set", prompts(1))
    key = claimed(store, prompts(1)[0])

    def give_back() -> None:
        # The launch has seen the claim when it writes down what it is going to do.
        wait_until(lambda: list(store.keys("runs/")))
        time.sleep(0.5)
        ledger = Ledger(store)
        held = ledger.read(key)
        assert held is not None
        ledger.apply(held, lambda entry: entry.not_sent("dead-nonce", "rate limit"))

    threading.Thread(target=give_back).start()
    made = launch(store, account)
    assert (made.states, made.made.buy, made.made.resume) == ({"settled": 1}, 0, 1)
    assert made.rows["attempts"].to_list() == [2]


def test_what_a_dead_run_had_accepted_is_brought_by_its_id_without_a_post(
    store: ObjectStore, emulators: Emulators
) -> None:
    emulator = emulators()
    account = account_for(emulator.base_url, store)
    keep_prompts(store, "set", prompts(1))
    key, request = request_for(prompts(1)[0])
    queued = account.provider.submit(request)
    provider_id = getattr(queued, "provider_id", None)
    claimed(store, prompts(1)[0])
    ledger = Ledger(store)
    held = ledger.read(key)
    assert held is not None
    ledger.apply(held, lambda entry: entry.accept("dead-nonce", provider_id))
    made = launch(store, account)
    assert (made.states, made.made.buy, made.made.resume) == ({"settled": 1}, 0, 1)
    assert (made.report.bought, made.rows["run_id"].to_list()) == (0, ["dead"])
    assert posts(emulator) == 1
    check_images(store, made.rows)


def test_pictures_that_have_expired_are_lost_with_the_good_ones_kept(
    store: ObjectStore, emulators: Emulators
) -> None:
    """Of two samples one was brought before the provider's 24 hours ended."""
    emulator = emulators()
    account = account_for(emulator.base_url, store)
    keep_prompts(store, "set", [{"prompt": "a pair", "samples": 2}])
    whole = launch(store, account)
    (entry,) = entries(store)
    tell(emulator, "clock", advance=DAY + 1)
    lost = entry.model_copy(
        update={
            "attempts": (entry.attempts[0].model_copy(update={"outcome": Outcome.ACCEPTED}),),
            "images": entry.images[:1],
        }
    )
    for key in [*store.keys("ledger/"), *store.keys("manifests/")]:
        store.delete(key)
    ledger_of_lost = f"ledger/{lost.request_key[:2]}/{lost.request_key}.json"
    store.put(ledger_of_lost, lost.to_json())
    made = launch(store, account, timing=replace(QUICK, download_seconds=1.0))
    assert made.states == {"lost": 1}
    assert made.rows["sample"].to_list() == [0, 1]
    assert made.rows["image_sha256"].notna().to_list() == [True, False]
    assert made.rows["image_sha256"][0] == whole.rows["image_sha256"][0]
    assert made.rows["reason"].str.contains("404").all()
    assert made.current.images == 1
    assert bought(emulator) == 1


# --- S3 that fails ---


def test_s3_that_goes_away_in_the_middle_and_comes_back_costs_nothing(
    store: ObjectStore, emulators: Emulators, proxy: S3Proxy
) -> None:
    emulator = emulators(latency_seconds=(0.2, 0.4))
    account = account_for(emulator.base_url, store)
    keep_prompts(store, "set", prompts(12))
    made = planned(store)

    def break_off() -> None:
        wait_until(lambda: bought(emulator) >= 4)
        proxy.go_down()
        time.sleep(1)
        proxy.come_back()

    breaking = threading.Thread(target=break_off)
    breaking.start()
    far = proxy.store_like(store)
    report = settle_shard(far, account, made.run_id, made.shards[0])
    breaking.join()
    assert (report.states, report.bought) == ({State.SETTLED: 12}, 12)
    current = collect(store, PLANNER, made, report)
    assert current.cells == {"settled": 12}
    record = admin(emulator, "purchases")
    assert (record["total"], record["bought_twice"]) == (12, 0)


def test_every_third_answer_of_s3_is_lost_and_nothing_else(
    store: ObjectStore, emulators: Emulators, proxy: S3Proxy
) -> None:
    emulator = emulators(latency_seconds=(0.05, 0.1))
    account = account_for(emulator.base_url, store)
    keep_prompts(store, "set", prompts(6))
    made = planned(store)
    proxy.rule = lambda _method, _path: Loss.ANSWER if len(proxy.calls) % 3 == 0 else None
    report = settle_shard(proxy.store_like(store), account, made.run_id, made.shards[0])
    assert (report.states, report.bought) == ({State.SETTLED: 6}, 6)
    assert collect(store, PLANNER, made, report).cells == {"settled": 6}
    record = admin(emulator, "purchases")
    assert (record["total"], record["bought_twice"]) == (6, 0)
    assert not [key for key in store.keys("images/") if ".refs/" in key], "each owns its own"


def test_s3_that_stays_away_ends_the_shard_and_says_what_is_known(
    store: ObjectStore, emulators: Emulators, proxy: S3Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Accepted, and never written down: the report does not call it open."""
    monkeypatch.setattr(ObjectStore.get.retry, "stop", tenacity.stop_after_delay(0.2))
    emulator = emulators()
    keep_prompts(store, "set", prompts(1))
    made = planned(store)
    account = account_for(emulator.base_url, store)

    def rule(_method: str, path: str) -> Loss | None:
        return Loss.REQUEST if "/ledger/" in path and bought(emulator) else None

    proxy.rule = rule
    report = settle_shard(
        proxy.store_like(store),
        account,
        made.run_id,
        made.shards[0],
        timing=Timing(paid_patience_seconds=0.5),
    )
    assert (report.states, report.bought) == ({State.SUBMITTING: 1}, 1)
    assert collect(store, PLANNER, made, report).cells == {"pending": 1}


def test_a_missing_run_file_is_named(store: ObjectStore, emulators: Emulators) -> None:
    account = account_for(emulators().base_url, store)
    with pytest.raises(StorageError, match=r"runs/no-such-run/plan\.json is missing"):
        settle_shard(store, account, "no-such-run", "shard-0000")
    keep_prompts(store, "set", prompts(1))
    made = planned(store)
    with pytest.raises(StorageError, match=r"runs/.*/shard-0007\.parquet is missing"):
        settle_shard(store, account, made.run_id, "shard-0007")


# --- being stopped ---


class Interruption(BaseException):
    """As Ctrl-C or Dagster's Terminate: no Exception."""


def interrupted(
    store: ObjectStore,
    account: Account,
    count: int,
    emulator: object,
    after: int,
    grace_seconds: float = 60.0,
) -> None:
    """Settle a shard of `count` requests, and break off once so many are bought."""
    made = planned(store, run_id="interrupted")

    def on_progress(_: Progress) -> None:
        if bought(emulator) >= after:  # type: ignore[arg-type]
            raise Interruption

    assert made.buy == count
    with pytest.raises(Interruption):
        settle_shard(
            store,
            account,
            made.run_id,
            made.shards[0],
            on_progress=on_progress,
            timing=Timing(progress_seconds=0.1, grace_seconds=grace_seconds),
        )


def test_an_interruption_stops_sending_and_settles_what_is_accepted(
    store: ObjectStore, emulators: Emulators
) -> None:
    emulator = emulators(latency_seconds=(0.3, 0.5))
    account = account_for(emulator.base_url, store)
    keep_prompts(store, "set", prompts(30))
    interrupted(store, account, 30, emulator, after=4)
    sold = bought(emulator)
    assert sold < 30
    assert not engine_threads()
    left = states(store)
    assert left.get(State.SETTLED) == sold
    assert set(left) <= {State.SETTLED, State.OPEN}
    assert launch(store, account).states == {"settled": 30}
    record = admin(emulator, "purchases")
    assert (record["total"], record["bought_twice"]) == (30, 0)


def test_what_is_still_drawn_at_the_end_of_the_grace_is_resumed_by_the_next_launch(
    store: ObjectStore, emulators: Emulators
) -> None:
    emulator = emulators(latency_seconds=(10, 10))
    account = account_for(emulator.base_url, store)
    keep_prompts(store, "set", prompts(8))
    interrupted(store, account, 8, emulator, after=4, grace_seconds=0.5)
    assert states(store)[State.ACCEPTED] == bought(emulator) == 4
    tell(emulator, "clock", advance=10)
    again = launch(store, account)
    assert (again.states, again.report.bought) == ({"settled": 8}, 4)
    assert admin(emulator, "purchases")["bought_twice"] == 0


def test_what_is_not_answered_at_the_end_of_the_grace_is_in_doubt_until_its_answer_comes(
    store: ObjectStore, emulators: Emulators
) -> None:
    emulator = emulators(mode="sync", latency_seconds=(10, 10))
    account = account_for(emulator.base_url, store)
    keep_prompts(store, "set", prompts(6))
    interrupted(store, account, 6, emulator, after=4, grace_seconds=0.5)
    assert states(store)[State.IN_DOUBT] == 4
    assert State.SUBMITTING not in states(store)
    tell(emulator, "clock", advance=10)
    # The threads that wait for the answers are alive still, and write down what comes.
    wait_until(lambda: states(store).get(State.ACCEPTED) == 4)
    assert launch(store, account).states == {"settled": 6}
    record = admin(emulator, "purchases")
    assert (record["total"], record["bought_twice"]) == (6, 0)


def test_a_stop_while_s3_is_silent_is_bounded_and_raises_what_stopped_it(
    store: ObjectStore, emulators: Emulators, proxy: S3Proxy
) -> None:
    """Transfer workers wait for S3, and submit workers for the hand-over, which is full."""
    timing = Timing(
        progress_seconds=0.1, grace_seconds=1.0, transfer_workers=2, hand_over=2, stuck_after=1000
    )
    emulator = emulators(mode="sync")
    account = account_for(emulator.base_url, store)
    keep_prompts(store, "set", prompts(20))
    made = planned(store)
    proxy.rule = lambda _method, path: Loss.REQUEST if "/images/" in path else None

    def on_progress(now: Progress) -> None:
        # 2 in transfer, 2 in between, and 10 submit workers that wait to hand over.
        if bought(emulator) == 14 and now.at_provider == 0:
            raise Interruption

    far = proxy.store_like(store)
    with pytest.raises(Interruption):
        settle_shard(
            far,
            account,
            made.run_id,
            made.shards[0],
            on_progress=on_progress,
            timing=timing,
        )
    assert states(store) == {State.ACCEPTED: 14}
    proxy.rule = lambda _method, _path: None
    again = launch(store, account)
    assert (again.states, again.report.bought) == ({"settled": 20}, 6)
    assert admin(emulator, "purchases")["bought_twice"] == 0


def test_a_stop_while_the_ledger_is_silent_raises_what_stopped_it(
    store: ObjectStore, emulators: Emulators, proxy: S3Proxy
) -> None:
    timing = Timing(progress_seconds=0.1, grace_seconds=0.3, doubt_seconds=0.3)
    emulator = emulators(mode="sync", latency_seconds=(60, 60))
    account = account_for(emulator.base_url, store)
    keep_prompts(store, "set", prompts(4))
    made = planned(store)

    def on_progress(_: Progress) -> None:
        if bought(emulator) == 4:
            proxy.go_down()
            raise Interruption

    far = proxy.store_like(store)
    with pytest.raises(Interruption):
        settle_shard(
            far,
            account,
            made.run_id,
            made.shards[0],
            on_progress=on_progress,
            timing=timing,
        )
    assert states(store) == {State.SUBMITTING: 4}
    tell(emulator, "clock", advance=60)
    wait_until(lambda: admin(emulator, "stats")["calls"])  # answered, and nowhere to write it
    proxy.come_back()
    wait_until(lambda: states(store) == {State.ACCEPTED: 4})


def test_ctrl_c_reaches_the_caller(store: ObjectStore, emulators: Emulators) -> None:
    emulator = emulators(latency_seconds=(0.2, 0.3))
    account = account_for(emulator.base_url, store)
    keep_prompts(store, "set", prompts(30))
    made = planned(store)

    def press() -> None:
        wait_until(lambda: bought(emulator) >= 3)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press).start()
    with pytest.raises(KeyboardInterrupt):
        settle_shard(store, account, made.run_id, made.shards[0], timing=QUICK)
    sold = bought(emulator)
    time.sleep(0.5)
    assert bought(emulator) == sold < 30
    left = states(store)
    assert left.get(State.SETTLED) == sold, left


# --- faults of our own ---


@pytest.mark.parametrize("stage", ["download", "submit"])
def test_a_fault_in_either_stage_ends_the_shard_and_is_raised(
    store: ObjectStore, emulators: Emulators, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    """A programming mistake, which cannot be made to happen otherwise."""
    emulator = emulators(latency_seconds=(0.05, 0.1))
    account = account_for(emulator.base_url, store)
    keep_prompts(store, "set", prompts(20))
    made = planned(store)
    part: object = account.downloader if stage == "download" else account.provider

    def fault(*_: object, **__: object) -> None:
        raise RuntimeError("a mistake")

    with monkeypatch.context() as patch:
        patch.setattr(part, stage, fault)
        with pytest.raises(RuntimeError, match="a mistake"):
            settle_shard(store, account, made.run_id, made.shards[0], timing=Timing(hand_over=1))
    assert bought(emulator) < 20
    if stage == "download":
        assert launch(store, account).states == {"settled": 20}
        assert admin(emulator, "purchases")["bought_twice"] == 0


def test_progress_and_report_agree(store: ObjectStore, emulators: Emulators) -> None:
    emulator = emulators(latency_seconds=(0.1, 0.2))
    account = account_for(emulator.base_url, store)
    keep_prompts(store, "set", prompts(8))
    made = planned(store)
    seen: list[Progress] = []
    report = settle_shard(
        store,
        account,
        made.run_id,
        made.shards[0],
        slots=2,
        on_progress=seen.append,
        timing=Timing(progress_seconds=0.2),
    )
    assert seen
    assert [now.finished for now in seen] == sorted(now.finished for now in seen)
    assert all(now.total == 8 and now.at_provider <= 2 for now in seen)
    assert "of 8 requests" in str(seen[-1])
    assert report.images == 8
    assert report.provider_seconds >= 8 * 0.1
    assert admin(emulator, "stats")["max_in_flight"] <= 2


def test_reports_add_up() -> None:
    total = Report(reasons=Counter(a=1))
    total += Report(states=Counter({State.SETTLED: 2}), bought=2, images=3, size=4, halted="why")
    total += Report(states=Counter({State.SETTLED: 1}), reasons=Counter(a=1, b=1))
    assert (total.states, total.bought, total.images, total.size) == ({"settled": 3}, 2, 3, 4)
    assert (total.reasons, total.halted) == ({"a": 2, "b": 1}, "why")


def test_a_short_deadline_leaves_a_slow_answer_in_doubt(
    store: ObjectStore, emulators: Emulators
) -> None:
    emulator = emulators(moods={"slow_answer": 1}, slow_answer_seconds=3)
    account = hasty(account_for(emulator.base_url, store), emulator.base_url, 0.5)
    keep_prompts(store, "set", prompts(1))
    made = launch(store, account)
    assert made.states == {"in_doubt": 1}
    assert made.rows["reason"].str.contains("no whole answer within").all()
    assert bought(emulator) == 1
