"""Making the index, and keeping it up to date.

A refresh reads only what has changed since the last one, and makes a segment of it. A segment that
is not much larger than what is to be written, or of which most is out of date, is made anew along
with it, from its tables; so there are ever few segments, each twice as large as all smaller ones,
and a row is written again only as often as the index doubles.

Rows are dealt out to files on the local disk by the first bits of what they are sorted by, and
sorted a file at a time: memory is bounded by one file, or by one manifest where that is larger.
"""

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter

from nanobanana_pipeline.audit.read_ahead import AuditProgress, read_ahead
from nanobanana_pipeline.bucket_keys import index_key
from nanobanana_pipeline.ledger import new_nonce, now_iso
from nanobanana_pipeline.lineage.in_force import InForce, moved, pointers, read_moved
from nanobanana_pipeline.lineage.index import CurrentIndex, IndexFile, Segment, read_index
from nanobanana_pipeline.lineage.rows import SCHEMAS, Order, rows_of
from nanobanana_pipeline.storage import ObjectStore
from nanobanana_pipeline.storage.cas import contention, refuse_newer
from nanobanana_pipeline.storage.versioned import swap_pointer

__all__ = ["RefreshedIndex", "refresh"]

ROWS_OF_A_FILE: Final = 2**18
MOST_FILES: Final = 64
"""Of one order in one segment: so many are open at once."""
ROWS_OF_A_GROUP: Final = 4096
"""What a lookup reads at least: some 400 kB."""
TABLE_READERS: Final = 2
LEFTOVER_SECONDS: Final = 86_400
"""Files that no index names are deleted after so long: nobody reads them any more."""

_INDEX: Final = TypeAdapter(CurrentIndex)


@dataclass(frozen=True)
class RefreshedIndex:
    """What a refresh has done.

    Attributes:
        partitions, releases: that the index covers now.
        rows: of their manifests.
        read: rows of the manifests that were read for it.
        segments: how many there are.
    """

    partitions: int
    releases: int
    rows: int
    read: int
    segments: int


def refresh(
    store: ObjectStore, *, rebuild: bool = False, on_progress: AuditProgress = lambda *_: None
) -> RefreshedIndex:
    """Bring the index up to date, or make it anew.

    Args:
        store: the bucket.
        rebuild: read everything again, whatever lies there.
        on_progress: told how many tables have been read.

    Raises:
        StorageError: the index is damaged (not with `rebuild`), or of a newer version; or a
            manifest is.
        ReleaseError: a release is damaged.
    """
    back_off = contention(store.uri(index_key("current.json")))
    while True:
        before, etag = _read(store, rebuild=rebuild)
        in_force = before.in_force if before else InForce()
        changed = moved(in_force, pointers(store))
        in_force = read_moved(store, in_force, changed)
        rows = {key: table.rows for key, table in in_force.tables().items()}
        kept, todo = _plan(before.segments if before else (), rows)
        read = sum(rows[table] for table in todo)
        if before is not None and not changed and not todo:
            return _told(before, read)
        made = [_write(store, todo, rows, on_progress)] if todo else []
        segments = sorted([*kept, *made], key=lambda segment: -segment.rows)
        now = CurrentIndex(in_force, tuple(segments), now_iso())
        body: dict[str, Any] = _INDEX.dump_python(now, mode="json")
        if swap_pointer(store, index_key("current.json"), body, etag):
            _sweep(store, now)
            return _told(now, read)
        back_off()


def _read(store: ObjectStore, *, rebuild: bool) -> tuple[CurrentIndex | None, str | None]:
    if not rebuild:
        return read_index(store)
    key = index_key("current.json")
    found = store.get(key)
    if found is None:
        return None, None
    with suppress(ValueError, KeyError, TypeError):  # a damaged one is replaced
        refuse_newer(store.uri(key), int(json.loads(found.body)["schema"]), CurrentIndex.schema)
    return None, found.etag


def _plan(segments: Sequence[Segment], rows: Mapping[str, int]) -> tuple[list[Segment], list[str]]:
    """Which segments stay as they are, and which tables go into a new one."""
    covered = {table for segment in segments for table in segment.tables}
    todo = [table for table in rows if table not in covered]
    count = sum(rows[table] for table in todo)
    kept = []
    for segment in sorted(segments, key=lambda segment: segment.rows):
        alive = [table for table in segment.tables if table in rows]
        living = sum(rows[table] for table in alive)
        if segment.rows > 2 * count and 2 * living > segment.rows:
            kept.append(segment)
        else:
            todo += alive
            count += living
    return kept, todo


def _write(
    store: ObjectStore, tables: Sequence[str], rows: Mapping[str, int], on_progress: AuditProgress
) -> Segment:
    count = sum(rows[table] for table in tables)
    files: list[IndexFile] = []
    with tempfile.TemporaryDirectory(prefix="nanobanana-index-") as folder:
        with _Spool(Path(folder), count) as spool:
            found = read_ahead(
                lambda each: rows_of(store, each[1], each[0]), enumerate(tables), TABLE_READERS
            )
            for number, parts in enumerate(found, 1):
                for order, part in parts.items():
                    spool.add(order, part)
                on_progress("manifests", number)
        name = new_nonce()
        for order, number, part in spool.sorted():
            key = index_key(f"{name}/{order}-{number:02d}.parquet")
            body = _parquet(part)
            store.put(key, body, content_type="application/vnd.apache.parquet")
            first, last = part["k"][0].as_py(), part["k"][-1].as_py()
            files.append(IndexFile(order, key, len(body), first, last))
    return Segment(tuple(tables), count, tuple(files))


class _Spool:
    """Rows of every order, dealt out by their first bits, on disk."""

    def __init__(self, folder: Path, rows: int) -> None:
        wanted = -(-rows // ROWS_OF_A_FILE)
        self._bits = min(max(wanted - 1, 0).bit_length(), MOST_FILES.bit_length() - 1)
        self._folder = folder
        self._files: dict[tuple[Order, int], Any] = {}
        self._open = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open.close()

    def add(self, order: Order, rows: pa.Table) -> None:
        # Shifting 64 bits by 64 is undefined: in two steps it gives 0.
        numbers = rows["k"].to_numpy() >> np.uint64(63 - self._bits) >> np.uint64(1)
        for number in np.unique(numbers).tolist():
            self._append(order, number, rows.filter(numbers == number))

    def _append(self, order: Order, number: int, rows: pa.Table) -> None:
        if (order, number) not in self._files:
            file = pa.OSFile(str(self._path(order, number)), "wb")
            self._open.enter_context(file)
            self._files[order, number] = self._open.enter_context(
                pa.ipc.new_stream(file, SCHEMAS[order])
            )
        self._files[order, number].write_table(rows)

    def sorted(self) -> Iterator[tuple[Order, int, pa.Table]]:
        """Each file's rows in order, once all are there."""
        for order, number in sorted(self._files):
            path = self._path(order, number)
            with pa.memory_map(str(path)) as file:
                rows = pa.ipc.open_stream(file).read_all()
                if len(rows):
                    yield order, number, rows.sort_by("k")
            path.unlink()

    def _path(self, order: Order, number: int) -> Path:
        return self._folder / f"{order}-{number}"


def _parquet(rows: pa.Table) -> bytes:
    body = pa.BufferOutputStream()
    texts = [field.name for field in rows.schema if field.type == pa.string()]
    pq.write_table(
        rows,
        body,
        compression="zstd",
        row_group_size=ROWS_OF_A_GROUP,
        # Hashes never repeat; only what is sorted by helps to skip.
        use_dictionary=[*texts, "table"],
        write_statistics=["k"],
    )
    return bytes(body.getvalue())


def _sweep(store: ObjectStore, now: CurrentIndex) -> None:
    """Delete what no index has named for long. All of it can be made again."""
    named = {file.key for segment in now.segments for file in segment.files}
    named.add(index_key("current.json"))
    for found in store.listing(index_key("")):
        if found.key not in named and found.age_seconds > LEFTOVER_SECONDS:
            store.delete(found.key)


def _told(now: CurrentIndex, read: int) -> RefreshedIndex:
    return RefreshedIndex(
        partitions=len(now.in_force.partitions),
        releases=_count(now.in_force),
        rows=sum(table.rows for table in now.in_force.tables().values()),
        read=read,
        segments=len(now.segments),
    )


def _count(in_force: InForce) -> int:
    return sum(len(dataset.releases) for dataset in in_force.datasets.values())
