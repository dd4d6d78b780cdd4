"""`ShardBudget`: what one start of a shard may still buy, in reservations that it alone grows.

A shard buys as an *incarnation*, which belongs to one UTC day. Its first half of every nonce says
which attempts it made, so the ledger tells exactly what it bought. An incarnation is over at
midnight by the S3 server's clock, and after a silence in which others may have closed its
reservations; the shard then goes on as another. See docs/budgets.md.
"""

import contextlib
import functools
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Final

from nanobanana_pipeline.bucket_keys import run_alive_key
from nanobanana_pipeline.errors import StorageError
from nanobanana_pipeline.generation.budget.counters import (
    Counter,
    Reservation,
    Scope,
    day_scope,
    partition_scope,
    run_scope,
)
from nanobanana_pipeline.generation.budget.reclaim import EXPIRED_SECONDS, reclaim_expired
from nanobanana_pipeline.generation.planning.run_files import RunPlan, mark_unfinished
from nanobanana_pipeline.ledger import new_nonce
from nanobanana_pipeline.money import Budget, Cap
from nanobanana_pipeline.storage import ObjectStore
from nanobanana_pipeline.storage.cas import Instant

__all__ = ["DEFAULT_HEARTBEAT", "HeartbeatTiming", "Permit", "ShardBudget", "open_shard_budget"]

log = logging.getLogger(__name__)

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
            self._renewed = self._began = Instant.now()
            self._store.put(self._heartbeat, b"")
            asked = Instant.now()
            written = self._store.get(self._heartbeat)
            if written is None:
                raise StorageError(f"{self._store.uri(self._heartbeat)} was deleted meanwhile")
            now = written.last_modified + timedelta(seconds=written.age_seconds)
            midnight = (now + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
            left = (midnight - now).total_seconds() - WHOLE_SECOND
            self._began = asked
            if left > WHOLE_SECOND:
                return written.last_modified, now, left
            time.sleep(left + 2 * WHOLE_SECOND)

    @property
    def is_over(self) -> bool:
        """Whether it may buy no more: its day has ended, or it was silent for too long."""
        silent = self._renewed.elapsed() >= self._timing.silent_seconds
        # For good: others may have seen it expired before a late heartbeat was stored.
        self._is_over = self._is_over or silent or self._began.elapsed() >= self._day_left
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

        def room() -> int | None:
            return scope.read().room(scope.cap, self._price, but=self._name)

        left = room()
        if (
            left is not None
            and left < images
            and reclaim_expired(
                self._store, scope, but=self._name, expired_seconds=self._timing.expired_seconds
            )
        ):
            left = room()
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


class ShardBudget:
    """What one shard may spend. Safe to share between threads.

    Args:
        store: the bucket.
        scopes_of: the counters whose caps hold on a UTC day (ISO date), the partition's first.
        price: of one image; None if unknown.
        run_id: the run.
        shard: its shard.
        timing: of its heartbeat.

    Attributes:
        run_id: the run.
        reason: why nothing more may be bought, once that is so.
    """

    def __init__(
        self,
        store: ObjectStore,
        scopes_of: Callable[[str], list[Scope]],
        *,
        price: Decimal | None,
        run_id: str,
        shard: str,
        timing: HeartbeatTiming = DEFAULT_HEARTBEAT,
    ) -> None:
        self.run_id = run_id
        self.reason: str | None = None
        self._store = store
        self._start = functools.partial(
            Incarnation, store, run_id, shard, scopes_of=scopes_of, price=price, timing=timing
        )
        self._lock = threading.Lock()
        self._expected = 0
        self._past: list[Incarnation] = []
        self._current: Incarnation | None = None

    def open(self, images: int) -> None:
        """Reserve what the shard expects to buy.

        Raises:
            StorageUnavailable: S3 stays silent.
        """
        with self._lock:
            self._expected = images
            self._grow(self._incarnation(), images)

    def take(self, images: int) -> Permit | None:
        """Leave to buy so many images now; None if a cap forbids it, and `reason` says which.

        Raises:
            StorageUnavailable: S3 stays silent.
        """
        with self._lock:
            mine = self._incarnation()
            if mine.granted - mine.taken < images and self.reason is None:
                self._grow(mine, max(images, self._expected - self.spent))
            if mine.granted - mine.taken < images or mine.is_over:
                return None
            mine.taken += images
            return Permit(mine, images, mine.id + new_nonce()[-8:])

    def give_back(self, permit: Permit) -> None:
        """An attempt has bought nothing."""
        with self._lock:
            permit.incarnation.taken -= permit.images

    def ask_again(self) -> bool:
        """Whether a cap that had no room has some by now: others may have given some back.

        Raises:
            StorageUnavailable: S3 stays silent.
        """
        with self._lock:
            mine, self.reason = self._incarnation(), None
            self._grow(mine, self._expected - self.spent)
            return mine.granted > mine.taken

    @property
    def spent(self) -> int:
        """Images that were taken and not given back."""
        current = [self._current] if self._current else []
        return sum(each.taken for each in (*self._past, *current))

    def beat(self) -> None:
        """Write the heartbeats. Waits for no lock, so that no slow step of a thread delays them."""
        for each in (*self._past, self._current):
            if each is not None:
                try:
                    each.beat()
                except StorageError as error:
                    log.warning("the heartbeat of run %s was not written: %s", self.run_id, error)

    def close(self) -> None:
        """Give back what is left over. Where S3 refuses, the reservation stays counted."""
        with self._lock:
            for each in (*self._past, self._current):
                try:
                    if each is not None:
                        each.close()
                except StorageError as error:
                    told = (self.run_id, error)
                    log.warning("what a shard of run %s did not spend stays reserved: %s", *told)

    def _incarnation(self) -> Incarnation:
        """The current incarnation; another where it is over."""
        if self._current is not None and not self._current.is_over:
            return self._current
        if self._current is not None:
            log.info("run %s goes on as another incarnation", self.run_id)
            self._current.shrink()
            self._past.append(self._current)
            # A rescue may have called the run done: what it buys from now on must be found again.
            mark_unfinished(self._store, self.run_id)
            self.reason = None
        self._current = self._start()
        return self._current

    def _grow(self, mine: Incarnation, images: int) -> None:
        short = mine.grow(images)
        if short is not None:
            self.reason = f"over budget: {short.text} has its cap of {short.cap}"


@contextlib.contextmanager
def open_shard_budget(
    store: ObjectStore,
    budget: Budget,
    made: RunPlan,
    shard: str,
    images: int,
    timing: HeartbeatTiming = DEFAULT_HEARTBEAT,
) -> Iterator[ShardBudget]:
    """Reserve what a shard expects to buy; at the end its reservations are closed.

    Args:
        store: the bucket.
        budget: the price, and the caps that hold for every launch.
        made: the launch, with its own caps.
        shard: one of its shards.
        images: how many it expects to buy.
        timing: of its heartbeat, and of the end.

    Raises:
        StorageError: S3 refuses or stays silent, or a counter is damaged.
    """
    own = budget.run.tightened(Cap(made.max_images, made.max_cost))

    def scopes_of(day: str) -> list[Scope]:
        partition = partition_scope(store, budget, made.prompt_set, made.seed)
        run = [run_scope(store, made.run_id, own)] if own != Cap() else []
        return [partition, day_scope(store, budget, day), *run]

    mine = ShardBudget(
        store, scopes_of, price=budget.price, run_id=made.run_id, shard=shard, timing=timing
    )
    mine.open(images)
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(timing.renew_seconds):
            mine.beat()

    def close() -> None:
        beating.join()  # a heartbeat that is written after the last would outlive the shard
        mine.close()

    beating = threading.Thread(target=beat, name="heartbeat", daemon=True)
    beating.start()
    patience = timing.stopped_seconds
    try:
        yield mine
        patience = timing.close_seconds
    finally:
        ended.set()
        # In a thread of its own: no stop waits long for a bucket that stays silent.
        closing = threading.Thread(target=close, name="budget", daemon=True)
        closing.start()
        closing.join(patience)
