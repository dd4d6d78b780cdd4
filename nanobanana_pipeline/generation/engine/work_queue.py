"""What the engine still has to do, and what may come of a step."""

import heapq
import itertools
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass

from nanobanana_pipeline.ledger import Held, State
from nanobanana_pipeline.provider.outcomes import Done, Failed, Missing
from nanobanana_pipeline.request import ImageRequest

__all__ = [
    "Bought",
    "Ended",
    "Later",
    "PlannedRequest",
    "Ready",
    "Step",
    "Work",
    "WorkQueue",
    "ended",
]


@dataclass(frozen=True)
class Bought:
    """The pictures of an accepted attempt are ready."""

    held: Held
    nonce: str
    done: Done


@dataclass(frozen=True)
class Later:
    """Look again in so many seconds."""

    seconds: float


@dataclass(frozen=True)
class Ended:
    """Nothing more to do in this run.

    Attributes:
        state: the entry's; open if it was never tried.
        reason: why it is not settled.
        over_budget: it would have been bought, and a cap forbids it.
    """

    state: State
    reason: str | None = None
    over_budget: bool = False


@dataclass(frozen=True)
class Ready:
    """The provider has come to an end with a request."""

    outcome: Done | Failed | Missing


Step = Bought | Later | Ended


def ended(held: Held) -> Ended:
    """The end of a request that stands where its entry says."""
    return Ended(held.entry.state, held.entry.reason)


@dataclass(frozen=True)
class PlannedRequest:
    """A request that a launch wants settled, under its key.

    Attributes:
        buy: it was open when the launch was planned; else it has an entry, to be brought to its
            end.
    """

    request_key: str
    request: ImageRequest
    buy: bool = True


@dataclass(eq=False)
class Work:
    """A planned request on its way through the engine.

    Attributes:
        held: its ledger entry as last seen; None until it was looked at.
        unsent: how often in a row it could not even be sent.
        looked: evidence was looked for in this run.
    """

    planned: PlannedRequest
    held: Held | None = None
    unsent: int = 0
    looked: bool = False

    @property
    def state(self) -> State:
        """Where the request stands, as far as is known."""
        return self.held.entry.state if self.held else State.OPEN


class WorkQueue:
    """A queue in which an item can be put back for later. Safe to share between threads.

    Args:
        items: taken one by one, and not kept once they are finished.
        count: how many these are.
    """

    def __init__(self, items: Iterable[Work], count: int) -> None:
        self._fresh = iter(items)
        self._order = itertools.count()
        self._changed = threading.Condition()
        self._due: list[tuple[float, int, Work]] = []
        self._open = count

    def take(self, stop: threading.Event) -> Work | None:
        """The next item that is due; None when all are finished or `stop` is set."""
        with self._changed:
            while self._open and not stop.is_set():
                if (fresh := next(self._fresh, None)) is not None:
                    return fresh
                wait = self._due[0][0] - time.monotonic() if self._due else 1.0
                if self._due and wait <= 0:
                    return heapq.heappop(self._due)[2]
                self._changed.wait(min(wait, 0.5))
            return None

    def put_back(self, item: Work, delay_seconds: float = 0.0) -> None:
        """Look at a taken item again later."""
        with self._changed:
            due = time.monotonic() + delay_seconds if delay_seconds else 0.0
            heapq.heappush(self._due, (due, next(self._order), item))
            self._changed.notify()

    def finish(self) -> None:
        """A taken item needs no more buying."""
        with self._changed:
            self._open -= 1
            if not self._open:
                self._changed.notify_all()
