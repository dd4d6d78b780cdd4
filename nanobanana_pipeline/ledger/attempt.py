"""`Attempt`: one try at buying a request, its `Outcome`, and the `StoredImage`s; plain values."""

import uuid
from datetime import UTC, datetime
from enum import StrEnum

from pydantic import BaseModel, ConfigDict

__all__ = ["Attempt", "Outcome", "StoredImage", "new_nonce", "now_iso"]


class Outcome(StrEnum):
    """How one attempt ended or stands; all but `NOT_SENT` are states of the entry too."""

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
        sha256, size: of the bytes: 64 hexadecimal digits, and their number.
        format: ``png``, ``jpg`` or ``webp``, as the bytes themselves say.
        width, height: pixels.
        key: of the object, below the prefix.
        marks: of provenance (`images.ImageFacts.marks`).
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
        nonce: its own; also in the `track_id` that was sent.
        run_id: of the run that made it.
        started: when, by the worker's own clock (UTC, ISO 8601); shown, but not used for leases.
        lease_seconds: a claim older than this by the S3 server's clock has expired.
        outcome: how it ended or stands.
        rebuy: it was made although an earlier attempt may have been paid for.
        provider_id: the provider's own id, once it is known.
        accepted: when the provider accepted it (UTC, ISO 8601); it keeps pictures for 24 hours.
        output: the output URLs, if the provider's first answer had them.
        seed_reported: the seed that the provider says it used; None if it said none.
        reason: why there is no picture, in the provider's words or ours.
        abandoned: a person gave it up: it is neither looked for nor bought again.
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

    def is_still_kept(self, kept_seconds: float) -> bool:
        """Whether it was accepted so short a while ago that the provider has its images still."""
        if self.accepted is None or not (self.provider_id or self.output):
            return False
        age = datetime.now(UTC) - datetime.fromisoformat(self.accepted)
        return age.total_seconds() < kept_seconds


def new_nonce() -> str:
    """A random id of 16 hexadecimal digits, unique to one write."""
    return uuid.uuid4().hex[:16]


def now_iso() -> str:
    """The worker's clock: UTC, ISO 8601, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
