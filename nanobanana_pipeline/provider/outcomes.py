"""What may come of a call to a provider: the closed set that engine and ledger know."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = [
    "Answered",
    "Done",
    "Failed",
    "FetchOutcome",
    "Halted",
    "Missing",
    "NotSent",
    "OperationOutcome",
    "Queued",
    "RateLimited",
    "Refused",
    "SubmitOutcome",
    "Unknown",
]


@dataclass(frozen=True)
class Done:
    """The pictures are ready. `output` holds at least one entry, in sample order.

    `prompt` is the one that the provider says it drew, if it says so.
    """

    provider_id: str | None
    output: tuple[str, ...]
    seed: int | None = None
    prompt: str | None = None


@dataclass(frozen=True)
class Queued:
    """The provider has the request and works on it."""

    provider_id: str | None
    seed: int | None = None


@dataclass(frozen=True)
class Refused:
    """This request breaks a rule; it was not bought and never will be as it is."""

    reason: str


@dataclass(frozen=True)
class Halted:
    """The account or the address is refused; it was not bought, nor would the next one be."""

    reason: str


@dataclass(frozen=True)
class RateLimited:
    """Too many requests at once; it was not bought. `retry_after` is in seconds."""

    retry_after: float | None
    reason: str


@dataclass(frozen=True)
class Failed:
    """The provider says that it drew nothing."""

    reason: str


@dataclass(frozen=True)
class Unknown:
    """Nobody can tell from this answer whether it was bought."""

    reason: str
    provider_id: str | None = None


@dataclass(frozen=True)
class NotSent:
    """The request never left this machine."""

    reason: str


@dataclass(frozen=True)
class Missing:
    """The provider does not know this id: a cleared queue, another account; perhaps paid for."""

    reason: str


@dataclass(frozen=True)
class Answered:
    """An operation on the server or the account was done; `fields` is the whole answer."""

    fields: Mapping[str, Any]


SubmitOutcome = Done | Queued | Refused | Halted | RateLimited | Failed | Unknown | NotSent
FetchOutcome = Done | Queued | Failed | Missing | Halted | RateLimited | Unknown
OperationOutcome = Answered | Failed | Unknown
