"""The emulator's clock: real time, which tests may move forward."""

import asyncio
import contextlib
import time


class ClockStoppedError(Exception):
    """The emulator is stopping; whoever was waiting for a moment will not live to see it."""


class Clock:
    """Real time plus an offset that only grows. Used from the event loop alone."""

    def __init__(self, offset_seconds: float = 0.0) -> None:
        self.offset_seconds = offset_seconds
        self._stopped = False
        self._changed = asyncio.Event()

    def now(self) -> float:
        """Tell the time, in Unix seconds."""
        return time.time() + self.offset_seconds

    def advance(self, seconds: float) -> None:
        """Move the clock forward by `seconds` and wake those whose moment has come."""
        self.offset_seconds += seconds
        self._wake()

    def stop(self) -> None:
        """Wake everyone who waits, now and later, with `ClockStoppedError`."""
        self._stopped = True
        self._wake()

    async def wait_until(self, moment: float) -> None:
        """Wait until the clock shows `moment`, in Unix seconds.

        Raises:
            ClockStoppedError: The emulator stops before that.
        """
        while (left := moment - self.now()) > 0:
            if self._stopped:
                raise ClockStoppedError
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), timeout=left)

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
