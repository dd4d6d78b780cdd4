"""Threads that run one at a time, on a clock of their own; who goes on is the caller's choice.

An actor is a thread that stops wherever it waits for the world: a call to S3 or the provider, a
sleep, an event. There the scheduler has control, and nothing else moves.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Self

__all__ = [
    "EPOCH",
    "Actor",
    "Crashed",
    "Pause",
    "Scheduler",
    "SimCondition",
    "SimEvent",
    "SimLock",
    "SimTime",
]

EPOCH: Final = datetime(2026, 1, 1, tzinfo=UTC)
REAL_PATIENCE_SECONDS: Final = 60.0


class Crashed(BaseException):
    """Ends a thread as `kill -9` ends a process: it is raised at every point from then on."""


@dataclass
class Pause:
    """Where an actor stands.

    Attributes:
        what: in words, for the story of a failure.
        outcomes: what may come of it; the first is what a sound world does.
        wake: not to be run before this moment.
        deadline: not to be run after it: what DESIGN.md promises nothing about lies beyond.
        event: wakes it earlier.
    """

    what: str
    outcomes: tuple[str, ...] = ("ok",)
    wake: float = 0.0
    deadline: float = float("inf")
    event: threading.Event | None = None


@dataclass(eq=False)
class Actor:
    """One thread of one machine.

    Attributes:
        boot, wall: what its machine's two clocks add to the true time, in seconds.
    """

    name: str
    job: Callable[[], None]
    boot: float = 0.0
    wall: float = 0.0
    pause: Pause = field(default_factory=lambda: Pause("start"))
    outcome: str = "ok"
    crashed: bool = False
    ended: bool = False
    thread: threading.Thread | None = None
    turn: Any = field(default_factory=threading.Lock)


class Scheduler:
    """Runs actors one at a time. `now` is the true time in seconds since `EPOCH`."""

    def __init__(self) -> None:
        self.now = 0.0
        self.actors: list[Actor] = []
        self.current: Actor | None = None
        self.fault: BaseException | None = None
        self.story: list[str] = []
        self._turn = threading.Lock()
        self._turn.acquire()

    def start(
        self, name: str, job: Callable[[], None], *, boot: float = 0.0, wall: float = 0.0
    ) -> Actor:
        """A new actor, which has not taken its first step.

        Raises:
            Crashed: who starts it is dead.
        """
        if self.current is not None and self.current.crashed:
            raise Crashed
        actor = Actor(name, job, boot, wall)
        actor.turn.acquire()
        actor.thread = threading.Thread(target=self._live, args=(actor,), name=name, daemon=True)
        self.actors.append(actor)
        actor.thread.start()
        return actor

    def is_ready(self, actor: Actor) -> bool:
        pause = actor.pause
        return pause.wake <= self.now or (pause.event is not None and pause.event.is_set())

    def run(self, actor: Actor, outcome: str = "ok") -> None:
        """Let an actor go on to its next pause or its end.

        Raises:
            BaseException: what it found wrong.
        """
        self.tell(f"{actor.name}: {actor.pause.what}: {outcome}")
        self._hand_over(actor, outcome)
        if self.fault is not None:
            raise self.fault

    def crash(self, actor: Actor, outcome: str | None = None) -> None:
        """End an actor for good.

        Args:
            actor: who dies.
            outcome: what still comes of the call that it has just made; None for nothing.
        """
        self.tell(f"{actor.name}: dies at {actor.pause.what} ({outcome or 'nothing done'})")
        actor.crashed = True
        self._hand_over(actor, outcome or "crash")
        if self.fault is not None:
            raise self.fault

    def end(self) -> None:
        """End every thread; for the end of a test, whatever came of it."""
        for actor in list(self.actors):
            actor.crashed = True
            self._hand_over(actor, "crash")

    def pause(
        self,
        what: str,
        outcomes: tuple[str, ...] = ("ok",),
        *,
        seconds: float = 0.0,
        within: float = float("inf"),
        event: threading.Event | None = None,
    ) -> str:
        """Stop the calling actor here; gives which of the outcomes is chosen.

        Whoever looks on from outside the simulation is not stopped.

        Raises:
            Crashed: it goes no further.
        """
        actor = self.current
        if actor is None:
            return outcomes[0]
        if not actor.crashed:
            actor.pause = Pause(what, outcomes, self.now + seconds, self.now + within, event)
            self._turn.release()
            actor.turn.acquire()
            if actor.outcome != "crash":
                return actor.outcome
        raise Crashed

    def boot_clock(self) -> float:
        """The caller's machine's clock since it started."""
        return self.now + (self.current.boot if self.current else 0.0)

    def wall_clock(self) -> datetime:
        """The caller's machine's clock."""
        return EPOCH + timedelta(seconds=self.now + (self.current.wall if self.current else 0.0))

    def tell(self, text: str) -> None:
        """Add a line to the story."""
        self.story.append(f"{self.now:10.1f} {text}")

    def _hand_over(self, actor: Actor, outcome: str) -> None:
        self.current = actor
        actor.outcome = outcome
        actor.turn.release()
        if not self._turn.acquire(timeout=REAL_PATIENCE_SECONDS):
            raise RuntimeError(f"{actor.name} hangs in something real after {actor.pause.what}")
        self.current = None
        if actor.ended:
            self.actors.remove(actor)
            if actor.thread is not None:
                actor.thread.join()

    def _live(self, actor: Actor) -> None:
        actor.turn.acquire()
        try:
            if not actor.crashed:
                actor.job()
        except Crashed:
            pass
        except BaseException as error:  # noqa: BLE001 - raised again in the test's own thread
            self.fault = self.fault or error
        actor.ended = True
        self._turn.release()


class SimEvent(threading.Event):
    """An event that is waited for on the scheduler's clock."""

    def __init__(self, scheduler: Scheduler) -> None:
        super().__init__()
        self._scheduler = scheduler

    def wait(self, timeout: float | None = None) -> bool:
        if not self.is_set():
            seconds = float("inf") if timeout is None else timeout
            self._scheduler.pause(f"wait {seconds:.1f} s", seconds=seconds, event=self)
        return self.is_set()


class SimCondition:
    """A condition whose waiters look again when their time is over, as all here may."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def wait(self, timeout: float) -> None:
        self._scheduler.pause("wait for a slot", seconds=timeout)

    def notify(self) -> None:
        pass


class SimLock:
    """A lock that is waited for on the scheduler's clock."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._free = SimEvent(scheduler)
        self._free.set()

    def __enter__(self) -> Self:
        while not self._free.is_set():
            self._free.wait()
        self._free.clear()
        return self

    def __exit__(self, *_: object) -> None:
        self._free.set()


class SimTime:
    """The module `time`, as far as the product and tenacity use it."""

    CLOCK_MONOTONIC = time.CLOCK_MONOTONIC

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler

    def monotonic(self) -> float:
        return self._scheduler.boot_clock()

    def time(self) -> float:
        return self._scheduler.wall_clock().timestamp()

    def clock_gettime(self, _: int) -> float:
        return self._scheduler.boot_clock()

    def sleep(self, seconds: float) -> None:
        self._scheduler.pause(f"sleep {seconds:.1f} s", seconds=seconds)
