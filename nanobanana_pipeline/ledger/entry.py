"""`Entry`, one request's ledger entry, and the steps that it may take; pure values, no S3.

An attempt's outcome::

    open ──claim──▶ submitting ──▶ accepted ──▶ settled
      ▲                 │ │ │          │ └──▶ lost
      └── not sent ─────┘ │ └▶ refused └────▶ failed
                          └──▶ in_doubt

There are several attempts after failures, or where a re-buy was chosen; the one whose outcome has
the greatest weight decides the entry's state. Invariant: while one attempt is submitting, accepted,
in doubt, lost or settled there is no new one, unless a re-buy was chosen.
"""

from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated, Any, Final, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, computed_field

from nanobanana_pipeline.errors import ForbiddenTransition
from nanobanana_pipeline.ledger.attempt import Attempt, Outcome, StoredImage, new_nonce, now_iso
from nanobanana_pipeline.request import ImageRequest
from nanobanana_pipeline.storage.cas import parse_json

__all__ = ["COSTING", "MAX_FAILURES", "SCHEMA", "UNSURE", "Entry", "State"]

SCHEMA: Final = 1
MAX_FAILURES: Final = 3
"""Attempts that may fail at the provider before a request is not sent again."""


class State(StrEnum):
    """Where a request stands."""

    OPEN = "open"
    SUBMITTING = "submitting"
    ACCEPTED = "accepted"
    SETTLED = "settled"
    IN_DOUBT = "in_doubt"
    FAILED = "failed"
    REFUSED = "refused"
    LOST = "lost"


UNSURE: Final = frozenset({State.IN_DOUBT, State.LOST})
"""Not bought again until evidence or a person settles them."""
COSTING: Final = frozenset(Outcome) - {Outcome.NOT_SENT, Outcome.REFUSED, Outcome.FAILED}
"""Outcomes of attempts that count as spent: the provider may have charged them."""

_UNANSWERED: Final = {Outcome.SUBMITTING, Outcome.IN_DOUBT}
_WEIGHT: Final = {
    Outcome.SETTLED: 5,
    Outcome.SUBMITTING: 4,
    Outcome.ACCEPTED: 3,
    Outcome.IN_DOUBT: 2,
    Outcome.LOST: 2,
    Outcome.FAILED: 1,
    Outcome.REFUSED: 1,
}
"""Of several attempts the one of greatest weight decides the state; of equals the last."""


def _check_request(request: dict[str, Any]) -> dict[str, Any]:
    """Refuse what is no request of any provider; its own rules may change, and entries stay."""
    if not isinstance(request.get("prompt"), str) or not isinstance(request.get("samples"), int):
        raise ValueError("its request has no prompt or no samples")  # noqa: TRY004 - pydantic's way
    return request


class Entry(BaseModel):
    """All that is known of one request. Frozen: each step gives a new entry with a new revision.

    `request` has the fields of the provider's own model, as they were when it was first tried.
    `unsent` counts attempts that surely bought nothing and were dropped by a later claim, so that
    rate limits do not grow the entry; None where there are none. Version 0.1.0 ignores the field,
    and writes entries without it: then only the count is lost.
    """

    model_config = ConfigDict(frozen=True)

    schema_version: int = Field(SCHEMA, alias="schema")
    request_key: str
    realm: str
    endpoint: str
    variant: str
    request: Annotated[dict[str, Any], AfterValidator(_check_request)]
    revision: str
    attempts: tuple[Attempt, ...] = ()
    images: tuple[StoredImage, ...] = ()
    unsent: int | None = None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def state(self) -> State:
        """Where the request stands, as its deciding attempt says."""
        deciding = self.deciding
        return State(deciding.outcome) if deciding else State.OPEN

    @property
    def prompt(self) -> str:
        """The request's prompt."""
        return str(self.request["prompt"])

    @property
    def samples(self) -> int:
        """How many pictures the request asks for."""
        return int(self.request["samples"])

    @property
    def ref_sha256(self) -> tuple[str, ...]:
        """Hashes of the request's reference pictures."""
        return tuple(self.request.get("ref_sha256", ()))

    @classmethod
    def new(cls, request: ImageRequest, request_key: str, *, realm: str, variant: str = "") -> Self:
        """An entry without attempts."""
        return cls(
            request_key=request_key,
            realm=realm,
            endpoint=request.endpoint,
            variant=variant,
            request=request.model_dump(mode="json", exclude_none=True),
            revision=new_nonce(),
        )

    @classmethod
    def from_json(cls, body: bytes, where: str) -> Self:
        """Read an entry back.

        Raises:
            StorageError: it is damaged, or was written by a newer version.
        """
        return parse_json(body, where, cls.model_validate_json, SCHEMA)

    def to_json(self) -> bytes:
        """The bytes that are stored."""
        return self.model_dump_json(exclude_none=True, by_alias=True).encode()

    @property
    def deciding(self) -> Attempt | None:
        """The attempt that the state follows from; None while none was sent."""
        sent = [a for a in reversed(self.attempts) if a.outcome is not Outcome.NOT_SENT]
        return max(sent, key=lambda attempt: _WEIGHT[attempt.outcome], default=None)

    @property
    def is_abandoned(self) -> bool:
        """Whether a person has given the request up."""
        return self.deciding is not None and self.deciding.abandoned

    @property
    def reason(self) -> str | None:
        """Why the request is in its state."""
        attempt = self.deciding or (self.attempts[-1] if self.attempts else None)
        return attempt.reason if attempt else None

    def attempt(self, nonce: str) -> Attempt:
        """One of the attempts.

        Raises:
            ForbiddenTransition: there is none with this nonce.
        """
        for attempt in self.attempts:
            if attempt.nonce == nonce:
                return attempt
        raise ForbiddenTransition(f"request {self.request_key} has no attempt {nonce}")

    @property
    def tries(self) -> int:
        """How many attempts there were, dropped ones among them."""
        return len(self.attempts) + (self.unsent or 0)

    @property
    def failures(self) -> int:
        """How many attempts the provider has failed."""
        return sum(a.outcome is Outcome.FAILED for a in self.attempts)

    def can_reconcile(self, kept_seconds: float) -> bool:
        """Whether evidence may turn up: it is in doubt, or was lost while images are kept."""
        attempt = self.deciding
        if attempt is None or self.state not in UNSURE or attempt.abandoned:
            return False
        return attempt.outcome is Outcome.IN_DOUBT or attempt.is_still_kept(kept_seconds)

    def may_claim(self, *, rebuy: bool = False) -> bool:
        """Whether a new attempt is allowed now."""
        if self.state is State.OPEN:
            return True
        if self.state is State.FAILED:
            return self.failures < MAX_FAILURES
        return rebuy and self.state in UNSURE and not self.is_abandoned

    def claim(
        self, *, run_id: str, nonce: str, lease_seconds: float, rebuy: bool = False
    ) -> "Entry":
        """Begin an attempt. Earlier ones that were not sent are dropped, and counted.

        Raises:
            ForbiddenTransition: the invariant forbids one now.
        """
        if not self.may_claim(rebuy=rebuy):
            raise ForbiddenTransition(f"request {self.request_key} is {self.state}: not to be sent")
        attempt = Attempt(
            nonce=nonce,
            run_id=run_id,
            started=now_iso(),
            lease_seconds=lease_seconds,
            rebuy=rebuy and self.state in UNSURE,
        )
        kept = tuple(a for a in self.attempts if a.outcome is not Outcome.NOT_SENT)
        unsent = self.tries - len(kept)
        return self._changed(attempts=(*kept, attempt), unsent=unsent or None)

    def renew(self, nonce: str) -> "Entry":
        """Start an attempt's lease anew.

        Raises:
            ForbiddenTransition: the attempt is not submitting any more.
        """
        return self._step(nonce, {Outcome.SUBMITTING}, Outcome.SUBMITTING)

    def not_sent(self, nonce: str, reason: str) -> "Entry":
        """The attempt surely bought nothing: the request is as open as before it."""
        return self._step(nonce, _UNANSWERED, Outcome.NOT_SENT, reason=reason)

    def refuse(self, nonce: str, reason: str) -> "Entry":
        """The provider will not draw this request."""
        return self._step(nonce, _UNANSWERED, Outcome.REFUSED, reason=reason)

    def doubt(self, nonce: str, reason: str, provider_id: str | None = None) -> "Entry":
        """It is unknown whether the attempt was bought; the first reason for the doubt stays."""
        first = self.attempt(nonce).reason or reason
        sent = {Outcome.SUBMITTING}
        return self._step(nonce, sent, Outcome.IN_DOUBT, reason=first, provider_id=provider_id)

    def accept(
        self,
        nonce: str,
        provider_id: str | None,
        output: Iterable[str] = (),
        seed_reported: int | None = None,
    ) -> "Entry":
        """The provider has accepted the request; a late answer settles an earlier doubt."""
        attempt = self.attempt(nonce)
        if attempt.accepted and attempt.provider_id != provider_id:
            raise ForbiddenTransition(
                f"request {self.request_key}: attempt {nonce} was accepted as "
                f"{attempt.provider_id}, not as {provider_id}"
            )
        return self._step(
            nonce,
            _UNANSWERED,
            Outcome.ACCEPTED,
            provider_id=provider_id,
            accepted=attempt.accepted or now_iso(),
            output=tuple(output),
            seed_reported=seed_reported,
            reason=None,
        )

    def fail(self, nonce: str, reason: str) -> "Entry":
        """The provider says that it drew nothing."""
        return self._step(nonce, {*_UNANSWERED, Outcome.ACCEPTED}, Outcome.FAILED, reason=reason)

    def lose(self, nonce: str, reason: str, images: Iterable[StoredImage] = ()) -> "Entry":
        """Paid for, and not all of its pictures can be had; those that were stored are kept."""
        kept = {image.sample: image for image in (*images, *self.images)}
        stored = tuple(kept[sample] for sample in sorted(kept))
        return self._step(nonce, {Outcome.ACCEPTED}, Outcome.LOST, images=stored, reason=reason)

    def abandon(self, nonce: str, reason: str) -> "Entry":
        """A person gives a doubt or a loss up: it counts as paid for, and as no gap."""
        unsure = {Outcome.IN_DOUBT, Outcome.LOST}
        return self._step(nonce, unsure, Outcome.LOST, reason=reason, abandoned=True)

    def settle(
        self, nonce: str, images: Iterable[StoredImage], seed_reported: int | None = None
    ) -> "Entry":
        """All pictures of the attempt are stored.

        Raises:
            ForbiddenTransition: they are not all, or it was never accepted.
        """
        images = tuple(images)
        missing = set(range(self.samples)) - {image.sample for image in images}
        if missing:
            raise ForbiddenTransition(
                f"request {self.request_key} cannot be settled without samples {sorted(missing)}"
            )
        return self._step(
            nonce,
            {Outcome.ACCEPTED, Outcome.LOST},
            Outcome.SETTLED,
            images=images,
            seed_reported=seed_reported,
            reason=None,
        )

    def _step(
        self,
        nonce: str,
        allowed: set[Outcome],
        outcome: Outcome,
        *,
        images: tuple[StoredImage, ...] | None = None,
        **changes: Any,  # noqa: ANN401 - fields of an attempt
    ) -> "Entry":
        """Change one attempt. Only its reason is replaced by an empty value."""
        attempt = self.attempt(nonce)
        if attempt.outcome not in allowed | {outcome}:
            raise ForbiddenTransition(
                f"request {self.request_key}: attempt {nonce} is {attempt.outcome} and cannot "
                f"become {outcome}"
            )
        given = {
            name: _encodable(value)
            for name, value in changes.items()
            if name == "reason" or value not in (None, ())
        }
        changed = attempt.model_copy(update={"outcome": outcome, **given})
        # Where two attempts were bought on purpose, the first pictures stay the request's own.
        if images is None or self.state is State.SETTLED:
            images = self.images
        return self._changed(
            attempts=tuple(changed if a.nonce == nonce else a for a in self.attempts), images=images
        )

    def _changed(self, **changes: Any) -> "Entry":  # noqa: ANN401
        return self.model_copy(update={**changes, "revision": new_nonce()})


def _encodable(value: Any) -> Any:  # noqa: ANN401 - fields of an attempt
    """A value from outside without lone surrogates: JSON may have them, UTF-8 cannot."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, tuple):
        return tuple(_encodable(item) for item in value)
    return value
