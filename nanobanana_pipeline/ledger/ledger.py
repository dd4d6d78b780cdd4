"""The ledger on S3: lock, journal, cache and metadata of every request, by compare-and-swap.

A conditional write whose answer is lost looks like a defeat when it is sent again: its own first
copy stands in the way. So after a defeat or silence the entry is read again, and whoever finds the
revision that it wrote itself has won.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Final

import tenacity

from nanobanana_pipeline.bucket_keys import ledger_key
from nanobanana_pipeline.errors import ForbiddenTransition, StorageError, StorageUnavailable
from nanobanana_pipeline.ledger.attempt import Outcome
from nanobanana_pipeline.ledger.entry import Entry
from nanobanana_pipeline.ledger.existence import leave_out_unknown
from nanobanana_pipeline.storage import ObjectStore

__all__ = ["PAID_PATIENCE_SECONDS", "Held", "Ledger", "boot_clock"]

log = logging.getLogger(__name__)

ENTRY_READERS: Final = 16
READ_AHEAD: Final = 1_000
PATIENCE_SECONDS: Final = 60.0
PAID_PATIENCE_SECONDS: Final = 3600.0
"""What was paid for is written down however long S3 takes to come back, within reason."""
_BOOT_CLOCK: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def boot_clock() -> float:
    """Seconds since the machine started, counting the time it slept where the system tells."""
    return time.clock_gettime(_BOOT_CLOCK)


@dataclass(frozen=True)
class Held:
    """An entry as it was at one moment, and what is needed to change it from there.

    Attributes:
        etag: of the object that holds it.
        age_seconds: since its last change, by the S3 server's clock.
        read_at: `boot_clock` when `age_seconds` was true: or before, where one has written it
            oneself and must not trust it for too long; or after, where one has read it and must not
            take another's claim for over too early.
    """

    entry: Entry
    etag: str
    age_seconds: float
    read_at: float

    @property
    def lease_left(self) -> float:
        """Seconds until a claim loses its owner; 0 or less when it has, or where there is none."""
        elapsed = self.age_seconds + boot_clock() - self.read_at
        claim = self.entry.deciding
        return claim.lease_seconds - elapsed if claim else 0.0


class Ledger:
    """Entries by request key. Safe to share between threads, and S3 between machines.

    Every method raises `StorageUnavailable` when S3 stays silent for `PATIENCE_SECONDS`.
    """

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def read(self, request_key: str) -> Held | None:
        """The entry as it is now; None if the request was never tried."""
        key = ledger_key(request_key)
        found = self._store.get(key)
        # Not before: whoever is kept waiting, or frozen, must not count that to the entry's age.
        read_at = boot_clock()
        if found is None:
            return None
        entry = Entry.from_json(found.body, self._store.uri(key))
        if entry.request_key != request_key:
            raise StorageError(f"{self._store.uri(key)} is the entry of {entry.request_key}")
        return Held(entry, found.etag, found.age_seconds, read_at)

    def read_many(self, request_keys: Iterable[str]) -> Iterator[Held]:
        """The entries of those requests that were ever tried, in order; a few in memory at once."""
        keys = iter(leave_out_unknown(self._store, list(request_keys)))
        readers = ThreadPoolExecutor(ENTRY_READERS)
        try:
            while some := list(islice(keys, READ_AHEAD)):
                yield from (held for held in readers.map(self.read, some) if held is not None)
        finally:
            # Whoever is interrupted here must not wait for a million reads.
            readers.shutdown(cancel_futures=True)

    def claim(
        self,
        held: Held | None,
        fresh: Entry,
        *,
        run_id: str,
        nonce: str,
        lease_seconds: float,
        rebuy: bool = False,
    ) -> Held | None:
        """Begin an attempt, in one write.

        Args:
            held: the entry as it was read; None to claim a request that was never tried.
            fresh: the entry to create in that case.
            run_id: whose attempt this is.
            nonce: the attempt's own (see `new_nonce`).
            lease_seconds: how long the claim stands without a sign of life.
            rebuy: allow it for a request in doubt or lost.

        Returns:
            The claimed entry; None if somebody else was quicker, or the entry changed.

        Raises:
            ForbiddenTransition: the entry is in a state that allows no attempt.
        """
        before = held.entry if held else fresh
        claimed = before.claim(run_id=run_id, nonce=nonce, lease_seconds=lease_seconds, rebuy=rebuy)
        return self._write(claimed, held.etag if held else None, PATIENCE_SECONDS)

    def apply(
        self,
        held: Held,
        change: Callable[[Entry], Entry],
        *,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> Held:
        """Take a step, on top of whatever others have written meanwhile.

        Args:
            held: the entry as last seen.
            change: one of `Entry`'s steps; called again on the newer entry after a lost race.
            patience_seconds: how long to go on while S3 is silent.

        Returns:
            The entry with the step taken.

        Raises:
            ForbiddenTransition: the newer entry does not allow the step.
        """
        while True:
            written = self._write(change(held.entry), held.etag, patience_seconds)
            if written is not None:
                return written
            newer = self.read(held.entry.request_key)
            if newer is None:
                raise ForbiddenTransition(
                    f"request {held.entry.request_key} has left the ledger; "
                    "entries are never deleted by this project"
                )
            held = newer

    def record(self, held: Held, change: Callable[[Entry], Entry]) -> Held:
        """Take a step after something was paid for: patiently, and never in vain.

        Where others have brought the matter further already, their word stands.
        """
        try:
            return self.apply(held, change, patience_seconds=PAID_PATIENCE_SECONDS)
        except ForbiddenTransition as error:
            log.warning("nothing to record: %s", error)
            return self.read(held.entry.request_key) or held

    def expire(self, held: Held) -> Held:
        """Put a claim whose lease ran out in doubt: its owner may have sent it before it died."""
        claim = held.entry.deciding
        if claim is None or claim.outcome is not Outcome.SUBMITTING or held.lease_left > 0:
            return held
        doubted = held.entry.doubt(claim.nonce, f"run {claim.run_id} ended while it was sending")
        written = self._write(doubted, held.etag, PATIENCE_SECONDS)
        # Somebody who is alive has renewed, answered or expired it: theirs is the newer truth.
        return written or self.read(held.entry.request_key) or held

    def _write(self, entry: Entry, etag: str | None, patience_seconds: float) -> Held | None:
        key = ledger_key(entry.request_key)
        body = entry.to_json()
        began = boot_clock()
        for attempt in tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(StorageUnavailable),
            wait=tenacity.wait_exponential_jitter(multiplier=0.1, max=5),
            stop=tenacity.stop_after_delay(patience_seconds),
            reraise=True,
        ):
            with attempt:
                written_at = boot_clock()
                try:
                    if etag is None:
                        new = self._store.create(key, body, content_type="application/json")
                    else:
                        new = self._store.update(key, body, etag)
                except StorageUnavailable:
                    found = self.read(entry.request_key)
                    if (found.etag if found else None) == etag:
                        raise  # not applied so far: the very same bytes may be sent again
                else:
                    if new is not None:
                        return Held(entry, new, 0.0, written_at)
                    found = self.read(entry.request_key)
                if found is None or found.entry.revision != entry.revision:
                    return None
                return Held(found.entry, found.etag, 0.0, began)  # any try may have written it
        raise AssertionError  # tenacity gives a result or raises
