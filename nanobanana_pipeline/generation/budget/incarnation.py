"""`Incarnation`: one start of a shard within one UTC day, with its heartbeat and its reservations.

Its id is the first half of the nonce of each of its attempts, so the ledger tells exactly what it
bought. It is over at midnight by the S3 server's clock, and after a silence in which others may
have closed its reservations. See docs/budgets.md.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Final

from nanobanana_pipeline.bucket_keys import run_alive_key
from nanobanana_pipeline.generation.budget.counters import Counter, Reservation, Scope
from nanobanana_pipeline.generation.budget.reclaim import EXPIRED_SECONDS, reclaim, stamp
from nanobanana_pipeline.ledger import new_nonce
from nanobanana_pipeline.money import Cap
from nanobanana_pipeline.storage import ObjectStore
from nanobanana_pipeline.storage.cas import Instant

__all__ = ["DEFAULT_HEARTBEAT", "HeartbeatTiming", "Incarnation", "Permit"]

WHOLE_SECOND: Final = 1.0
"""S3 tells the time in whole seconds."""


@dataclass(frozen=True)
class HeartbeatTiming:
    """How often a shard writes its heartbeat, and how long others wait for one; seconds."""

    renew_seconds: float = 60.0
    """Between two heartbeats."""
    silent_seconds: float = 600.0
    """After so long without one, by its own clocks, an incarnation is over."""
    expired_seconds: float = EXPIRED_SECONDS
    """After so long without one, by the S3 server's clock, others close its reservations."""
    close_seconds: float = 120.0
    """For closing its reservations at its end."""
    stopped_seconds: float = 10.0
    """The same after an interrupt, when S3 may be silent."""


DEFAULT_HEARTBEAT: Final = HeartbeatTiming()


class Incarnation:
    """One start of a shard within one UTC day: its heartbeat and its reservations.

    Args:
        store: the bucket.
        run_id: the run.
        shard: its shard.
        scopes_of: the counters whose caps hold on a UTC day (ISO date), the partition's first.
        price: of one image; None if unknown.
        timing: of its heartbeat.

    Attributes:
        id: 8 hexadecimal digits, the first half of the nonce of each of its attempts.
        taken: images that its permits are for, but for those given back.
        granted: images that are reserved in every scope.
    """

    def __init__(
        self,
        store: ObjectStore,
        run_id: str,
        shard: str,
        *,
        scopes_of: Callable[[str], list[Scope]],
        price: Decimal | None,
        timing: HeartbeatTiming,
    ) -> None:
        self.id = new_nonce()[-8:]
        self.taken = self.granted = 0
        self._store = store
        self._name = f"{run_id}/{shard}/{self.id}"
        self._heartbeat = run_alive_key(run_id, f"{shard}.{self.id}")
        self._price = price
        self._timing = timing
        self._opened: set[str] = set()
        self._is_over = False
        opened, self._now, self._day_left = self._begin()
        self._new = Reservation(images=0, price=price, opened=opened.isoformat())
        self._scopes = scopes_of(self._now.date().isoformat())

    def _begin(self) -> tuple[datetime, datetime, float]:
        """Write the first heartbeat; gives its stamp, the time, and the seconds to midnight.

        A slow write may be stamped on the day before.
        """
        while True:
            self._renewed = Instant.now()
            written, self._began = stamp(self._store, self._heartbeat)
            now = written.last_modified + timedelta(seconds=written.age_seconds)
            midnight = (now + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
            left = (midnight - now).total_seconds() - WHOLE_SECOND
            if left > WHOLE_SECOND:
                return written.last_modified, now, left
            time.sleep(left + 2 * WHOLE_SECOND)

    @property
    def is_over(self) -> bool:
        """Whether it may buy no more: its day has ended, or it was silent for too long."""
        silent = self._renewed.elapsed() >= self._timing.silent_seconds
        if silent or self._began.elapsed() >= self._day_left:
            # For good: others may have seen it expired before a late heartbeat was stored. It is
            # never set back, or a thread that looked earlier could undo what `_set` has found.
            self._is_over = True
        return self._is_over

    def beat(self) -> None:
        """Write the heartbeat.

        Raises:
            StorageUnavailable: S3 stays silent.
        """
        now = Instant.now()
        self._store.put(self._heartbeat, b"")
        if not self.is_over:
            self._renewed = now

    def grow(self, images: int) -> Scope | None:
        """Reserve up to so many images more than are taken; gives a scope without room for them.

        All scopes are asked before anything is reserved in one.
        """
        wanted = granted = self.taken + images
        short = None
        for scope in self._scopes:
            room = self._room(scope, granted)
            if room < granted:
                short, granted = scope, room
        reserved = {scope: self._set(scope, granted) for scope in self._scopes}
        self.granted = min(reserved.values(), default=granted)
        for scope, got in reserved.items():
            if got > self.granted:
                self._set(scope, self.granted)
                continue
            short = scope if got < granted else short
        return short if self.granted < wanted else None

    def shrink(self) -> None:
        """Give back what is not taken."""
        self.granted = self.taken
        for scope in self._scopes:
            self._set(scope, self.granted)

    def _room(self, scope: Scope, images: int) -> int:
        """What a scope has room for, once what expired incarnations left open is closed."""
        if scope.cap == Cap():
            return images
        left = scope.read().room(scope.cap, self._price, but=self._name)
        expired_seconds = self._timing.expired_seconds
        if (
            left is not None
            and left < images
            and reclaim(self._store, scope, but=self._name, expired_seconds=expired_seconds)
        ):
            left = scope.read().room(scope.cap, self._price, but=self._name)
        return images if left is None else min(images, left)

    def _set(self, scope: Scope, images: int) -> int:
        """Set the reservation in one scope, as far as its cap has room; gives what it is now."""
        reserved = 0

        def step(counter: Counter) -> Counter:
            nonlocal reserved
            mine = counter.reservations.get(self._name)
            if mine.closed is not None if mine else scope.key in self._opened:
                self._is_over, reserved = True, self.taken
                return counter
            room = counter.room(scope.cap, self._price, but=self._name)
            reserved = max(self.taken, images if room is None else min(images, room))
            if mine is None and not reserved:
                return counter
            new = self._new.model_copy(update={"images": reserved})
            return counter.with_reservation(self._name, new)

        after = scope.change(step)
        if self._name in after.reservations:
            self._opened.add(scope.key)
        return reserved

    def close(self) -> None:
        """Close the reservations: what was taken is spent. Where S3 refuses they stay open.

        Raises:
            StorageError: S3 refuses or stays silent.
        """
        self._is_over = True
        now = self._now + timedelta(seconds=self._began.elapsed())
        # The partition's comes last: there others look for what was left open.
        for scope in reversed(self._scopes):
            if scope.key in self._opened:
                scope.change(lambda counter: counter.closed(self._name, self.taken, now))
        self._store.delete(self._heartbeat)


@dataclass(eq=False)
class Permit:
    """Leave to buy so many images, once, in one incarnation.

    Attributes:
        nonce: of the attempt; its first half is the incarnation's.
    """

    incarnation: Incarnation
    images: int
    nonce: str

    def holds(self) -> bool:
        """Whether the attempt may be sent now."""
        return not self.incarnation.is_over
