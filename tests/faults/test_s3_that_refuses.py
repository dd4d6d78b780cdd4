"""S3 that is full or refuses: no more money goes into it, and what was bought is brought later."""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import chain, repeat

import pytest
import tenacity

from nanobanana_pipeline.errors import StorageError, StorageFull
from nanobanana_pipeline.generation.engine.timing import Timing
from nanobanana_pipeline.generation.launch_steps import settle_shard
from nanobanana_pipeline.generation.recovery.doubts import (
    Action,
    find_doubts,
    name_id,
    settle_doubts,
)
from nanobanana_pipeline.ledger import State
from nanobanana_pipeline.storage import ObjectStore
from tests.conftest import API_KEY, Emulators, account_for
from tests.launching import (
    QUICK,
    admin,
    bought,
    check_images,
    hasty,
    keep_prompts,
    launch,
    planned,
    prompts,
    states,
)
from tests.s3_proxy import Refusal, S3Proxy, wait_until

REQUESTS = 45
FULL = [
    Refusal(507, "XMinioStorageFull"),
    Refusal(507, "InsufficientStorage"),
    Refusal(400, "XMinioAdminBucketQuotaExceeded"),
    Refusal(403, "QuotaExceeded"),
]


def refuse_pictures(proxy: S3Proxy, refusal: Refusal, after: int) -> None:
    """Let so many pictures in, and no more."""

    fates = chain(repeat(None, after), repeat(refusal))

    def rule(method: str, path: str) -> Refusal | None:
        return next(fates) if method == "PUT" and "/images/" in path else None

    proxy.rule = rule


@pytest.mark.parametrize("refusal", FULL, ids=lambda refusal: refusal.code)
def test_a_full_bucket_stops_buying_at_once_and_what_was_bought_is_brought_later(
    store: ObjectStore, emulators: Emulators, proxy: S3Proxy, refusal: Refusal
) -> None:
    emulator = emulators(latency_seconds=(0.2, 0.4))
    account = account_for(emulator.base_url, store)
    keep_prompts(store, "set", prompts(REQUESTS))
    refuse_pictures(proxy, refusal, after=2)
    full = launch(proxy.store_like(store), account)
    assert full.report.halted is not None
    assert "it is full: free space or raise the quota, then launch again" in full.report.halted
    sold = bought(emulator)
    assert sold <= 2 + 2 * account.slots
    assert full.report.reasons["bought, and not brought: the bucket is full"] == sold - 2
    left = states(store)
    assert (left[State.SETTLED], left[State.ACCEPTED]) == (2, sold - 2)
    assert set(left) <= {State.SETTLED, State.ACCEPTED, State.OPEN}
    assert full.states == {"settled": 2, "pending": REQUESTS - 2}
    again = launch(store, account)
    assert (again.states, again.made.resume) == ({"settled": REQUESTS}, sold - 2)
    assert again.report.bought == REQUESTS - sold
    check_images(store, again.rows)
    assert admin(emulator, "purchases")["bought_twice"] == 0


def test_a_bucket_that_is_full_from_the_start_sells_nothing(
    store: ObjectStore, emulators: Emulators, proxy: S3Proxy
) -> None:
    emulator = emulators()
    account = account_for(emulator.base_url, store)
    keep_prompts(store, "set", prompts(4))
    made = planned(store)
    proxy.rule = lambda method, path: FULL[0] if method == "PUT" and "/ledger/" in path else None
    report = settle_shard(
        proxy.store_like(store),
        account,
        made.run_id,
        made.shards[0],
        timing=Timing(patience_seconds=0.3),
    )
    assert report.halted is not None
    assert "it is full" in report.halted
    assert (report.states, bought(emulator)) == ({State.OPEN: 4}, 0)


def test_a_full_bucket_says_so_before_anything_is_planned(
    store: ObjectStore, proxy: S3Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ObjectStore.put.retry, "stop", tenacity.stop_after_delay(0.2))
    keep_prompts(store, "set", prompts(1))
    proxy.rule = lambda method, _path: FULL[0] if method == "PUT" else None
    with pytest.raises(StorageFull, match="it is full: free space"):
        planned(proxy.store_like(store))


def test_while_no_picture_can_be_stored_none_is_bought_and_then_it_goes_on(
    store: ObjectStore,
    emulators: Emulators,
    proxy: S3Proxy,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A full SeaweedFS says no more than InternalError: nobody can tell it from a passing fault."""
    emulator = emulators(latency_seconds=(0.2, 0.4))
    account = account_for(emulator.base_url, store)
    keep_prompts(store, "set", prompts(REQUESTS))
    made = planned(store)
    refuse_pictures(proxy, Refusal(500, "InternalError"), after=2)
    far = proxy.store_like(store)
    with ThreadPoolExecutor(1) as aside:
        settling = aside.submit(
            settle_shard, far, account, made.run_id, made.shards[0], timing=QUICK
        )
        wait_until(lambda: "nothing more is bought until S3 takes pictures again" in caplog.text)
        wait_until(lambda: admin(emulator, "stats")["in_flight"] == 0)
        time.sleep(1)
        sold = bought(emulator)
        time.sleep(2)
        assert bought(emulator) == sold < REQUESTS
        proxy.rule = lambda _method, _path: None
        report = settling.result(60)
    assert (report.states, report.halted) == ({State.SETTLED: REQUESTS}, None)
    record = admin(emulator, "purchases")
    assert (record["total"], record["bought_twice"]) == (REQUESTS, 0)


def test_a_bucket_that_takes_no_picture_for_too_long_ends_the_shard(
    store: ObjectStore, emulators: Emulators, proxy: S3Proxy
) -> None:
    emulator = emulators(latency_seconds=(0.2, 0.4))
    account = account_for(emulator.base_url, store)
    keep_prompts(store, "set", prompts(REQUESTS))
    refuse_pictures(proxy, Refusal(500, "InternalError"), after=0)
    timing = replace(QUICK, paid_patience_seconds=3.0)
    ended = launch(proxy.store_like(store), account, timing=timing)
    assert ended.report.halted is not None
    assert "InternalError" in ended.report.halted
    sold = bought(emulator)
    assert sold < REQUESTS
    assert states(store)[State.ACCEPTED] == sold
    again = launch(store, account)
    assert (again.states, again.report.bought) == ({"settled": REQUESTS}, REQUESTS - sold)
    assert admin(emulator, "purchases")["bought_twice"] == 0


@pytest.mark.parametrize(
    ("code", "remedy"),
    [("AccessDenied", "check the bucket policy"), ("ExpiredToken", "renew the AWS session")],
)
def test_pictures_that_s3_refuses_end_the_shard_with_the_remedy(
    store: ObjectStore, emulators: Emulators, proxy: S3Proxy, code: str, remedy: str
) -> None:
    emulator = emulators(latency_seconds=(0.2, 0.4))
    account = account_for(emulator.base_url, store)
    keep_prompts(store, "set", prompts(REQUESTS))
    made = planned(store)
    refuse_pictures(proxy, Refusal(403, code), after=2)
    with pytest.raises(StorageError, match=remedy):
        settle_shard(proxy.store_like(store), account, made.run_id, made.shards[0])
    sold = bought(emulator)
    assert sold <= 2 + 2 * account.slots
    left = states(store)
    assert (left[State.SETTLED], left[State.ACCEPTED]) == (2, sold - 2)
    assert State.SUBMITTING not in left
    again = launch(store, account)
    assert (again.states, again.report.bought) == ({"settled": REQUESTS}, REQUESTS - sold)
    assert admin(emulator, "purchases")["bought_twice"] == 0


def test_what_is_bought_and_cannot_be_written_down_is_told_with_its_id_and_how_to_bring_it(
    store: ObjectStore,
    emulators: Emulators,
    proxy: S3Proxy,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A token that ran out while the request was at the provider: nothing can be written at all."""
    emulator = emulators()
    account = hasty(account_for(emulator.base_url, store), emulator.base_url, 2.0)
    keep_prompts(store, "set", prompts(1))
    made = planned(store)
    proxy.rule = lambda method, _path: (
        Refusal(400, "ExpiredToken") if method == "PUT" and bought(emulator) else None
    )
    with pytest.raises(StorageError, match="renew the AWS session"):
        settle_shard(
            proxy.store_like(store),
            account,
            made.run_id,
            made.shards[0],
            timing=Timing(lease_margin_seconds=0.5),
        )
    assert states(store) == {State.SUBMITTING: 1}
    (told,) = [r for r in caplog.records if "was bought, and the ledger does not" in r.message]
    key, provider_id = told.args[0], told.args[1]  # type: ignore[index]
    assert f"nanobanana doubts resolve {key} --provider-id {provider_id}" in told.message
    assert API_KEY not in caplog.text

    wait_until(lambda: find_doubts(store, None))
    (doubt,) = find_doubts(store, None)
    assert doubt.request_key == key
    name_id(store, account, doubt, str(provider_id))
    (settled,) = settle_doubts(store, account, [doubt], Action.LOOK)
    assert dict(settled.current.cells) == {"settled": 1}
    assert bought(emulator) == 1


def test_a_stop_while_a_purchase_cannot_be_written_down_tells_its_id(
    store: ObjectStore,
    emulators: Emulators,
    proxy: S3Proxy,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A full bucket takes no entry; whoever waits for room is stopped by Ctrl-C."""
    timing = Timing(
        progress_seconds=0.2, grace_seconds=1.0, doubt_seconds=1.0, unwritten_seconds=0.5
    )
    emulator = emulators()
    account = account_for(emulator.base_url, store)
    keep_prompts(store, "set", prompts(1))
    made = planned(store)
    proxy.rule = lambda method, _path: FULL[0] if method == "PUT" and bought(emulator) else None

    def press(_: object) -> None:
        if bought(emulator):
            raise KeyboardInterrupt

    far = proxy.store_like(store)
    with pytest.raises(KeyboardInterrupt):
        settle_shard(
            far,
            account,
            made.run_id,
            made.shards[0],
            on_progress=press,
            timing=timing,
        )
    (told,) = [r for r in caplog.records if "was bought, and the ledger does not" in r.message]
    assert states(store) == {State.SUBMITTING: 1}
    (purchase,) = admin(emulator, "purchases")["groups"]
    assert str(told.args[1]) in str(purchase)  # type: ignore[index]
    proxy.rule = lambda _method, _path: None
    wait_until(lambda: states(store) == {State.ACCEPTED: 1})
