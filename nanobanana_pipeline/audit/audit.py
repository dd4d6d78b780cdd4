"""Whether ledger, images, manifests, features, runs and counters agree. It only reads.

The order is part of it: manifests are read as they were before the ledger, and images are listed
after it. Pictures are stored before entries name them, and entries settle before manifests say so;
so what is under way is never taken for a fault.
"""

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from nanobanana_pipeline.audit.cross_reference import AuditIndex, Mismatch
from nanobanana_pipeline.audit.features import check_features
from nanobanana_pipeline.audit.pictures import list_images, read_images
from nanobanana_pipeline.audit.read_ahead import AuditProgress, list_entries, read_entries
from nanobanana_pipeline.audit.releases import check_builds
from nanobanana_pipeline.audit.report import UNSETTLED_STATES, AuditReport, FindingKind, Unsettled
from nanobanana_pipeline.audit.runs import check_reservations, check_runs
from nanobanana_pipeline.bucket_keys import Folder, ledger_key, manifest_prefix
from nanobanana_pipeline.errors import StorageError, StorageUnavailable
from nanobanana_pipeline.generation.budget.reclaim import EXPIRED_SECONDS
from nanobanana_pipeline.generation.manifest.manifest import (
    CellState,
    CurrentManifest,
    open_manifest,
    read_current,
)
from nanobanana_pipeline.generation.manifest.rows import CELL_OF
from nanobanana_pipeline.ledger import Attempt, Held, State
from nanobanana_pipeline.provider.account import PROVIDER
from nanobanana_pipeline.storage import ObjectStore
from nanobanana_pipeline.storage.cas import RESTORE
from nanobanana_pipeline.wording import time_text

__all__ = ["audit"]

EXPIRING: Final = timedelta(hours=6)
EXAMPLES: Final = 3
ROWS: Final = ["request_key", "sample", "state", "image_sha256"]


def audit(
    store: ObjectStore,
    *,
    partition: tuple[str, int] | None = None,
    requests: int | None = None,
    sample: int | None = 100,
    on_progress: AuditProgress = lambda _what, _count: None,
) -> AuditReport:
    """Look whether everything in the bucket agrees.

    Args:
        store: the bucket.
        partition: keep to one prompt set and seed: its manifest, the entries that this names, and
            a sample of their pictures. What nobody names, runs and counters are left out.
        requests: how many of its requests are compared, always the same ones (None: all).
        sample: how many pictures are read whole and hashed, always the same ones (None: all).
        on_progress: called now and then from this thread.
    """
    with AuditIndex() as index:
        work = _Audit(store, index, on_progress)
        manifests = list(work.find_manifests(partition))
        if partition is None:
            work.read_ledger(list_entries(store, work.note_stranger))
            changed = {(m.prompt_set, m.seed): changed for m, changed in manifests}
            busy = check_runs(store, index, work.report, changed)
        else:
            for manifest, _ in manifests:
                work.read_ledger(work.choose(manifest, requests))
            busy = frozenset()
        for manifest, _ in manifests:
            is_busy = (manifest.prompt_set, manifest.seed) in busy
            work.compare_manifest(manifest, is_busy=is_busy)
        if partition is None:
            list_images(store, index, work.report, on_progress)
            check_features(store, work.report)
            check_reservations(store, work.report)
            check_builds(store, work.report)
        listed = partition is None
        read_images(store, index, work.report, on_progress, sample=sample, listed=listed)
        return work.report


class _Audit:
    def __init__(self, store: ObjectStore, index: AuditIndex, on_progress: AuditProgress) -> None:
        self.report = AuditReport()
        self._store = store
        self._index = index
        self._on_progress = on_progress
        self._chosen: pa.Array | None = None
        self._compared = 0

    def find_manifests(
        self, partition: tuple[str, int] | None
    ) -> Iterator[tuple[CurrentManifest, datetime]]:
        """Current manifests, and when each `current.json` was last changed (S3's clock)."""
        prefix = Folder.MANIFESTS.prefix if partition is None else manifest_prefix(*partition)
        for found in self._store.listing(prefix):
            folder, _, leaf = found.key.rpartition("/")
            if leaf != "current.json":
                continue
            try:
                _, name, seed = folder.split("/")
                current, _ = read_current(self._store, name, int(seed.removeprefix("seed=")))
            except StorageUnavailable:
                raise
            except (StorageError, ValueError) as error:
                self.report.add(FindingKind.UNREADABLE, found.key, f"{error}; {RESTORE}")
                continue
            if current is not None:
                yield current, found.last_modified

    def note_stranger(self, key: str) -> None:
        text = "this is no name of a ledger entry: move it out of ledger/"
        self.report.add(FindingKind.UNREADABLE, key, text)

    def read_ledger(self, request_keys: Iterable[str]) -> None:
        for count, (request_key, found) in enumerate(read_entries(self._store, request_keys), 1):
            if isinstance(found, Held):
                self._index.add_entry(found.entry, found.age_seconds)
                self._look_at(found)
            elif found is not None:
                self._index.add_unreadable(request_key)
                text = f"{found}; {RESTORE}. Until then its request is neither bought nor brought"
                self.report.add(FindingKind.UNREADABLE, ledger_key(request_key), text)
            self._on_progress("ledger entries", count)

    def _look_at(self, held: Held) -> None:
        entry, attempt = held.entry, held.entry.deciding
        self.report.states[entry.state] += 1
        if attempt is None:
            return
        key = ledger_key(entry.request_key)
        if entry.state in UNSETTLED_STATES:
            self.report.add_unsettled(
                Unsettled(
                    entry.state, entry.request_key, attempt.run_id, entry.reason, held.age_seconds
                )
            )
        elif entry.state is State.ACCEPTED:
            left = _time_left(attempt)
            if left < EXPIRING:
                self.report.add(FindingKind.ACCEPTANCE_EXPIRING, key, _expiring_text(attempt, left))
        elif entry.state is State.SUBMITTING and held.expires_in < -EXPIRED_SECONDS:
            text = (
                f"run {attempt.run_id} claimed it, and its lease ran out "
                f"{time_text(-held.expires_in)} ago: launch its partition again, which looks for "
                "evidence and holds it in doubt where there is none"
            )
            self.report.add(FindingKind.CLAIM_ABANDONED, key, text)

    def choose(self, current: CurrentManifest, requests: int | None) -> list[str]:
        """Keep to so many requests of a manifest: those of the least keys, which are hashes."""
        chosen: list[str] = []
        try:
            for rows in open_manifest(self._store, current.manifest, ["request_key", "state"]):
                is_asked = pc.not_equal(rows["state"], CellState.NOT_REQUESTED.value)
                asked = rows["request_key"].filter(is_asked).to_pylist()
                chosen = sorted({*chosen, *asked})[:requests]
        except StorageUnavailable:
            raise
        except StorageError:
            chosen = []  # told where the manifest is compared
        self._chosen = pa.array(chosen, pa.string())
        return chosen

    def _rows(self, current: CurrentManifest) -> Iterator[tuple[str, int, str, str | None]]:
        self._compared = 0
        for some in open_manifest(self._store, current.manifest, ROWS):
            keys, chosen = some["request_key"], self._chosen
            rows = some if chosen is None else some.filter(pc.is_in(keys, value_set=chosen))
            self._compared += len(rows)
            yield from zip(*(column.to_pylist() for column in rows.columns), strict=True)

    def compare_manifest(self, current: CurrentManifest, *, is_busy: bool) -> None:
        self.report.manifests += 1
        wrong, behind = _Examples(), _Examples()
        try:
            for found in self._index.compare(self._rows(current)):
                kind = _judge(found)
                if kind is not None:
                    (wrong if kind is FindingKind.MANIFEST_WRONG else behind).add(found)
        except StorageUnavailable:
            raise
        except StorageError:
            text = (
                f"the current manifest is missing or damaged: {RESTORE}; or move its "
                "current.json away and launch the partition with the parameters named there, "
                "which buys nothing that the ledger knows"
            )
            self.report.add(FindingKind.UNREADABLE, current.manifest, text)
            return
        if wrong.count:
            text = (
                f"{wrong} of {self._compared:,}. The ledger counts: restore the entries that it "
                "lost (a request without an entry may be bought again); where it is right, move "
                "current.json away and launch the partition with the parameters named there"
            )
            self.report.add(FindingKind.MANIFEST_WRONG, current.manifest, text)
        if behind.count and not is_busy and self._is_current(current):
            text = (
                f"{behind} of {self._compared:,}: the ledger has moved on, as when another "
                "partition has bought the same requests. No disagreement: launch the partition "
                "again to account for it; with max_images 0 that buys nothing"
            )
            self.report.add(FindingKind.MANIFEST_BEHIND, current.manifest, text)

    def _is_current(self, before: CurrentManifest) -> bool:
        now, _ = read_current(self._store, before.prompt_set, before.seed)
        return now is not None and now.manifest == before.manifest


class _Examples:
    """Counts mismatches, and keeps the first few for people."""

    def __init__(self) -> None:
        self.count = 0
        self._first: list[str] = []

    def add(self, found: Mismatch) -> None:
        self.count += 1
        if len(self._first) < EXAMPLES:
            ledger = "no entry" if found.state is None else found.state
            same = "" if ledger != found.cell_state else " with another picture"
            self._first.append(
                f"request {found.request_key}, sample {found.sample}: {found.cell_state} in the "
                f"manifest, {ledger}{same} in the ledger"
            )

    def __str__(self) -> str:
        return f"{'; '.join(self._first)}; rows in all: {self.count:,}"


def _judge(found: Mismatch) -> FindingKind | None:
    """Whether a row of a manifest says what was never so, or what is so no more, or nothing."""
    cell = CellState(found.cell_state)
    if cell is CellState.NOT_REQUESTED:
        return None
    if found.state in {None, State.OPEN} and cell in {CellState.PENDING, CellState.OVER_BUDGET}:
        return None
    if found.state is None or cell is CellState.SETTLED:
        return FindingKind.MANIFEST_WRONG
    is_same = CELL_OF.get(State(found.state)) is cell and found.cell_sha256 == found.sha256
    return None if is_same else FindingKind.MANIFEST_BEHIND


def _time_left(attempt: Attempt) -> timedelta:
    since = datetime.fromisoformat(attempt.accepted or attempt.started)
    return since + timedelta(seconds=PROVIDER.kept_seconds) - datetime.now(UTC)


def _expiring_text(attempt: Attempt, left: timedelta) -> str:
    seconds = left.total_seconds()
    if seconds > 0:
        end, then = f"end in {time_text(seconds)}", "now, which brings it"
    else:
        end, then = f"ended {time_text(-seconds)} ago", "to see what can still be had"
    return (
        f"run {attempt.run_id} bought it (provider id {attempt.provider_id or 'unknown'}), and the "
        f"provider's {PROVIDER.kept_seconds // 3600} hours {end}: launch its partition again {then}"
    )
