"""The ledger on S3: lock, journal, cache and metadata of every request, by compare-and-swap."""

import logging
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Final

from nanobanana_pipeline.bucket_keys import ledger_key
from nanobanana_pipeline.errors import EntryDamaged, ForbiddenTransition, StorageError
from nanobanana_pipeline.ledger.attempt import Outcome
from nanobanana_pipeline.ledger.entry import Entry
from nanobanana_pipeline.ledger.existence import leave_out_absent
from nanobanana_pipeline.storage import ObjectStore, StoredObject, cas
from nanobanana_pipeline.storage.cas import Instant
from nanobanana_pipeline.storage.faults import PATIENCE_SECONDS

__all__ = ["PAID_PATIENCE_SECONDS", "Held", "Ledger"]

log = logging.getLogger(__name__)

ENTRY_READERS: Final = 16
READ_AHEAD: Final = 1_000
PAID_PATIENCE_SECONDS: Final = 3600.0
"""What was paid for is written down however long S3 takes to come back, within reason."""


@dataclass(frozen=True)
class Held:
    """An entry as it was at one moment, and what is needed to change it from there.

    Attributes:
        etag: of the object that holds it.
        age_seconds: since its last change, by the S3 server's clock.
        read_at: when `age_seconds` was true: or before, where one has written it oneself and must
            not trust it for too long; or after, where one has read it and must not take another's
            claim for over too early.
    """

    entry: Entry
    etag: str
    age_seconds: float
    read_at: Instant

    @property
    def lease_left(self) -> float:
        """Seconds for which its owner may rely on the claim; 0 or less if it may not."""
        claim = self.entry.deciding
        return claim.lease_seconds - self.age_seconds - self.read_at.elapsed() if claim else 0.0

    @property
    def expires_in(self) -> float:
        """Seconds until others may take the claim for over; 0 or less once they may."""
        claim = self.entry.deciding
        elapsed = self.age_seconds + self.read_at.least_elapsed()
        return claim.lease_seconds - elapsed if claim else 0.0


class Ledger:
    """Entries by request key. Safe to share between threads, and S3 between machines.

    Every method raises `StorageUnavailable` when S3 stays silent, or refuses every write, for
    `patience_seconds`.

    A write is repeated so long while S3 is silent; once something was paid for, for
    `paid_patience_seconds`.
    """

    def __init__(
        self,
        store: ObjectStore,
        *,
        patience_seconds: float = PATIENCE_SECONDS,
        paid_patience_seconds: float = PAID_PATIENCE_SECONDS,
    ) -> None:
        self._store = store
        self._patience = patience_seconds
        self._paid_patience = paid_patience_seconds

    def read(self, request_key: str) -> Held | None:
        """The entry as it is now; None if the request was never tried.

        Raises:
            EntryDamaged: it is damaged, or was written by a newer version.
        """
        found = self._store.get(ledger_key(request_key))
        # Not before the GET: its duration must not count towards the entry's age.
        read_at = Instant.now()
        if found is None:
            return None
        return Held(self._parsed(request_key, found), found.etag, found.age_seconds, read_at)

    def read_many(
        self, request_keys: Iterable[str], *, read_ahead: int = READ_AHEAD
    ) -> Iterator[Held | EntryDamaged]:
        """The entries of requests that have one, in order; at most `read_ahead` in memory.

        In place of one that cannot be read comes the error: such a request may have been paid for.
        """
        keys = iter(leave_out_absent(self._store, list(request_keys)))
        readers = ThreadPoolExecutor(ENTRY_READERS)
        try:
            while some := list(islice(keys, read_ahead)):
                yield from (
                    held for held in readers.map(self._read_or_error, some) if held is not None
                )
        finally:
            # An interrupt must not wait for a million reads.
            readers.shutdown(cancel_futures=True)

    def _read_or_error(self, request_key: str) -> Held | EntryDamaged | None:
        try:
            return self.read(request_key)
        except EntryDamaged as error:
            return error

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
        """Begin an attempt, in one write; None if somebody else was quicker, or the entry changed.

        `held` is the entry as it was read; None to claim a request that was never tried, and to
        create the entry `fresh`. The claim stands for `lease_seconds` without a sign of life.
        `rebuy` allows it for a request in doubt or lost.

        Raises:
            ForbiddenTransition: the entry is in a state that allows no attempt.
        """
        before = held.entry if held else fresh
        claimed = before.claim(run_id=run_id, nonce=nonce, lease_seconds=lease_seconds, rebuy=rebuy)
        return self._write(claimed, held.etag if held else None, self._patience)

    def apply(
        self, held: Held, change: Callable[[Entry], Entry], *, patience_seconds: float | None = None
    ) -> Held:
        """Take one of `Entry`'s steps; after a lost race again, on the newer entry.

        It goes on for `patience_seconds` (the ledger's own if None) while S3 is silent, or others
        are quicker.

        Raises:
            ForbiddenTransition: the newer entry does not allow the step.
        """
        patience = self._patience if patience_seconds is None else patience_seconds
        key = ledger_key(held.entry.request_key)
        back_off = cas.contention(self._store.uri(key), patience)
        while True:
            written = self._write(change(held.entry), held.etag, patience)
            if written is not None:
                return written
            back_off()
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
            return self.apply(held, change, patience_seconds=self._paid_patience)
        except ForbiddenTransition as error:
            log.warning("nothing to record: %s", error)
            return self.read(held.entry.request_key) or held

    def expire(self, held: Held) -> Held:
        """Put a claim whose lease ran out in doubt: its owner may have sent it before it died."""
        claim = held.entry.deciding
        if claim is None or claim.outcome is not Outcome.SUBMITTING or held.expires_in > 0:
            return held
        doubted = held.entry.doubt(claim.nonce, f"run {claim.run_id} ended while it was sending")
        written = self._write(doubted, held.etag, self._patience)
        # Somebody who is alive has renewed, answered or expired it: theirs is the newer truth.
        return written or self.read(held.entry.request_key) or held

    def _write(self, entry: Entry, etag: str | None, patience_seconds: float) -> Held | None:
        key = ledger_key(entry.request_key)
        done = cas.write(self._store, key, entry.to_json(), etag, patience_seconds=patience_seconds)
        if isinstance(done, cas.Won):
            return Held(entry, done.etag, 0.0, done.sent_at)
        if done is not None:
            self._parsed(entry.request_key, done)  # raises if it is damaged
        return None

    def _parsed(self, request_key: str, found: StoredObject) -> Entry:
        where = self._store.uri(ledger_key(request_key))
        try:
            entry = Entry.from_json(found.body, where)
        except StorageError as error:
            raise EntryDamaged(str(error), request_key) from error
        if entry.request_key != request_key:
            text = f"{where} is the entry of {entry.request_key}: {cas.RESTORE}"
            raise EntryDamaged(text, request_key)
        return entry
