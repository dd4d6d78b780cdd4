"""`ThreadGroup`: threads that do one job while another waits for them; `StopEvents` stop them."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

__all__ = ["StopEvents", "ThreadGroup"]


@dataclass(frozen=True)
class StopEvents:
    """Stops the threads of one shard, in two steps.

    Attributes:
        stop: once set, nothing new is sent.
        give_up: once set, nothing is waited for; what was accepted stays so.
    """

    stop: threading.Event = field(default_factory=threading.Event)
    give_up: threading.Event = field(default_factory=threading.Event)


class ThreadGroup:
    """Daemon threads that all do the same job until it returns.

    Daemons, for a thread that waits for an answer must not keep a stopped process alive: what it
    waits for is in the ledger. They are counted here, and not joined: a `Thread.join` that an
    interrupt breaks takes a running thread for ended (CPython's answer to bpo-45274). What the job
    raises ends its thread.
    """

    def __init__(self, name: str, job: Callable[[], None]) -> None:
        self._name = name
        self._job = job
        self._running = 0
        self._changed = threading.Condition()

    def start(self, count: int) -> None:
        """Start so many threads."""
        for number in range(count):
            with self._changed:
                self._running += 1
            threading.Thread(target=self._run, name=f"{self._name}-{number}", daemon=True).start()

    def wait(self, seconds: float) -> bool:
        """Whether all threads have ended, at the latest after so many seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._running, max(0.0, seconds))

    def _run(self) -> None:
        try:
            self._job()
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()
