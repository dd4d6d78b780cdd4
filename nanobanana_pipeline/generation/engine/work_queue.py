"""`WorkQueue`: the requests that a shard has yet to buy, and the steps that the engine may take.

`PlannedRequest` is one request of a plan, `WorkItem` the same on its way through the engine. A
step on an item ends in a `Step`: its pictures can be downloaded, it goes back into the queue, or it
is finished.
"""

import heapq
import itertools
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from nanobanana_pipeline.generation.planning.run_files import PlannedRequest
from nanobanana_pipeline.ledger import Held, State
from nanobanana_pipeline.provider.outcomes import Done

__all__ = ["Downloadable", "Finished", "Requeue", "Step", "WorkItem", "WorkQueue"]


@dataclass(frozen=True)
class Downloadable:
    """The pictures of an accepted attempt can be downloaded."""

    held: Held
    nonce: str
    done: Done


@dataclass(frozen=True)
class Requeue:
    """Take the item again after so many seconds."""

    seconds: float


@dataclass(frozen=True)
class Finished:
    """Nothing more to do in this run.

    Attributes:
        state: the entry's; open if the request was never tried.
        reason: why it is not settled.
        over_budget: a cap forbids to buy it.
    """

    state: State
    reason: str | None = None
    over_budget: bool = False

    @classmethod
    def of(cls, held: Held) -> Self:
        """The request stays as its entry says."""
        return cls(held.entry.state, held.entry.reason)


Step = Downloadable | Requeue | Finished


@dataclass(eq=False)
class WorkItem:
    """A planned request on its way through the engine.

    Attributes:
        held: its ledger entry as last read or written; None before the first look.
        unsent: connections in a row that failed before it was sent.
        reconciled: evidence of earlier attempts was looked for in this run.
    """

    planned: PlannedRequest
    held: Held | None = None
    unsent: int = 0
    reconciled: bool = False

    @property
    def state(self) -> State:
        """The state of its entry as last seen."""
        return self.held.entry.state if self.held else State.OPEN


class WorkQueue:
    """A queue in which an item can be put back for later. Safe to share between threads.

    The items, `count` of them, are taken one by one, and not kept once they are finished.
    """

    def __init__(self, items: Iterable[WorkItem], count: int) -> None:
        self._fresh = iter(items)
        self._order = itertools.count()
        self._changed = threading.Condition()
        self._due: list[tuple[float, int, WorkItem]] = []
        self._unfinished = count

    def take(self, stop: threading.Event) -> WorkItem | None:
        """The next item that is due; None when all are finished or `stop` is set."""
        with self._changed:
            while self._unfinished and not stop.is_set():
                if (fresh := next(self._fresh, None)) is not None:
                    return fresh
                wait = self._due[0][0] - time.monotonic() if self._due else 1.0
                if self._due and wait <= 0:
                    return heapq.heappop(self._due)[2]
                self._changed.wait(min(wait, 0.5))
            return None

    def put_back(self, item: WorkItem, delay_seconds: float = 0.0) -> None:
        """Make a taken item due again later."""
        with self._changed:
            due = time.monotonic() + delay_seconds if delay_seconds else 0.0
            heapq.heappush(self._due, (due, next(self._order), item))
            self._changed.notify()

    def finish(self) -> None:
        """Count a taken item as bought or given up."""
        with self._changed:
            self._unfinished -= 1
            if not self._unfinished:
                self._changed.notify_all()
