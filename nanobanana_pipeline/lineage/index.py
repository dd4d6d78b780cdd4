"""The index: which requests, cells and releases a picture belongs to, without a scan.

``index/current.json`` names segments: Parquet files sorted by what is looked up (see `rows.Order`),
made of the manifests in force and of releases. It is only a shortcut: all that it says can be read
from those again, and what is newer than it is read from them.

A lookup reads the end of a file, and of its row groups those that may hold the value. Rows of
tables that are not in force any more are passed over.
"""

import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import TypeAdapter

from nanobanana_pipeline.bucket_keys import index_key
from nanobanana_pipeline.errors import StorageError, StorageUnavailable
from nanobanana_pipeline.lineage.in_force import InForce, moved, pointers, read_moved
from nanobanana_pipeline.lineage.ranged import RangedFile
from nanobanana_pipeline.lineage.rows import VALUE, Order, key_of, plain, rows_of
from nanobanana_pipeline.storage import ObjectStore
from nanobanana_pipeline.storage.versioned import read_pointer

__all__ = [
    "REMEDY",
    "CurrentIndex",
    "IndexFile",
    "Segment",
    "TraceIndex",
    "open_index",
    "read_index",
]

SCHEMA: Final = 1
REMEDY: Final = "make the index anew with nanobanana index refresh --rebuild"
FEW: Final = 32
"""So many partitions and datasets that are newer than the index are read while one waits."""
PART_READERS: Final = 8
GROUPS_AT_ONCE: Final = 16


@dataclass(frozen=True)
class IndexFile:
    """One sorted file.

    Attributes:
        order: what its rows are found by.
        key: where it lies, below the prefix.
        size: bytes.
        first, last: of its rows' ``k``.
    """

    order: Order
    key: str
    size: int
    first: int
    last: int


@dataclass(frozen=True)
class Segment:
    """Files made of the same tables.

    Attributes:
        tables: their keys, in the order of the rows' column ``table``.
        rows: of all these tables.
        files: by order and ``k``.
    """

    tables: tuple[str, ...]
    rows: int
    files: tuple[IndexFile, ...]


@dataclass(frozen=True)
class CurrentIndex:
    """What `index/current.json` says.

    Attributes:
        in_force: the manifests and releases that the segments cover.
        segments: the largest first.
        created: when, by the worker's clock (UTC, ISO 8601).
    """

    in_force: InForce
    segments: tuple[Segment, ...]
    created: str
    schema: int = SCHEMA


_INDEX: Final = TypeAdapter(CurrentIndex)


def read_index(store: ObjectStore) -> tuple[CurrentIndex | None, str | None]:
    """The index in force and the ETag of its `current.json`; (None, None) if none.

    Raises:
        StorageError: it is damaged or was written by a newer version.
    """
    key = index_key("current.json")
    return read_pointer(
        store, key, lambda **said: _INDEX.validate_python(said), SCHEMA, remedy=REMEDY
    )


class TraceIndex:
    """All that is known, to be asked. Safe to share between threads.

    Args:
        store: the bucket.
        in_force: rows of other tables are passed over.
        segments: of the index.
        newer: keys of tables that no segment covers; they are read at the first question.
        behind: how many partitions and datasets have changed, and are not among these tables.
        created: when the index was made; None if there is none.
    """

    def __init__(
        self,
        store: ObjectStore,
        in_force: InForce,
        segments: Sequence[Segment] = (),
        *,
        newer: Sequence[str] = (),
        behind: int = 0,
        created: str | None = None,
    ) -> None:
        self._store = store
        self._segments = segments
        self._tables = in_force.tables()
        self._in_memory: dict[Order, list[tuple[str, pa.Table]]] | None = None
        self._reading = threading.Lock()
        self.in_force = in_force
        self.newer = tuple(newer)
        self.behind = behind
        self.created = created

    @property
    def behind_text(self) -> str:
        """What to know where the index is behind; "" where it is not."""
        if not self.behind:
            return ""
        if self.created is None:
            return (
                "there is no index yet (partitions and datasets that it would cover: "
                f"{self.behind:,}): make it with nanobanana index refresh"
            )
        return (
            f"the index is of {self.created}; partitions and datasets changed since: "
            f"{self.behind:,}. Bring it up to date with nanobanana index refresh"
        )

    def find(self, order: Order, values: Iterable[str]) -> list[dict[str, Any]]:
        """The rows of these values; `of` is their `PublishedPartition` or `PublishedRelease`.

        Raises:
            StorageError: a file of the index is missing or damaged; the text says how to mend it.
        """
        wanted = set(values)
        keys = np.array(sorted({key_of(order, value) for value in wanted}), np.uint64)
        if not len(keys):
            return []
        found: list[tuple[str, dict[str, Any]]] = []
        files = [
            (segment, file)
            for segment in self._segments
            for file in segment.files
            if file.order is order
            and np.searchsorted(keys, np.uint64(file.first))
            < np.searchsorted(keys, np.uint64(file.last), side="right")
        ]
        with ThreadPoolExecutor(PART_READERS) as pool:
            parts = pool.map(lambda each: (each[0], _read_file(self._store, each[1], keys)), files)
            for segment, rows in parts:
                found += [(segment.tables[row["table"]], row) for row in rows]
        for table, rows in self._newer_rows(order):
            found += [(table, row) for row in _matching(rows, keys)]
        column = VALUE[order]
        return [
            {**row, "of": self._tables[table]}
            for table, row in ((table, plain(row)) for table, row in found)
            if table in self._tables and row[column] in wanted
        ]

    def _newer_rows(self, order: Order) -> list[tuple[str, pa.Table]]:
        with self._reading:
            if self._in_memory is None:
                self._in_memory = {each: [] for each in Order}
                with ThreadPoolExecutor(PART_READERS) as pool:
                    read = pool.map(lambda table: rows_of(self._store, table, 0), self.newer)
                    for table, rows in zip(self.newer, read, strict=True):
                        for each, part in rows.items():
                            self._in_memory[each].append((table, part))
        return self._in_memory[order]


def open_index(store: ObjectStore) -> TraceIndex:
    """The index, and what is newer than it.

    Where more than `FEW` partitions and datasets have changed, the index is taken as it is.

    Raises:
        StorageError: it is damaged; the text says how to mend it.
    """
    with ThreadPoolExecutor(1) as pool:
        listing = pool.submit(pointers, store)
        current, _ = read_index(store)
        now = listing.result()
    in_force = current.in_force if current else InForce()
    segments = current.segments if current else ()
    created = current.created if current else None
    changed = moved(in_force, now)
    if len(changed) > FEW:
        return TraceIndex(store, in_force, segments, behind=len(changed), created=created)
    in_force = read_moved(store, in_force, changed)
    covered = {table for segment in segments for table in segment.tables}
    newer = [table for table in in_force.tables() if table not in covered]
    return TraceIndex(store, in_force, segments, newer=newer, created=created)


def _read_file(
    store: ObjectStore, file: IndexFile, keys: np.ndarray[Any, np.dtype[np.uint64]]
) -> list[dict[str, Any]]:
    """The rows of one file that may have one of these keys."""
    source = RangedFile(store, file.key, file.size)
    try:
        table = pq.ParquetFile(source)
        found = []
        for groups in _runs(_groups(table.metadata, keys)):
            source.fetch(*_span(table.metadata, groups))
            found += _matching(table.read_row_groups(groups, use_threads=False), keys)
    except StorageUnavailable:
        raise
    except (pa.ArrowException, OSError, StorageError) as error:
        raise StorageError(f"{store.uri(file.key)} cannot be read ({error}): {REMEDY}") from error
    else:
        return found


def _groups(metadata: Any, keys: np.ndarray[Any, np.dtype[np.uint64]]) -> Iterator[int]:  # noqa: ANN401 - pyarrow
    """The row groups whose statistics do not rule all keys out."""
    for number in range(metadata.num_row_groups):
        known = metadata.row_group(number).column(0).statistics
        first, last = np.uint64(known.min), np.uint64(known.max)
        if np.searchsorted(keys, first) < np.searchsorted(keys, last, side="right"):
            yield number


def _runs(groups: Iterable[int]) -> Iterator[list[int]]:
    """Neighbours together, so that they are fetched at once."""
    run: list[int] = []
    for group in groups:
        if run and (group != run[-1] + 1 or len(run) == GROUPS_AT_ONCE):
            yield run
            run = []
        run.append(group)
    if run:
        yield run


def _span(metadata: Any, groups: Sequence[int]) -> tuple[int, int]:  # noqa: ANN401 - pyarrow
    """Where the bytes of these row groups begin and end in the file."""
    chunks = [
        metadata.row_group(group).column(column)
        for group in groups
        for column in range(metadata.num_columns)
    ]
    starts = [chunk.dictionary_page_offset or chunk.data_page_offset for chunk in chunks]
    ends = [
        start + chunk.total_compressed_size for start, chunk in zip(starts, chunks, strict=True)
    ]
    return min(starts), max(ends)


def _matching(rows: pa.Table, keys: np.ndarray[Any, np.dtype[np.uint64]]) -> list[dict[str, Any]]:
    # Not `pa.array`, which imports pandas, and that takes longer than the lookup.
    wanted = pa.Array.from_buffers(pa.uint64(), len(keys), [None, pa.py_buffer(keys)])
    found: list[dict[str, Any]] = rows.filter(pc.is_in(rows["k"], value_set=wanted)).to_pylist()
    return found
