"""The attempt invariant, under every sequence of steps."""

import itertools
import json
import re
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanobanana_pipeline.errors import ForbiddenTransition, StorageError
from nanobanana_pipeline.ledger import (
    COSTING,
    MAX_FAILURES,
    Entry,
    Outcome,
    State,
    StoredImage,
)
from nanobanana_pipeline.provider.modelslab.request import ModelsLabRequest
from nanobanana_pipeline.request import request_key

REQUEST = ModelsLabRequest(prompt="a red panda", seed=1, samples=2)
KEY = request_key(REQUEST, realm="emulator")
WHERE = "s3://bucket/ledger/x.json"

MAYBE_PAID = {
    Outcome.SUBMITTING,
    Outcome.ACCEPTED,
    Outcome.IN_DOUBT,
    Outcome.LOST,
    Outcome.SETTLED,
}


def fresh() -> Entry:
    return Entry.new(REQUEST, KEY, realm="emulator")


def claimed(nonce: str = "n1", entry: Entry | None = None, *, rebuy: bool = False) -> Entry:
    before = entry or fresh()
    return before.claim(run_id="run", nonce=nonce, lease_seconds=60, rebuy=rebuy)


def image(sample: int, mark: str = "a") -> StoredImage:
    return StoredImage(
        sample=sample,
        sha256=mark * 64,
        size=9,
        format="png",
        width=1024,
        height=1024,
        key=f"images/{mark}",
    )


BOTH = (image(0), image(1))

STEPS = st.sampled_from(
    ["claim", "rebuy", "renew", "not_sent", "refuse", "doubt", "accept", "fail", "lose", "settle"]
)
IDS = st.none() | st.sampled_from(["7", "8"])
IMAGES = st.sampled_from([(), (image(0),), (image(1, "b"),), BOTH])


def step(
    entry: Entry, name: str, nonce: str, provider_id: str | None, images: Iterable[StoredImage]
) -> Entry:
    match name:
        case "claim" | "rebuy":
            return claimed(f"n{len(entry.attempts) + 1}", entry, rebuy=name == "rebuy")
        case "renew":
            return entry.renew(nonce)
        case "doubt":
            return entry.doubt(nonce, "why", provider_id)
        case "accept":
            return entry.accept(nonce, provider_id, ["https://x.test/0.png"] if provider_id else [])
        case "lose":
            return entry.lose(nonce, "why", images)
        case "settle":
            return entry.settle(nonce, images)
    change: Entry = getattr(entry, name)(nonce, "why")
    return change


@given(
    st.lists(st.tuples(STEPS, st.integers(1, 4), IDS, IMAGES), max_size=25),
)
def test_the_promises_hold_under_any_sequence_of_steps(
    steps: list[tuple[str, int, str | None, tuple[StoredImage, ...]]],
) -> None:
    entry = fresh()
    for name, attempt, provider_id, images in steps:
        before = entry
        try:
            entry = step(before, name, f"n{attempt}", provider_id, images)
        except ForbiddenTransition:
            continue
        outcomes = [a.outcome for a in before.attempts]
        if name == "claim":
            assert not MAYBE_PAID & set(outcomes)
            assert outcomes.count(Outcome.FAILED) < MAX_FAILURES
        if name == "rebuy":
            assert not {Outcome.SUBMITTING, Outcome.ACCEPTED, Outcome.SETTLED} & set(outcomes)
        assert entry.revision != before.revision
        assert Entry.from_json(entry.to_json(), WHERE) == entry
        kept = before.attempts
        if name in {"claim", "rebuy"}:
            kept = tuple(a for a in kept if a.outcome is not Outcome.NOT_SENT)
        assert entry.tries == before.tries + (name in {"claim", "rebuy"})
        for was, now in zip(kept, entry.attempts, strict=False):
            assert (was.nonce, was.run_id, was.started) == (now.nonce, now.run_id, now.started)
            if was.accepted:
                assert (now.provider_id, now.accepted) == (was.provider_id, was.accepted)
            assert now.provider_id or not was.provider_id
            assert now.output or not was.output
            assert was.nonce == f"n{attempt}" or was == now, "only one attempt changes in a step"
        if entry.state is State.SETTLED:
            assert {i.sample for i in entry.images} >= {0, 1}
        assert {i.sample for i in entry.images} >= {i.sample for i in before.images}
        if before.state is State.SETTLED:
            assert entry.state is State.SETTLED
            assert entry.images == before.images


def test_a_first_attempt_from_claim_to_settled() -> None:
    entry = claimed()
    assert entry.state is State.SUBMITTING
    entry = entry.accept("n1", "7", seed_reported=5)
    assert entry.state is State.ACCEPTED
    entry = entry.settle("n1", BOTH)
    assert entry.state is State.SETTLED
    assert (entry.images, entry.attempts[0].seed_reported) == (BOTH, 5)
    assert not entry.may_claim(rebuy=True)


@pytest.mark.parametrize("images", [(), (image(0),), (image(1),)])
def test_it_is_not_settled_before_all_samples_are_there(images: tuple[StoredImage, ...]) -> None:
    with pytest.raises(ForbiddenTransition, match="without samples"):
        claimed().accept("n1", "7").settle("n1", images)


def test_three_failures_are_enough() -> None:
    entry = fresh()
    for number in range(MAX_FAILURES):
        assert entry.may_claim()
        entry = claimed(f"n{number}", entry).fail(f"n{number}", "no luck")
    assert entry.state is State.FAILED
    with pytest.raises(ForbiddenTransition, match="is failed: not to be sent"):
        claimed("n9", entry)


def test_what_was_not_sent_leaves_the_request_open_with_the_reason() -> None:
    entry = claimed().not_sent("n1", "rate limit")
    assert (entry.state, entry.deciding, entry.reason) == (State.OPEN, None, "rate limit")
    assert entry.may_claim()


@pytest.mark.parametrize("last", ["fail", "refuse", "not_sent"])
def test_a_failed_rebuy_does_not_hide_the_doubt_before_it(last: str) -> None:
    entry = claimed().doubt("n1", "no answer")
    entry = getattr(claimed("n2", entry, rebuy=True), last)("n2", "nothing drawn")
    assert (entry.state, entry.reason) == (State.IN_DOUBT, "no answer")
    assert not entry.may_claim()
    assert entry.may_claim(rebuy=True)


def test_a_late_answer_changes_its_own_attempt_only_and_can_settle_the_request() -> None:
    entry = claimed("n2", claimed().doubt("n1", "no answer"), rebuy=True)
    entry = entry.accept("n1", "7")
    assert entry.state is State.SUBMITTING
    assert [a.outcome for a in entry.attempts] == [Outcome.ACCEPTED, Outcome.SUBMITTING]
    entry = entry.fail("n2", "nothing drawn")
    assert entry.state is State.ACCEPTED
    assert not entry.may_claim(rebuy=True)
    deciding = entry.deciding
    assert deciding is not None
    assert deciding.provider_id == "7"
    assert entry.settle("n1", BOTH).state is State.SETTLED


def test_of_two_that_were_bought_on_purpose_the_first_pictures_stay() -> None:
    entry = claimed("n2", claimed().doubt("n1", "no answer"), rebuy=True).accept("n2", "8")
    entry = entry.settle("n2", BOTH).accept("n1", "7")
    late = entry.settle("n1", (image(0, "b"), image(1, "b")))
    assert late.images == BOTH
    assert [a.provider_id for a in late.attempts] == ["7", "8"]


def test_doubting_again_keeps_the_first_reason_and_the_provider_id() -> None:
    entry = claimed().doubt("n1", "HTTP 500", "7").doubt("n1", "stopped before an answer came")
    assert (entry.attempts[0].provider_id, entry.reason) == ("7", "HTTP 500")


def test_an_accepted_id_is_never_replaced() -> None:
    entry = claimed().accept("n1", "7")
    assert entry.accept("n1", "7").attempts == entry.attempts
    with pytest.raises(ForbiddenTransition, match="was accepted as 7, not as 8"):
        entry.accept("n1", "8")


def test_lost_pictures_add_up_and_a_later_settling_replaces_them() -> None:
    entry = claimed().accept("n1", "7").lose("n1", "1 is broken", (image(0),))
    assert (entry.state, entry.images) == (State.LOST, (image(0),))
    entry = entry.lose("n1", "0 is broken", (image(1, "b"),))
    assert entry.images == (image(0), image(1, "b"))
    assert entry.settle("n1", BOTH).images == BOTH


RANKS = [
    {Outcome.REFUSED, Outcome.FAILED},
    {Outcome.LOST, Outcome.IN_DOUBT},
    {Outcome.ACCEPTED},
    {Outcome.SUBMITTING},
    {Outcome.SETTLED},
]
"""Which of two attempts decides; of those in one set the later."""


def test_of_two_attempts_the_one_that_may_have_bought_more_decides() -> None:
    rank = {outcome: number for number, equals in enumerate(RANKS) for outcome in equals}
    attempt = claimed().attempts[0]
    for pair in itertools.product(rank, rank):
        attempts = [attempt.model_copy(update={"outcome": outcome}) for outcome in pair]
        entry = fresh().model_copy(update={"attempts": tuple(attempts)})
        first, second = pair
        deciding = first if rank[first] > rank[second] else second
        assert entry.state is State(deciding), pair


def test_what_may_have_been_paid_for_counts_as_spent() -> None:
    assert COSTING == MAYBE_PAID


def test_what_a_person_gave_up_is_spent_and_neither_looked_for_nor_bought_again() -> None:
    doubted = claimed().doubt("n1", "no answer")
    lost = claimed().accept("n1", "7").lose("n1", "the picture is gone")
    for entry in (doubted, lost):
        assert not entry.is_abandoned
        assert entry.can_reconcile(3600)
        given_up = entry.abandon("n1", "given up")
        assert (given_up.state, given_up.reason) == (State.LOST, "given up")
        assert given_up.is_abandoned
        assert not given_up.can_reconcile(3600)
        assert not given_up.may_claim(rebuy=True)
        assert given_up.attempts[0].outcome in COSTING
    with pytest.raises(ForbiddenTransition, match="is accepted and cannot"):
        claimed().accept("n1", "7").abandon("n1", "given up")


def test_evidence_is_looked_for_in_doubts_and_while_the_provider_keeps_what_was_lost() -> None:
    assert not fresh().can_reconcile(3600)
    assert not claimed().can_reconcile(3600)
    assert claimed().doubt("n1", "no answer").can_reconcile(0)
    lost = claimed().accept("n1", "7").lose("n1", "gone")
    assert lost.can_reconcile(3600)
    assert not lost.can_reconcile(0)
    url = claimed().accept("n1", None, ["https://x.test/0.png"]).lose("n1", "gone")
    assert url.can_reconcile(3600)
    assert not claimed().accept("n1", None).lose("n1", "gone").can_reconcile(3600)


def test_a_rebuy_is_one_only_where_an_earlier_attempt_may_have_been_paid_for() -> None:
    assert not claimed(rebuy=True).attempts[0].rebuy
    doubted = claimed().doubt("n1", "no answer")
    assert claimed("n2", doubted, rebuy=True).attempts[1].rebuy


def test_an_unknown_attempt_is_refused() -> None:
    with pytest.raises(ForbiddenTransition, match="has no attempt n2"):
        claimed().accept("n2", "7")


def test_words_that_utf8_cannot_hold_are_kept_as_far_as_they_go() -> None:
    entry = claimed().accept("n1", "7\ud800", ["https://x.test/\udfff"])
    again = Entry.from_json(entry.to_json(), WHERE)
    assert again.attempts[0].provider_id == "7?"
    assert claimed().doubt("n1", "\ud800!").to_json()


def test_the_stored_json_says_schema_and_state() -> None:
    stored = json.loads(claimed().to_json())
    assert (stored["schema"], stored["state"]) == (1, "submitting")
    assert "schema_version" not in stored


def test_an_entry_of_a_newer_version_is_refused_whatever_else_is_in_it() -> None:
    stored = json.loads(claimed().to_json())
    stored["attempts"][0]["outcome"] = "parked"
    newer = json.dumps(stored | {"schema": 2}).encode()
    with pytest.raises(StorageError, match=f"{WHERE} has schema 2.*upgrade"):
        Entry.from_json(newer, WHERE)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (rb".*", b""),
        (rb".*", b"[]"),
        (rb".*", b"{}"),
        (rb"^", b"\xff"),
        (rb".{99}$", b""),
        (b'"submitting"', b'"gone"'),
        (b'"schema":1', b'"schema":"?"'),
        (b'"revision"', b'"revisions"'),
    ],
)
def test_a_damaged_entry_is_refused_with_where_it_lies(old: bytes, new: bytes) -> None:
    damaged = re.sub(old, new, claimed().to_json(), count=1)
    with pytest.raises(StorageError, match=f"{WHERE} is damaged"):
        Entry.from_json(damaged, WHERE)


def test_a_claim_drops_what_was_not_sent_and_counts_it() -> None:
    entry = fresh()
    for number in range(525):
        entry = claimed(f"n{number}", entry).not_sent(f"n{number}", "HTTP 429: slow down")
    assert (len(entry.attempts), entry.unsent, entry.tries) == (1, 524, 525)
    assert entry.reason == "HTTP 429: slow down"
    assert len(entry.to_json()) < 2_000
    again = Entry.from_json(entry.to_json(), WHERE)
    assert again == entry
    failed = claimed("paid", again).fail("paid", "no GPU")
    assert [a.outcome for a in failed.attempts] == [Outcome.FAILED]
    assert [a.nonce for a in claimed("last", failed).attempts] == ["paid", "last"]
    assert failed.tries == 526
    assert "unsent" not in json.loads(claimed().to_json())
