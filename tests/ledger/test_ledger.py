"""The ledger against real S3: racing writers, lost answers, leases."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import tenacity

from nanobanana_pipeline.bucket_keys import ledger_key
from nanobanana_pipeline.errors import ForbiddenTransition, StorageError, StorageUnavailable
from nanobanana_pipeline.ledger import Entry, Held, Ledger, Outcome, State, new_nonce
from nanobanana_pipeline.provider.modelslab.request import ModelsLabRequest
from nanobanana_pipeline.request import request_key
from nanobanana_pipeline.storage import ObjectStore
from nanobanana_pipeline.storage.cas import Instant
from tests.s3_proxy import Loss, S3Proxy

REQUEST = ModelsLabRequest(prompt="a red panda", seed=1)
KEY = request_key(REQUEST, realm="emulator")
PATH = f"ledger/{KEY[:2]}/{KEY}.json"
RACERS = 16


def claim(
    ledger: Ledger, held: Held | None = None, *, nonce: str = "n1", lease_seconds: float = 60
) -> Held | None:
    return ledger.claim(
        held,
        Entry.new(REQUEST, KEY, realm="emulator"),
        run_id="run",
        nonce=nonce,
        lease_seconds=lease_seconds,
    )


def claimed(ledger: Ledger, *, lease_seconds: float = 60) -> Held:
    held = claim(ledger, lease_seconds=lease_seconds)
    assert held is not None
    return held


def read(ledger: Ledger) -> Held:
    held = ledger.read(KEY)
    assert held is not None
    return held


@pytest.fixture
def proxy(s3_url: str) -> Iterator[S3Proxy]:
    with S3Proxy(s3_url) as proxy:
        yield proxy


@pytest.fixture
def far(proxy: S3Proxy, store: ObjectStore) -> Ledger:
    """The ledger as seen through the proxy."""
    return Ledger(proxy.store_like(store))


@pytest.fixture
def near(store: ObjectStore) -> Ledger:
    """The same ledger, straight from the server."""
    return Ledger(store)


def race(
    store: ObjectStore, job: Callable[[Ledger, int], Held | None], racers: int = RACERS
) -> list[Held]:
    """All at once; gives the winners."""
    start = threading.Barrier(racers)

    def run(number: int) -> Held | None:
        start.wait()
        return job(Ledger(store), number)

    with ThreadPoolExecutor(racers) as pool:
        return [held for held in pool.map(run, range(racers)) if held is not None]


def test_of_sixteen_who_claim_a_new_request_one_wins(store: ObjectStore, near: Ledger) -> None:
    winners = race(store, lambda ledger, number: claim(ledger, nonce=f"n{number}"))
    assert len(winners) == 1
    assert read(near).entry == winners[0].entry
    assert len(winners[0].entry.attempts) == 1


def test_of_sixteen_who_claim_an_open_request_one_wins(store: ObjectStore, near: Ledger) -> None:
    held = near.apply(claimed(near), lambda entry: entry.not_sent("n1", "rate limit"))
    winners = race(store, lambda ledger, number: claim(ledger, held, nonce=f"m{number}"))
    assert len(winners) == 1
    assert read(near).entry == winners[0].entry


def test_six_steps_at_once_all_land(store: ObjectStore, near: Ledger) -> None:
    held = claimed(near)
    written = race(store, lambda ledger, _: ledger.apply(held, lambda entry: entry.renew("n1")), 6)
    assert len({one.entry.revision for one in written}) == 6
    assert read(near).entry.revision in {one.entry.revision for one in written}


@pytest.mark.parametrize(("loss", "puts"), [(Loss.ANSWER, 1), (Loss.REQUEST, 2)])
def test_a_claim_whose_answer_is_lost_is_won_all_the_same(
    proxy: S3Proxy, far: Ledger, near: Ledger, loss: Loss, puts: int
) -> None:
    proxy.lose_once(loss, "PUT")
    held = claim(far)
    assert held is not None
    assert read(near).entry == held.entry
    assert read(near).etag == held.etag
    assert proxy.count("PUT") == puts


@pytest.mark.parametrize(("loss", "puts"), [(Loss.ANSWER, 1), (Loss.REQUEST, 2)])
def test_a_step_whose_answer_is_lost_is_taken_once(
    proxy: S3Proxy, far: Ledger, near: Ledger, loss: Loss, puts: int
) -> None:
    held = claimed(near)
    proxy.lose_once(loss, "PUT")
    accepted = far.apply(held, lambda entry: entry.accept("n1", "7"))
    assert read(near).entry == accepted.entry
    assert proxy.count("PUT") == puts


def test_a_claim_lost_to_another_is_not_taken_for_ones_own(
    proxy: S3Proxy, far: Ledger, near: Ledger
) -> None:
    def other_first(method: str, _: str) -> Loss | None:
        if method == "PUT" and near.read(KEY) is None:
            assert claim(near, nonce="theirs") is not None
            return Loss.ANSWER
        return None

    proxy.rule = other_first
    assert claim(far, nonce="mine") is None
    assert [a.nonce for a in read(near).entry.attempts] == ["theirs"]


def test_a_step_whose_answer_is_lost_and_that_others_built_on_is_not_repeated_wrongly(
    proxy: S3Proxy, far: Ledger, near: Ledger
) -> None:
    """Ours was applied, unheard, and changed by another before we could look."""
    held = claimed(near)
    lost = [Loss.ANSWER]

    def rule(method: str, _: str) -> Loss | None:
        if method == "PUT" and lost:
            return lost.pop()
        if method == "GET" and proxy.count("GET") == 1:
            now = read(near)
            near.apply(now, lambda entry: entry.accept("n1", "7"))
        return None

    proxy.rule = rule
    result = far.apply(held, lambda entry: entry.accept("n1", "7"))
    attempt = result.entry.attempts[0]
    assert (attempt.outcome, attempt.provider_id) == (Outcome.ACCEPTED, "7")
    assert read(near).entry == result.entry


def test_a_step_lands_on_top_of_what_others_wrote(near: Ledger) -> None:
    held = claimed(near)
    doubted = near.apply(held, lambda entry: entry.doubt("n1", "the lease ran out"))
    again = near.claim(
        doubted, doubted.entry, run_id="other", nonce="n2", lease_seconds=60, rebuy=True
    )
    assert again is not None
    late = near.apply(held, lambda entry: entry.accept("n1", "7"))
    assert [a.outcome for a in late.entry.attempts] == [Outcome.ACCEPTED, Outcome.SUBMITTING]


def test_a_step_that_the_newer_entry_forbids_is_refused_and_recording_it_leaves_theirs(
    near: Ledger,
) -> None:
    held = claimed(near)
    near.apply(held, lambda entry: entry.refuse("n1", "blank"))
    with pytest.raises(ForbiddenTransition, match="is refused and cannot become accepted"):
        near.apply(held, lambda entry: entry.accept("n1", "7"))
    theirs = near.record(held, lambda entry: entry.accept("n1", "7"))
    assert theirs.entry.state is State.REFUSED


def test_a_step_on_an_entry_that_was_deleted_is_refused(near: Ledger, store: ObjectStore) -> None:
    held = claimed(near)
    store.delete(ledger_key(KEY))
    with pytest.raises(ForbiddenTransition, match="has left the ledger"):
        near.apply(held, lambda entry: entry.accept("n1", "7"))


def test_a_claim_expires_after_its_lease_and_not_before(near: Ledger) -> None:
    claimed(near, lease_seconds=5)
    held = near.expire(read(near))
    assert held.entry.state is State.SUBMITTING
    assert 0 < held.lease_left <= 5
    time.sleep(6.1)  # S3 tells its time in whole seconds
    doubted = near.expire(read(near))
    assert doubted.entry.state is State.IN_DOUBT
    assert doubted.entry.reason == "run run ended while it was sending"
    assert near.expire(doubted) == doubted


def test_a_lease_ends_for_its_owner_by_the_clock_that_says_more_and_for_others_by_the_other() -> (
    None
):
    entry = Entry.new(REQUEST, KEY, realm="emulator").claim(
        run_id="run", nonce="n1", lease_seconds=60
    )
    now = Instant.now()
    held = Held(entry, "etag", 10.0, Instant(boot=now.boot - 5, wall=now.wall - 20))
    assert held.lease_left == pytest.approx(30, abs=1)
    assert held.expires_in == pytest.approx(45, abs=1)
    unclaimed = Held(entry.not_sent("n1", "stopped"), "etag", 10.0, now)
    assert (unclaimed.lease_left, unclaimed.expires_in) == (0.0, 0.0)


def test_what_is_written_and_what_is_read_know_their_age(near: Ledger) -> None:
    before = Instant.now()
    written = claimed(near)
    assert written.age_seconds == 0
    assert before.boot <= written.read_at.boot <= Instant.now().boot
    time.sleep(1.1)  # S3 tells its time in whole seconds
    found = read(near)
    assert found.age_seconds >= 1
    assert found.entry.attempts[0].lease_seconds == 60


def test_expiry_goes_by_the_servers_clock_not_by_what_the_worker_wrote(near: Ledger) -> None:
    held = claimed(near)
    near.apply(
        held,
        lambda entry: entry.model_copy(
            update={
                "revision": new_nonce(),
                "attempts": (
                    entry.attempts[0].model_copy(update={"started": "1999-01-01T00:00:00+00:00"}),
                ),
            }
        ),
    )
    assert near.expire(read(near)).entry.state is State.SUBMITTING


@pytest.mark.parametrize(
    ("change", "state"),
    [
        (lambda entry: entry.renew("n1"), State.SUBMITTING),
        (lambda entry: entry.accept("n1", "7"), State.ACCEPTED),
    ],
)
def test_expiry_never_steals_from_one_who_shows_life_meanwhile(
    near: Ledger, change: Callable[[Entry], Entry], state: State
) -> None:
    held = claimed(near)
    stale = Held(held.entry, held.etag, 61.0, held.read_at)
    assert stale.lease_left < 0
    alive = near.apply(held, change)
    assert near.expire(stale).entry == alive.entry
    assert read(near).entry.state is state


def test_s3_that_stays_silent_is_reported_after_the_patience(
    proxy: S3Proxy, far: Ledger, near: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ObjectStore.get.retry, "stop", tenacity.stop_after_delay(0.1))
    hasty = Ledger(far._store, patience_seconds=0.5, paid_patience_seconds=0.5)
    held = claimed(near)
    proxy.go_down()
    with pytest.raises(StorageUnavailable, match="could not"):
        claim(hasty)
    with pytest.raises(StorageUnavailable, match="could not"):
        hasty.record(held, lambda entry: entry.accept("n1", "7"))
    with pytest.raises(StorageUnavailable, match="could not read"):
        far.read(KEY)
    proxy.come_back()
    assert far.apply(held, lambda entry: entry.accept("n1", "7")).entry.state is State.ACCEPTED


def test_a_step_waits_for_s3_to_come_back(proxy: S3Proxy, far: Ledger, near: Ledger) -> None:
    held = claimed(near)
    proxy.go_down()
    threading.Timer(1.0, proxy.come_back).start()
    far.record(held, lambda entry: entry.accept("n1", "7"))
    assert read(near).entry.state is State.ACCEPTED


def test_a_damaged_or_misplaced_entry_is_refused_with_where_it_lies(
    near: Ledger, store: ObjectStore
) -> None:
    store.put(ledger_key(KEY), b"{")
    with pytest.raises(StorageError, match=f"{PATH} is damaged"):
        near.read(KEY)
    with pytest.raises(StorageError, match=f"{PATH} is damaged"):
        claim(near)
    other = Entry.new(REQUEST, "f" * 64, realm="emulator")
    store.put(ledger_key(KEY), other.to_json())
    with pytest.raises(StorageError, match=f"{PATH} is the entry of ffff"):
        near.read(KEY)
