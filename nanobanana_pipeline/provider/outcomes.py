"""What may come of a call to a provider: the closed set that engine and ledger know."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = [
    "Answered",
    "Done",
    "Echo",
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
class Echo:
    """What an answer says of the request that it answers. A field that it does not name is empty.

    Attributes:
        ids: every id that the answer names, as text.
        track_id: the mark that we gave the attempt.
        prompt: the prompt that the provider says it draws, to the letter.
        seed: the seed that the provider says it draws with.
    """

    ids: tuple[str, ...] = ()
    track_id: str | None = None
    prompt: str | None = None
    seed: int | None = None


@dataclass(frozen=True)
class Done:
    """The pictures are ready.

    Attributes:
        provider_id: the id to fetch by, if the answer names one.
        output: where the pictures are, in sample order; at least one entry.
        echo: what the answer says of its request.
    """

    provider_id: str | None
    output: tuple[str, ...]
    echo: Echo = Echo()


@dataclass(frozen=True)
class Queued:
    """The provider has the request and works on it.

    Attributes:
        provider_id: the id to fetch by; None only in the answer to a fetch.
        echo: what the answer says of its request.
    """

    provider_id: str | None
    echo: Echo = Echo()


@dataclass(frozen=True)
class Refused:
    """This request breaks a rule; it was not bought and never will be as it is."""

    reason: str


@dataclass(frozen=True)
class Halted:
    """The account or the address is refused; the request was not bought.

    Attributes:
        reason: the provider's words.
        is_sure: whether the provider says so of the account itself, so that the next request would
            be refused too. If not, the answer may be about this one request: a firewall's page, or
            words in a place where any text may stand. A different request that gets the same
            answer settles it.
    """

    reason: str
    is_sure: bool = True


@dataclass(frozen=True)
class RateLimited:
    """Too many requests at once; it was not bought. `retry_after` is in seconds."""

    retry_after: float | None
    reason: str


@dataclass(frozen=True)
class Failed:
    """The provider says that it drew nothing.

    Attributes:
        reason: the provider's words.
        is_own: whether the provider failed by itself (overload, a GPU, "try again later"), and the
            answer blames nothing in the request.
        echo: what the answer says of its request.
    """

    reason: str
    is_own: bool = False
    echo: Echo = Echo()


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
