"""How many requests may be at the provider at once: slots that adapt to its answers.

Additive increase, multiplicative decrease, as TCP flows share a link: several steps, runs and
machines on one account find the provider's cap without talking to each other.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

__all__ = ["Slots"]

FIRST: Final = 4
LEAST_DECREASE: Final = 0.2
MOST_DECREASE: Final = 0.4
DECREASE_A_SLOT: Final = 0.03
SHORTEST_PROBE_SECONDS: Final = 8.0
LONGEST_PROBE_SECONDS: Final = 120.0
"""Right below a limit that answered 429, the next try for more waits as many seconds as the square
of the limit, within these bounds: whoever holds few slots asks sooner, and gives up less of them.
So shares become alike without more 429s (`benchmarks/sharing.py`). Each further try waits half as
long as the one before: a cap that was lifted or left by another worker is soon found.
"""
POLL_SECONDS: Final = 0.25
RECENT: Final = 100
"""Requests whose times tell what is usual."""
LEAST_RECENT: Final = 20


class Slots:
    """A semaphore whose size follows the provider. Safe to share between threads.

    Args:
        most: never more than this many at once.
        clock: seconds; replaced in tests.
    """

    def __init__(self, most: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.most = most
        self._clock = clock
        self._changed = threading.Condition()
        self._limit = float(min(FIRST, most))
        self._ceiling = float(most)
        self._in_use = 0
        self._slow_start = True
        self._closed_until = 0.0
        self._latency = 1.0
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._last_decrease = float("-inf")
        self._last_probe = float("-inf")
        self._probe_seconds = LONGEST_PROBE_SECONDS
        self.rate_limited = 0

    @property
    def limit(self) -> int:
        """How many are allowed at once now."""
        return int(self._limit)

    @property
    def latency(self) -> float:
        """Seconds that a request takes, as a moving mean."""
        return self._latency

    @property
    def usual(self) -> tuple[float, float] | None:
        """Seconds within which nine of ten recent requests were done; None before some were."""
        with self._changed:
            recent = sorted(self._recent)
        if len(recent) < LEAST_RECENT:
            return None
        aside = len(recent) // 20
        return recent[aside], recent[-1 - aside]

    @property
    def in_use(self) -> int:
        """How many are held now."""
        return self._in_use

    def acquire(self, stop: threading.Event) -> bool:
        """Wait for a slot; False if `stop` was set before there was one."""
        with self._changed:
            while not stop.is_set():
                wait = self._closed_until - self._clock()
                if wait <= 0 and self._in_use < self.limit:
                    self._in_use += 1
                    return True
                self._changed.wait(min(wait, POLL_SECONDS) if wait > 0 else POLL_SECONDS)
            return False

    def release(self) -> None:
        """Give a slot back."""
        with self._changed:
            self._in_use -= 1
            self._changed.notify()

    def served(self, seconds: float) -> None:
        """The provider took `seconds` for a request: ask for a little more."""
        with self._changed:
            self._latency += 0.1 * (seconds - self._latency)
            self._recent.append(seconds)
            if self._slow_start:
                self._limit += 1
            elif self._limit + 1 <= self._ceiling:
                self._limit += 1 / self._limit
            elif self._clock() - self._last_probe > self._probe_seconds:
                self._ceiling += 1
                self._last_probe = self._clock()
                self._probe_seconds = max(self._latency, self._probe_seconds / 2)
            self._limit = min(self._limit, self.most)
            self._changed.notify()

    def refused(self, retry_after: float | None) -> None:
        """The provider answered 429: send nothing for `retry_after` seconds, and less then."""
        with self._changed:
            now = self._clock()
            self.rate_limited += 1
            self._closed_until = max(self._closed_until, now + (retry_after or 1.0))
            if now - self._last_decrease >= self._latency:
                # What was in use beside the refused one is what the provider did take.
                taken = max(1.0, min(self._limit, float(self._in_use - 1)))
                self._ceiling = min(float(self.most), taken + 1)
                decrease = _within(DECREASE_A_SLOT * taken, LEAST_DECREASE, MOST_DECREASE)
                self._limit = max(1.0, taken * (1 - decrease))
                self._last_decrease = self._last_probe = now
                self._probe_seconds = _within(
                    self._limit**2, SHORTEST_PROBE_SECONDS, LONGEST_PROBE_SECONDS
                )
            self._slow_start = False


def _within(value: float, least: float, most: float) -> float:
    return min(most, max(least, value))
