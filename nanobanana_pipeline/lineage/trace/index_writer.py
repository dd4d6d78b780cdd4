"""Builds and updates the trace index: `refresh_index`.

A refresh reads only tables that have changed since the last one, and makes a segment of them. It
merges into it every segment that is not much larger, or mostly outdated. So there are few segments,
each twice as large as all smaller ones together, and a row is rewritten only when the index
doubles.

Rows are distributed to local files by the first bits of their sort key, and sorted a file at a
time: memory is bounded by one file, or by one manifest if that is larger.
"""

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nanobanana_pipeline.audit.read_ahead import AuditProgress, read_ahead
from nanobanana_pipeline.bucket_keys import index_key
from nanobanana_pipeline.ledger import new_nonce, now_iso
from nanobanana_pipeline.lineage.trace.current_tables import CurrentTables, list_pointers
from nanobanana_pipeline.lineage.trace.index_reader import (
    SCHEMAS,
    STORED_INDEX,
    IndexFile,
    LookupOrder,
    Segment,
    StoredIndex,
    read_index,
    read_index_rows,
)
from nanobanana_pipeline.storage import ObjectStore
from nanobanana_pipeline.storage.cas import contention, refuse_newer
from nanobanana_pipeline.storage.versioned import swap_pointer

__all__ = ["refresh_index"]

FILE_ROWS: Final = 2**18
MAX_FILES: Final = 64
"""Of one order in one segment; all are open at once."""
INDEX_GROUP_ROWS: Final = 4096
"""The smallest read of a lookup: about 400 kB."""
TABLE_READERS: Final = 2
LEFTOVER_SECONDS: Final = 86_400
"""Files that the index does not name are deleted after a day; no lookup takes so long."""


@dataclass(frozen=True)
class IndexCoverage:
    """Counts of what the index covers after a refresh; `read`: rows that the refresh has read."""

    partitions: int
    releases: int
    rows: int
    read: int
    segments: int


def refresh_index(
    store: ObjectStore, *, rebuild: bool = False, on_progress: AuditProgress = lambda *_: None
) -> IndexCoverage:
    """Update the index, or rebuild it from all tables, even if the stored one is damaged.

    `on_progress` is called with the number of tables read.

    Raises:
        StorageError: the index is damaged (not with `rebuild`), or of a newer version; or a
            manifest is.
    """
    back_off = contention(store.uri(index_key("current.json")))
    while True:
        before, etag = _read(store, rebuild=rebuild)
        tables = before.in_force if before else CurrentTables()
        changed = tables.changed(list_pointers(store))
        tables = tables.updated(store, changed)
        rows = {key: table.rows for key, table in tables.by_table().items()}
        kept, todo = _plan(before.segments if before else (), rows)
        read = sum(rows[table] for table in todo)
        if before is not None and not changed and not todo:
            return _coverage(before, read)
        new = [_write(store, todo, rows, on_progress)] if todo else []
        segments = sorted([*kept, *new], key=lambda segment: -segment.rows)
        after = StoredIndex(tables, tuple(segments), now_iso())
        body: dict[str, Any] = STORED_INDEX.dump_python(after, mode="json")
        if swap_pointer(store, index_key("current.json"), body, etag):
            _delete_leftovers(store, after)
            return _coverage(after, read)
        back_off()


def _read(store: ObjectStore, *, rebuild: bool) -> tuple[StoredIndex | None, str | None]:
    if not rebuild:
        return read_index(store)
    key = index_key("current.json")
    found = store.get(key)
    if found is None:
        return None, None
    with suppress(ValueError, KeyError, TypeError):  # a damaged one is replaced
        refuse_newer(store.uri(key), int(json.loads(found.body)["schema"]), StoredIndex.schema)
    return None, found.etag


def _plan(segments: Sequence[Segment], rows: Mapping[str, int]) -> tuple[list[Segment], list[str]]:
    """The segments that stay, and the tables of the new one."""
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
            read = read_ahead(
                lambda each: read_index_rows(store, each[1], each[0]),
                enumerate(tables),
                TABLE_READERS,
            )
            for number, parts in enumerate(read, 1):
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


class _Spool(ExitStack):
    """Rows of every order in local files, distributed by the first bits of ``k``."""

    def __init__(self, folder: Path, rows: int) -> None:
        super().__init__()
        wanted = -(-rows // FILE_ROWS)
        self._bits = min(max(wanted - 1, 0).bit_length(), MAX_FILES.bit_length() - 1)
        self._folder = folder
        self._files: dict[tuple[LookupOrder, int], Any] = {}

    def add(self, order: LookupOrder, rows: pa.Table) -> None:
        # Two shifts, since one by 64 bits is undefined.
        numbers = rows["k"].to_numpy() >> np.uint64(63 - self._bits) >> np.uint64(1)
        for number in np.unique(numbers).tolist():
            if (order, number) not in self._files:
                file = self.enter_context(pa.OSFile(str(self._path(order, number)), "wb"))
                stream = self.enter_context(pa.ipc.new_stream(file, SCHEMAS[order]))
                self._files[order, number] = stream
            self._files[order, number].write_table(rows.filter(numbers == number))

    def sorted(self) -> Iterator[tuple[LookupOrder, int, pa.Table]]:
        """Each file's rows, sorted; to be called after the last `add`."""
        for order, number in sorted(self._files):
            path = self._path(order, number)
            with pa.memory_map(str(path)) as file:
                rows = pa.ipc.open_stream(file).read_all()
                if len(rows):
                    yield order, number, rows.sort_by("k")
            path.unlink()

    def _path(self, order: LookupOrder, number: int) -> Path:
        return self._folder / f"{order}-{number}"


def _parquet(rows: pa.Table) -> bytes:
    body = pa.BufferOutputStream()
    texts = [field.name for field in rows.schema if field.type == pa.string()]
    pq.write_table(
        rows,
        body,
        compression="zstd",
        row_group_size=INDEX_GROUP_ROWS,
        # Hashes do not repeat; only statistics of the sort key skip row groups.
        use_dictionary=[*texts, "table"],
        write_statistics=["k"],
    )
    return bytes(body.getvalue())


def _delete_leftovers(store: ObjectStore, index: StoredIndex) -> None:
    """Delete old files that the index does not name. The index can always be rebuilt."""
    named = {file.key for segment in index.segments for file in segment.files}
    named.add(index_key("current.json"))
    for listed in store.listing(index_key("")):
        if listed.key not in named and listed.age_seconds > LEFTOVER_SECONDS:
            store.delete(listed.key)


def _coverage(index: StoredIndex, read: int) -> IndexCoverage:
    return IndexCoverage(
        partitions=len(index.in_force.partitions),
        releases=len(index.in_force.releases),
        rows=sum(table.rows for table in index.in_force.by_table().values()),
        read=read,
        segments=len(index.segments),
    )
