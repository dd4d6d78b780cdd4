"""Counts the generations under way, which is what the provider caps."""

import heapq
from collections.abc import Iterable


class Occupancy:
    """The provider's queue: a generation is in it from its purchase until it is ready.

    All times are the emulator's clock, in Unix seconds.
    """

    def __init__(self, cap: int) -> None:
        self.cap = cap
        self.most = 0
        self._ready_times: list[float] = []
        self._total_seconds = 0.0  # summed over all generations, whole, also those under way
        self._first_entry: float | None = None
        self._last_exit = 0.0

    def restore(self, now: float, ready_times: Iterable[float]) -> None:
        """Take back what was under way before a restart."""
        for ready_at in ready_times:
            self.enter(now, ready_at)

    def has_room(self, now: float) -> bool:
        """Tell whether one more generation is within the cap."""
        return self.count(now) < self.cap

    def enter(self, now: float, ready_at: float) -> None:
        """Begin a generation that will be ready at `ready_at`."""
        heapq.heappush(self._ready_times, ready_at)
        self._total_seconds += ready_at - now
        self._last_exit = max(self._last_exit, ready_at)
        if self._first_entry is None:
            self._first_entry = now
        self.most = max(self.most, self.count(now))

    def clear(self, now: float) -> None:
        """End at once all that is under way."""
        self.count(now)
        self._total_seconds -= sum(ready_at - now for ready_at in self._ready_times)
        self._ready_times.clear()
        self._last_exit = min(self._last_exit, now)

    def count(self, now: float) -> int:
        """Count the generations under way."""
        while self._ready_times and self._ready_times[0] <= now:
            heapq.heappop(self._ready_times)
        return len(self._ready_times)

    def mean(self, now: float) -> float:
        """Average the count over time, from the first purchase until the last one was ready.

        Idle time before and after does not dilute it; idle time in between does.
        """
        if self._first_entry is None:
            return 0.0
        self.count(now)
        to_come = sum(ready_at - now for ready_at in self._ready_times)
        span = min(now, self._last_exit) - self._first_entry
        return (self._total_seconds - to_come) / span if span > 0 else 0.0
