"""One try at buying a request, and what came of it; plain values."""

import uuid
from datetime import UTC, datetime
from enum import StrEnum

from pydantic import BaseModel, ConfigDict

__all__ = ["Attempt", "Outcome", "StoredImage", "new_nonce", "now_iso"]


class Outcome(StrEnum):
    """What became of one attempt; all but `NOT_SENT` are states of the entry too."""

    NOT_SENT = "not_sent"
    SUBMITTING = "submitting"
    ACCEPTED = "accepted"
    SETTLED = "settled"
    IN_DOUBT = "in_doubt"
    FAILED = "failed"
    REFUSED = "refused"
    LOST = "lost"


class StoredImage(BaseModel):
    """One picture in the bucket.

    Attributes:
        sample: which of the request's samples, from 0.
        sha256: of the bytes, 64 hexadecimal digits.
        size: bytes.
        format: ``png``, ``jpg`` or ``webp``, as the bytes themselves say.
        width, height: pixels.
        key: where it lies, below the prefix.
        marks: of provenance, as `images.ImageFacts` has them.
    """

    model_config = ConfigDict(frozen=True)

    sample: int
    sha256: str
    size: int
    format: str
    width: int
    height: int
    key: str
    marks: tuple[str, ...] = ()


class Attempt(BaseModel):
    """One try at buying a request.

    Attributes:
        nonce: its own, also the end of the `track_id` that was sent.
        run_id: which run made it.
        started: when, by the worker's own clock (UTC, ISO 8601); for people, not for leases.
        lease_seconds: a claim older than this by the S3 server's clock has lost its owner.
        outcome: what became of it.
        rebuy: it was made although an earlier attempt may have been paid for.
        provider_id: the provider's own id, once it is known.
        accepted: when the provider's id was learnt (UTC, ISO 8601): its 24 hours run from here.
        output: the output URLs, if the provider's answer named them already.
        seed_reported: the seed that the provider says it used; None if it said none.
        reason: the provider's or our own words for an outcome that is no picture.
        abandoned: somebody has given it up: nothing is looked for or bought for it any more.
    """

    model_config = ConfigDict(frozen=True)

    nonce: str
    run_id: str
    started: str
    lease_seconds: float
    outcome: Outcome = Outcome.SUBMITTING
    rebuy: bool = False
    provider_id: str | None = None
    accepted: str | None = None
    output: tuple[str, ...] = ()
    seed_reported: int | None = None
    reason: str | None = None
    abandoned: bool = False


def new_nonce() -> str:
    """16 hexadecimal digits that no other write will ever bear."""
    return uuid.uuid4().hex[:16]


def now_iso() -> str:
    """The worker's clock: UTC, ISO 8601, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
