"""`TraceIndex`: looks up an image's, prompt's or request's rows without reading all manifests.

``index/current.json`` (`StoredIndex`) names segments: Parquet files of columns of current manifests
and releases, in one `LookupOrder` for each lookup. The index is a cache: all its rows can be read
from those tables again, and tables newer than the index are read directly.

Every order is sorted by its column ``k``, a 64-bit number: the first 8 bytes of the hash that is
looked up, or of the SHA-256 of another text. Numbers compare fast, spread evenly over files, and
make small statistics.

A lookup reads a file's footer and the row groups whose statistics may hold the value. Rows of
tables that are not current any more are skipped.
"""

import hashlib
import io
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import TypeAdapter

from nanobanana_pipeline.bucket_keys import index_key
from nanobanana_pipeline.datasets import release
from nanobanana_pipeline.errors import StorageError, StorageUnavailable
from nanobanana_pipeline.generation.manifest import manifest
from nanobanana_pipeline.lineage.trace.current_tables import CurrentTables, list_pointers
from nanobanana_pipeline.storage import ObjectStore
from nanobanana_pipeline.storage.versioned import read_pointer

__all__ = [
    "INDEXED_COLUMNS",
    "SCHEMAS",
    "STORED_INDEX",
    "IndexFile",
    "LookupOrder",
    "Segment",
    "StoredIndex",
    "TraceIndex",
    "open_index",
    "read_index",
    "read_index_rows",
]

SCHEMA: Final = 1
REBUILD_HINT: Final = "make the index anew with nanobanana index refresh --rebuild"
MAX_UNINDEXED: Final = 32
"""A lookup reads up to so many changed partitions and datasets itself."""
PART_READERS: Final = 8


class LookupOrder(StrEnum):
    """What rows are sorted and looked up by."""

    IMAGE = "image"
    REQUEST = "request"
    PROMPT = "prompt"
    PROVIDER = "provider"
    RELEASE = "release"


HASH: Final = pa.binary(32)
KEYS: Final = [("k", pa.uint64()), ("table", pa.int32())]
CELL: Final = [
    ("prompt_id", pa.string()),
    ("request_key", HASH),
    ("sample", pa.int32()),
    ("state", pa.string()),
    ("image_sha256", HASH),
    ("run_id", pa.string()),
    ("provider_id", pa.string()),
]
SCHEMAS: Final[Mapping[LookupOrder, pa.Schema]] = {
    LookupOrder.IMAGE: pa.schema([*KEYS, ("image_sha256", HASH), ("request_key", HASH)]),
    LookupOrder.REQUEST: pa.schema([*KEYS, *CELL]),
    LookupOrder.PROMPT: pa.schema([*KEYS, *CELL]),
    LookupOrder.PROVIDER: pa.schema([*KEYS, ("provider_id", pa.string()), ("request_key", HASH)]),
    LookupOrder.RELEASE: pa.schema(
        [
            *KEYS,
            ("image_sha256", HASH),
            ("key", pa.string()),
            ("split", pa.string()),
            ("shard", pa.int32()),
        ]
    ),
}
"""Each order's columns; ``table`` is a position in `Segment.tables`."""

LOOKUP_COLUMNS: Final[Mapping[LookupOrder, str]] = {
    LookupOrder.IMAGE: "image_sha256",
    LookupOrder.REQUEST: "request_key",
    LookupOrder.PROMPT: "prompt_id",
    LookupOrder.PROVIDER: "provider_id",
    LookupOrder.RELEASE: "image_sha256",
}
"""The column that each order looks up."""

INDEXED_COLUMNS: Final = [name for name, _ in CELL]
RELEASE_COLUMNS: Final = ["image_sha256", "key", "split", "shard"]
PART_ROWS: Final = 65_536


@dataclass(frozen=True)
class IndexFile:
    """One sorted file: its key below the prefix, its bytes, its smallest and largest ``k``."""

    order: LookupOrder
    key: str
    size: int
    first: int
    last: int


@dataclass(frozen=True)
class Segment:
    """Index files, by order and ``k``, made from the same manifests.

    Attributes:
        tables: keys of manifests; column ``table`` of the rows is a position in it.
        rows: of all these tables.
    """

    tables: tuple[str, ...]
    rows: int
    files: tuple[IndexFile, ...]


@dataclass(frozen=True)
class StoredIndex:
    """The content of `index/current.json`.

    Attributes:
        in_force: the tables that the segments cover.
        segments: the largest first.
        created: when, by the worker's clock (UTC, ISO 8601).
    """

    in_force: CurrentTables
    segments: tuple[Segment, ...]
    created: str
    schema: int = SCHEMA


STORED_INDEX: Final = TypeAdapter(StoredIndex)


def read_index(store: ObjectStore) -> tuple[StoredIndex | None, str | None]:
    """The stored index and the ETag of its `current.json`; (None, None) if there is none.

    Raises:
        StorageError: it is damaged, and the text names the remedy, or of a newer version.
    """
    return read_pointer(
        store,
        index_key("current.json"),
        lambda **fields: STORED_INDEX.validate_python(fields),
        SCHEMA,
        remedy=REBUILD_HINT,
    )


class TraceIndex:
    """Lookups in the stored index (None: there is none) and in `tables` newer than it.

    Rows of other tables are skipped; `stale` says how many changed partitions and datasets are not
    among `tables`. Not safe to share between threads.
    """

    def __init__(
        self, store: ObjectStore, stored: StoredIndex | None, tables: CurrentTables, stale: int
    ) -> None:
        self._store = store
        self._segments = stored.segments if stored else ()
        self._created = stored.created if stored else None
        self._by_table = tables.by_table()
        self.tables = tables
        self.stale = stale
        covered = {table for segment in self._segments for table in segment.tables}
        self.unindexed = () if stale else tuple(t for t in self._by_table if t not in covered)

    @property
    def stale_text(self) -> str:
        """A warning if the index is out of date, with the remedy; else ""."""
        if not self.stale:
            return ""
        if self._created is None:
            return (
                "there is no index yet (partitions and datasets that it would cover: "
                f"{self.stale:,}): make it with nanobanana index refresh"
            )
        return (
            f"the index is of {self._created}; partitions and datasets changed since: "
            f"{self.stale:,}. Bring it up to date with nanobanana index refresh"
        )

    def find(self, order: LookupOrder, values: Iterable[str]) -> list[dict[str, Any]]:
        """Rows of these values; `of` is their `PartitionManifest` or `ReleaseManifest`.

        Raises:
            StorageError: a file of the index is missing or damaged; the text names the remedy.
        """
        wanted = set(values)
        keys = array("Q", sorted({_sort_key(order, value) for value in wanted}))
        if not keys:
            return []
        files = [
            (segment, file)
            for segment in self._segments
            for file in segment.files
            if file.order is order and _may_contain(keys, file.first, file.last)
        ]
        rows: list[tuple[str, dict[str, Any]]] = []
        with ThreadPoolExecutor(PART_READERS) as pool:
            parts = pool.map(lambda each: (each[0], _read_file(self._store, each[1], keys)), files)
            for segment, part in parts:
                rows += [(segment.tables[row["table"]], row) for row in part]
        for table, by_order in self._unindexed_rows:
            if order in by_order:
                rows += [(table, row) for row in _matching(by_order[order], keys)]
        found = (
            {k: v.hex() if isinstance(v, bytes) else v for k, v in row.items()}
            | {"of": self._by_table[table]}
            for table, row in rows
            if table in self._by_table
        )
        return [row for row in found if row[LOOKUP_COLUMNS[order]] in wanted]

    @cached_property
    def _unindexed_rows(self) -> list[tuple[str, dict[LookupOrder, pa.Table]]]:
        """Rows of the tables that no segment covers."""
        with ThreadPoolExecutor(PART_READERS) as pool:
            read = pool.map(lambda table: read_index_rows(self._store, table, 0), self.unindexed)
            return list(zip(self.unindexed, read, strict=True))


def open_index(store: ObjectStore) -> TraceIndex:
    """The stored index, completed by the tables that have changed since.

    If these are more than `MAX_UNINDEXED` partitions and datasets, the index stays stale.

    Raises:
        StorageError: it is damaged; the text names the remedy.
    """
    with ThreadPoolExecutor(1) as pool:
        listing = pool.submit(list_pointers, store)
        stored, _ = read_index(store)
        etags = listing.result()
    tables = stored.in_force if stored else CurrentTables()
    changed = tables.changed(etags)
    if len(changed) > MAX_UNINDEXED:
        return TraceIndex(store, stored, tables, stale=len(changed))
    return TraceIndex(store, stored, tables.updated(store, changed), stale=0)


def read_index_rows(store: ObjectStore, table: str, number: int) -> dict[LookupOrder, pa.Table]:
    """Read the rows of the manifest at this key, by order; `number` fills their ``table``."""
    folder, name, version, *_ = table.split("/")
    if folder == "datasets":
        published = release.read_release(store, name, version)
        rows = release.read_release_arrow(store, published, release.MANIFEST, RELEASE_COLUMNS)
        orders: tuple[LookupOrder, ...] = (LookupOrder.RELEASE,)
    else:
        rows = manifest.read_manifest_arrow(store, table, INDEXED_COLUMNS)
        orders = (LookupOrder.IMAGE, LookupOrder.REQUEST, LookupOrder.PROMPT, LookupOrder.PROVIDER)
    return {order: _rows(order, rows, number) for order in orders}


class _ObjectFile(io.RawIOBase):
    """An object as a read-only file: each read is one ranged GET. Not safe to share.

    Reading raises `StorageError` if the object is missing or shorter than `size`.
    """

    def __init__(self, store: ObjectStore, key: str, size: int) -> None:
        self._store, self._key, self._size, self._at = store, key, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = base + offset
        return self._at

    def read(self, size: int = -1) -> bytes:
        end = self._size if size < 0 else min(self._at + size, self._size)
        if end <= self._at:
            return b""
        body = self._store.get_range(self._key, self._at, end - self._at)
        if body is None:
            raise StorageError(f"{self._store.uri(self._key)} is missing")
        self._at = end
        return body


def _read_file(store: ObjectStore, file: IndexFile, keys: "array[int]") -> list[dict[str, Any]]:
    """The rows of one file that have one of these keys."""
    try:
        # With `pre_buffer` neighbouring row groups are fetched in one GET.
        parquet = pq.ParquetFile(_ObjectFile(store, file.key, file.size), pre_buffer=True)
        row_groups = map(parquet.metadata.row_group, range(parquet.metadata.num_row_groups))
        ranges = [group.column(0).statistics for group in row_groups]
        groups = [n for n, k in enumerate(ranges) if _may_contain(keys, k.min, k.max)]
        batches = parquet.iter_batches(row_groups=groups, use_threads=False) if groups else ()
        return [row for batch in batches for row in _matching(batch, keys)]
    except StorageUnavailable:
        raise
    except (pa.ArrowException, OSError, StorageError) as error:
        raise StorageError(
            f"{store.uri(file.key)} cannot be read ({error}): {REBUILD_HINT}"
        ) from error


def _may_contain(keys: "array[int]", first: int, last: int) -> bool:
    return bisect_left(keys, first) < bisect_right(keys, last)


def _matching(rows: pa.Table | pa.RecordBatch, keys: "array[int]") -> list[dict[str, Any]]:
    # `pa.array` would import pandas, which takes longer than the lookup.
    wanted = pa.Array.from_buffers(pa.uint64(), len(keys), [None, pa.py_buffer(keys)])
    mask = pc.is_in(rows.column("k"), value_set=wanted)
    matching: list[dict[str, Any]] = rows.filter(mask).to_pylist()
    return matching


def _sort_key(order: LookupOrder, value: str) -> int:
    """A value's ``k``."""
    if SCHEMAS[order].field(LOOKUP_COLUMNS[order]).type == HASH:
        return int(value[:16], 16)
    return int.from_bytes(hashlib.sha256(value.encode()).digest()[:8])


def _rows(order: LookupOrder, rows: pa.Table, number: int) -> pa.Table:
    valid = rows.filter(pc.is_valid(rows[LOOKUP_COLUMNS[order]]))
    # In parts: as Python objects, texts take several times as much memory.
    parts = [_part(order, each, number) for each in valid.to_batches(max_chunksize=PART_ROWS)]
    return pa.Table.from_batches(parts, SCHEMAS[order])


def _part(order: LookupOrder, rows: pa.RecordBatch, number: int) -> pa.RecordBatch:
    columns: dict[str, pa.Array] = {
        "k": pa.array(
            (_sort_key(order, v) for v in rows[LOOKUP_COLUMNS[order]].to_pylist()), pa.uint64()
        ),
        "table": pa.repeat(pa.scalar(number, pa.int32()), len(rows)),
    }
    for field in SCHEMAS[order]:
        if field.name not in columns:
            values = rows[field.name]
            columns[field.name] = (
                pa.array((v and bytes.fromhex(v) for v in values.to_pylist()), HASH)
                if field.type == HASH
                else values.cast(field.type)
            )
    return pa.record_batch(columns, schema=SCHEMAS[order])
