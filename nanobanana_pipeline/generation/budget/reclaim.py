"""Closes what ended shards left reserved, by what the ledger says that they bought.

The order keeps it safe: see an incarnation expired, *then* read the ledger, *then* close what is
open. An incarnation that is silent for 10 minutes by its own clocks sends nothing any more, so what
it has sent by the time that it is seen expired stands in the ledger.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from nanobanana_pipeline.bucket_keys import (
    clock_key,
    day_budget_prefix,
    run_alive_key,
    run_plan_key,
)
from nanobanana_pipeline.errors import EntryDamaged, StorageError, StorageUnavailable
from nanobanana_pipeline.generation.budget.counters import (
    Reservation,
    Scope,
    counter_keys,
    day_scope,
    partition_scope,
    run_scope,
)
from nanobanana_pipeline.generation.planning.run_files import read_plan, read_shard_keys
from nanobanana_pipeline.ledger import COSTING, Held, Ledger, State
from nanobanana_pipeline.money import Budget, Cap
from nanobanana_pipeline.storage import ObjectStore, StoredObject
from nanobanana_pipeline.storage.cas import Instant

__all__ = ["EXPIRED_SECONDS", "is_expired", "reclaim", "reclaim_partition", "recount", "stamp"]

log = logging.getLogger(__name__)

EXPIRED_SECONDS: Final = 900.0
"""An incarnation whose heartbeat is older, by the S3 server's clock, has expired."""
CLOCK_MARGIN: Final = timedelta(minutes=5)


def stamp(store: ObjectStore, key: str) -> tuple[StoredObject, Instant]:
    """Write an empty object and read it; gives it, and the moment before it was asked for.

    Raises:
        StorageError: somebody deleted it meanwhile, or S3 refuses.
    """
    store.put(key, b"")
    asked = Instant.now()
    written = store.get(key)
    if written is None:
        raise StorageError(f"{store.uri(key)} was deleted meanwhile: try again")
    return written, asked


def is_expired(
    store: ObjectStore,
    name: str,
    reservation: Reservation,
    now: datetime,
    expired_seconds: float = EXPIRED_SECONDS,
) -> bool:
    """Whether an incarnation has ended, or its heartbeat is that old at `now`.

    One without a heartbeat has ended only if its reservation is that old: the heartbeat is written
    before the reservation and deleted after it is closed.
    """
    run_id, shard, *incarnation = name.split("/")
    heartbeat = store.get(run_alive_key(run_id, ".".join([shard, *incarnation])))
    if heartbeat is not None:
        last = heartbeat.last_modified
    else:
        last = datetime.fromisoformat(reservation.opened)
    return (now - last).total_seconds() > expired_seconds


def reclaim(
    store: ObjectStore,
    scope: Scope,
    *,
    but: str = "",
    is_complete: bool = False,
    expired_seconds: float = EXPIRED_SECONDS,
) -> bool:
    """Close what ended shards left open in one scope.

    Args:
        store: the bucket.
        scope: the counter.
        but: the caller's own reservation.
        is_complete: nothing is missing of its partition: a shard with nothing left to buy has ended
            as well, and need not have been silent for long.
        expired_seconds: the age of a heartbeat that has expired.

    Returns:
        Whether there were any.

    Raises:
        StorageError: S3 refuses, or a counter is damaged.
    """
    others = {name: found for name, found in scope.read().open.items() if name != but}
    if not others:
        return False
    # Ages are differences of two stamps of one clock. A server's ``Date`` may be of another.
    now = stamp(store, clock_key())[0].last_modified
    ended = {
        name: found
        for name, found in others.items()
        if is_expired(store, name, found, now, expired_seconds)
        or (is_complete and _has_nothing_to_buy(store, name))
    }
    for name, found in ended.items():
        _close(store, name, found, scope)
    return bool(ended)


def reclaim_partition(
    store: ObjectStore, prompt_set: str, seed: int, *, is_complete: bool = False
) -> None:
    """Close what ended shards of a partition left open; where S3 refuses, it stays counted."""
    try:
        scope = partition_scope(store, Budget(), prompt_set, seed)
        reclaim(store, scope, is_complete=is_complete)
    except StorageError as error:
        log.warning("what ended shards did not spend stays reserved: %s", error)


@dataclass(frozen=True)
class Recount:
    """A closed reservation of which the ledger says by now that it bought more or fewer images."""

    counter: str
    name: str
    before: int
    after: int


def recount(store: ObjectStore) -> Iterator[Recount]:
    """Count closed reservations anew, as the ledger is now; what has expired is closed first.

    What was in doubt when a reservation was closed counts as spent, and may be known by now. Those
    closed for longer than a week, or whose list of requests is gone, stay as they are.

    Raises:
        StorageError: S3 refuses, or a counter is damaged.
    """
    spent: dict[str, int | None] = {}
    for key in counter_keys(store):
        scope = Scope(store, key, Cap(), key)
        reclaim(store, scope)
        for name, found in scope.read().reservations.items():
            if found.closed is None:
                continue
            if name not in spent:
                spent[name] = _spent_if_known(store, name, found)
            now = spent[name]
            if now is not None and now != found.images:
                scope.change(lambda counter, n=name, i=now: counter.recounted(n, i))  # type: ignore[misc]
                yield Recount(key, name, found.images, now)


def _spent_if_known(store: ObjectStore, name: str, reservation: Reservation) -> int | None:
    try:
        return spent_by(store, name, reservation)
    except StorageUnavailable:
        raise
    except StorageError as error:
        log.warning("what shard %s spent cannot be known: it counts as it stands: %s", name, error)
        return None


def spent_by(store: ObjectStore, name: str, reservation: Reservation) -> int:
    """Images that an incarnation may have bought, from the ledger.

    Raises:
        StorageError: the list of its shard's requests is gone, an entry is damaged, or S3 refuses.
    """
    run_id, shard, *incarnation = name.split("/")
    since = datetime.fromisoformat(reservation.opened) - CLOCK_MARGIN
    spent = 0
    for held in Ledger(store).read_many(read_shard_keys(store, run_id, shard)):
        if isinstance(held, EntryDamaged):
            raise held
        spent += held.entry.samples * sum(
            attempt.nonce.startswith(incarnation[0])
            if incarnation
            else attempt.run_id == run_id and datetime.fromisoformat(attempt.started) >= since
            for attempt in held.entry.attempts
            if attempt.outcome in COSTING
        )
    return spent


def _close(store: ObjectStore, name: str, found: Reservation, found_in: Scope) -> None:
    """Close an ended incarnation's reservations, by what the ledger says that it bought.

    Where the ledger cannot say it, all that is reserved counts.
    """
    spent = _spent_if_known(store, name, found)
    scopes = {scope.key: scope for scope in (found_in, *_scopes_of(store, name))}
    # The partition's comes last: it is where the next launch looks for what was left open.
    for scope in sorted(scopes.values(), key=lambda each: "/partitions/" in each.key):
        reserved = scope.read().open.get(name)
        if reserved is None:
            continue
        images = reserved.images if spent is None else spent
        told = (name, images, reserved.images, scope.text)
        log.info("shard %s has ended: %s of %s reserved images count for %s", *told)
        scope.change(lambda counter, i=images: counter.closed(name, i, datetime.now(UTC)))  # type: ignore[misc]


def _scopes_of(store: ObjectStore, name: str) -> Iterator[Scope]:
    """The counters that may name a shard; none if its run has no plan."""
    run_id = name.partition("/")[0]
    planned = store.get(run_plan_key(run_id))
    if planned is None:
        return
    try:
        made = read_plan(store, run_id)
    except StorageUnavailable:
        raise
    except StorageError as error:
        log.warning("where else shard %s has reservations cannot be known: %s", name, error)
        return
    caps = Budget()
    yield run_scope(store, run_id, caps.run)
    # A day more: version 0.1.0 told the day by a clock of its own.
    first = (planned.last_modified - timedelta(days=1)).date().isoformat()
    for key in store.keys(day_budget_prefix()):
        day = key.rpartition("/")[2].removesuffix(".json")
        if day >= first:
            yield day_scope(store, caps, day)
    yield partition_scope(store, caps, made.prompt_set, made.seed)


def _has_nothing_to_buy(store: ObjectStore, name: str) -> bool:
    """Whether all requests of a shard are settled."""
    run_id, shard = name.split("/")[:2]
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
