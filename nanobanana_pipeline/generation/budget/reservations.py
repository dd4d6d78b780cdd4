"""What a shard may still spend: it reserves before it buys, and gives back what it did not use.

A dead shard's reservation stays counted until its spending has been counted from its run file and
the ledger: by a rescue of its run, a launch of its partition, or somebody who needs the room.
"""

import contextlib
import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from typing import Final

from nanobanana_pipeline.bucket_keys import day_budget_prefix, run_alive_key, run_plan_key
from nanobanana_pipeline.errors import EntryDamaged, StorageError, StorageUnavailable
from nanobanana_pipeline.generation.budget.counters import (
    Reservation,
    Scope,
    day_scope,
    partition_scope,
    run_scope,
)
from nanobanana_pipeline.generation.planning.run_files import (
    RunPlan,
    mark_unfinished,
    read_plan,
    read_shard_keys,
)
from nanobanana_pipeline.ledger import COSTING, Held, Ledger, State, boot_clock
from nanobanana_pipeline.money import Budget, Cap
from nanobanana_pipeline.storage import ObjectStore

__all__ = [
    "DEFAULT_HEARTBEAT",
    "EXPIRED_SECONDS",
    "HeartbeatTiming",
    "ShardBudget",
    "is_expired",
    "open_shard_budget",
    "reclaim_reservations",
]

log = logging.getLogger(__name__)

EXPIRED_SECONDS: Final = 900.0
"""A shard whose heartbeat is older, by the S3 server's clock, has expired."""
CLOCK_MARGIN: Final = timedelta(minutes=5)


@dataclass(frozen=True)
class HeartbeatTiming:
    """How often a shard writes its heartbeat, and when it may no longer rely on it; seconds."""

    renew_seconds: float = 60.0
    """Between two heartbeats."""
    stale_seconds: float = 300.0
    """After so long without one a shard confirms its reservations before it buys on."""
    awake_seconds: float = 600.0
    """After so long without one it sends nothing that it has claimed: another process may be
    about to close its reservations."""
    expired_seconds: float = EXPIRED_SECONDS
    """After so long without one, by the S3 server's clock, others close its reservations."""
    close_seconds: float = 120.0
    """For closing its reservations at its end."""
    stopped_seconds: float = 10.0
    """The same after an interrupt, when S3 may be silent."""


DEFAULT_HEARTBEAT: Final = HeartbeatTiming()


class ShardBudget:
    """What one shard may spend. Safe to share between threads.

    Args:
        store: the bucket.
        scopes: whose caps hold.
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
        scopes: list[Scope],
        *,
        price: Decimal | None,
        run_id: str,
        shard: str,
        timing: HeartbeatTiming = DEFAULT_HEARTBEAT,
    ) -> None:
        self._store = store
        self._timing = timing
        self._scopes = scopes
        self._price = price
        self._alive = run_alive_key(run_id, shard)
        self.run_id = run_id
        self._name = f"{run_id}/{shard}"
        self._lock = threading.Lock()
        self._granted = self._taken = 0
        self._renewed = float("-inf")
        self.reason: str | None = None

    def open(self, images: int) -> None:
        """Reserve what a shard expects to buy.

        Raises:
            StorageUnavailable: S3 stays silent.
        """
        with self._lock:
            self._renewed = self._sign()
            self._settle_earlier_life()
            self._grow(images)

    def take(self, images: int) -> bool:
        """Whether so many images may be bought now; `reason` says why not.

        Raises:
            StorageUnavailable: S3 stays silent.
        """
        with self._lock:
            if boot_clock() - self._renewed > self._timing.stale_seconds:
                self._come_back()
            if self._granted - self._taken < images and self.reason is None:
                self._grow(images - (self._granted - self._taken))
            if self._granted - self._taken < images:
                return False
            self._taken += images
            return True

    def give_back(self, images: int) -> None:
        """What was taken has bought nothing."""
        with self._lock:
            # Not below nothing: what was taken before a long silence is counted elsewhere.
            self._taken = max(0, self._taken - images)

    @property
    def spent(self) -> int:
        """Images that were taken and not given back."""
        return self._taken

    @property
    def is_awake(self) -> bool:
        """Whether nobody can have taken this shard for dead since it last said that it lives."""
        return boot_clock() - self._renewed < self._timing.awake_seconds

    def renew(self) -> None:
        """Say that this shard lives, if that was not said for a minute."""
        with self._lock:
            silence = boot_clock() - self._renewed
            if silence > self._timing.stale_seconds:
                self._come_back()
            elif silence > self._timing.renew_seconds:
                self._renewed = self._sign()

    def close(self) -> None:
        """Give back what is left over. Where S3 refuses, the reservation stays counted."""
        try:
            with self._lock:
                self._granted = self._taken
                # The first is the last: whoever looks for what was left open looks there.
                for scope in reversed(self._scopes):
                    scope.change(lambda counter: counter.closed(self._name, self._taken))
            self._store.delete(self._alive)
        except StorageError as error:
            log.warning("what shard %s did not spend stays reserved: %s", self._name, error)

    def _sign(self) -> float:
        """Write a sign of life; gives `boot_clock` of when it was true."""
        now = boot_clock()
        self._store.put(self._alive, b"")
        return now

    def _grow(self, images: int) -> None:
        """Reserve so many images more, or as many as every cap has room for."""
        granted, got = images, []
        for scope in self._scopes:
            room = scope.reserve(self._name, granted, self._price)
            if room < granted and self._bury_the_dead(scope):
                room += scope.reserve(self._name, granted - room, self._price)
            if room < granted:
                self.reason = f"over budget: {scope.text} has its cap of {scope.cap}"
            granted = room
            got.append((scope, granted))
        for scope, reserved in got:
            if reserved > granted:
                self._shrink(scope, reserved - granted)
        self._granted += granted

    def _shrink(self, scope: Scope, images: int) -> None:
        scope.change(lambda counter: counter.with_reserved(self._name, -images, self._price))

    def _bury_the_dead(self, scope: Scope) -> bool:
        """Count what dead shards did spend, and free what they did not; whether there were any."""
        others = [name for name in scope.read().reserved if name != self._name]
        is_over = partial(is_expired, expired_seconds=self._timing.expired_seconds)
        buried = [name for name in others if reclaim(self._store, name, is_over, scope)]
        return bool(buried)

    def _settle_earlier_life(self) -> None:
        """A shard that died and runs again under the same name: count what it spent then."""
        if any(self._name in scope.read().reserved for scope in self._scopes):
            reclaim(self._store, self._name, lambda *_: True, *self._scopes)

    def _come_back(self) -> None:
        """After a long silence: whoever took this shard for dead has closed its account."""
        signed = self._sign()
        # A rescue may have called the run done: what it buys from now on must be found again.
        mark_unfinished(self._store, self.run_id)
        # Written and not just read: somebody may be counting what this shard spent at this moment.
        confirmed = [scope.change(lambda c: c.confirmed(self._name)) for scope in self._scopes]
        if any(self._name not in counter.reserved for counter in confirmed):
            log.warning("shard %s was taken for dead: it reserves anew", self._name)
            self._settle_earlier_life()
            self._granted = self._taken = 0
        # Last of all: where S3 fell silent meanwhile, nothing is settled yet.
        self._renewed = signed


@contextlib.contextmanager
def open_shard_budget(
    store: ObjectStore,
    budget: Budget,
    made: RunPlan,
    shard: str,
    images: int,
    timing: HeartbeatTiming = DEFAULT_HEARTBEAT,
) -> Iterator[ShardBudget]:
    """Reserve what a shard expects to buy; at the end its account is closed.

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
    scopes = [partition_scope(store, budget, made.prompt_set, made.seed), day_scope(store, budget)]
    own = budget.run.tightened(Cap(made.max_images, made.max_cost))
    if own != Cap():
        scopes.append(run_scope(store, made.run_id, own))
    purse = ShardBudget(
        store, scopes, price=budget.price, run_id=made.run_id, shard=shard, timing=timing
    )
    purse.open(images)
    patience = timing.stopped_seconds
    try:
        yield purse
        patience = timing.close_seconds
    finally:
        # In a thread of its own: no stop waits long for a bucket that stays silent.
        closing = threading.Thread(target=purse.close, name="budget", daemon=True)
        closing.start()
        closing.join(patience)


def reclaim_reservations(
    store: ObjectStore,
    prompt_set: str,
    seed: int,
    names: Iterable[str] = (),
    *,
    is_complete: bool = False,
) -> None:
    """Count what dead shards of a partition did spend, and free what they did not.

    Args:
        store: the bucket.
        prompt_set: the partition's.
        seed: the partition's.
        names: ``<run id>/<shard>`` of shards to look at beside those that its counter names.
        is_complete: nothing is missing of it, so that shards with nothing left to buy are looked
            for too: they need not have been silent for long.
    """
    is_over = _is_over if is_complete else is_expired
    try:
        reserved = partition_scope(store, Budget(), prompt_set, seed).read().reserved
        for name in dict.fromkeys([*names, *reserved]):
            reclaim(store, name, is_over)
    except StorageError as error:
        log.warning("what dead shards did not spend stays reserved: %s", error)


def reclaim(
    store: ObjectStore,
    name: str,
    is_over: Callable[[ObjectStore, str], bool],
    *found_in: Scope,
) -> bool:
    """Close a shard's account in every counter that names it, by what the ledger says it spent.

    Args:
        store: the bucket.
        name: ``<run id>/<shard>``.
        is_over: whether it buys no more.
        found_in: counters to close it in even if its plan is gone.

    Returns:
        Whether it had an account, and is over.

    Raises:
        StorageUnavailable: S3 stays silent.
        StorageError: a counter is damaged.
    """
    scopes = {scope.key: scope for scope in (*found_in, *_scopes_of(store, name))}
    seen = [(s, r) for s in scopes.values() if (r := s.read().reserved.get(name)) is not None]
    # Asked after reading: who comes back meanwhile changes its reservation, and that one stays.
    if not seen or not is_over(store, name):
        return False
    # The partition's comes last: it is where the next launch looks for what was left open.
    for scope, reservation in sorted(seen, key=lambda each: "/partitions/" in each[0].key):
        _close(store, scope, name, reservation)
    return True


def _close(store: ObjectStore, scope: Scope, name: str, reservation: Reservation) -> None:
    try:
        spent = spent_by(store, name, reservation)
    except StorageUnavailable:
        raise
    except StorageError as error:
        log.warning("what shard %s spent cannot be known, so all of it counts: %s", name, error)
        spent = reservation.images
    told = (name, spent, reservation.images, scope.text)
    log.info("shard %s is over: %s of %s reserved images count for %s", *told)
    scope.change(lambda counter: counter.closed(name, spent, reservation))


def _scopes_of(store: ObjectStore, name: str) -> list[Scope]:
    """The counters that may name a shard; none if its run has no plan."""
    run_id = name.rpartition("/")[0]
    planned = store.get(run_plan_key(run_id))
    if planned is None:
        return []
    try:
        made = read_plan(store, run_id)
    except StorageUnavailable:
        raise
    except StorageError as error:
        log.warning("where else shard %s has reservations cannot be known: %s", name, error)
        return []
    # A day more: whoever bought told the day by a clock of its own.
    since = datetime.now(UTC) - timedelta(days=1, seconds=planned.age_seconds)
    first = since.date().isoformat()
    days = [key.rpartition("/")[2].removesuffix(".json") for key in store.keys(day_budget_prefix())]
    caps = Budget()
    return [
        run_scope(store, run_id, caps.run),
        *(day_scope(store, caps, day) for day in days if day >= first),
        partition_scope(store, caps, made.prompt_set, made.seed),
    ]


def spent_by(store: ObjectStore, name: str, reservation: Reservation) -> int:
    """Images that a shard may have bought since its reservation began, from the ledger.

    Raises:
        EntryDamaged: what it spent on one of its requests is unknown.
    """
    run_id, _, shard = name.rpartition("/")
    since = datetime.fromisoformat(reservation.since) - CLOCK_MARGIN
    keys = read_shard_keys(store, run_id, shard)
    spent = 0
    for held in Ledger(store).read_many(keys):
        if isinstance(held, EntryDamaged):
            raise held
        spent += held.entry.samples * sum(
            attempt.run_id == run_id
            and attempt.outcome in COSTING
            and datetime.fromisoformat(attempt.started) >= since
            for attempt in held.entry.attempts
        )
    return spent


def is_expired(store: ObjectStore, name: str, *, expired_seconds: float = EXPIRED_SECONDS) -> bool:
    """Whether the shard ``<run id>/<shard>`` has ended, or its heartbeat is so old."""
    run_id, _, shard = name.rpartition("/")
    sign = store.get(run_alive_key(run_id, shard))
    return sign is None or sign.age_seconds > expired_seconds


def _is_over(store: ObjectStore, name: str) -> bool:
    """Whether a shard is dead, or has nothing left to buy: all its requests are settled."""
    if is_expired(store, name):
        return True
    run_id, _, shard = name.rpartition("/")
    try:
        keys = read_shard_keys(store, run_id, shard)
    except StorageUnavailable:
        raise
    except StorageError as error:
        log.warning("whether shard %s has anything left to buy cannot be known: %s", name, error)
        return False
    held = Ledger(store).read_many(keys)
    settled = (isinstance(h, Held) and h.entry.state is State.SETTLED for h in held)
    return sum(settled) == len(keys)
