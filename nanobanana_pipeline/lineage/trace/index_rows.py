"""Rows of the trace index: columns of manifests and releases, in one `LookupOrder` for each lookup.

Every order is sorted by its column ``k``, a 64-bit number: the first 8 bytes of the hash that is
looked up, or of the SHA-256 of another text. Numbers compare fast, spread evenly over files, and
make small statistics.
"""

import hashlib
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from nanobanana_pipeline.datasets import release
from nanobanana_pipeline.generation.manifest import manifest
from nanobanana_pipeline.storage import ObjectStore

__all__ = [
    "INDEXED_COLUMNS",
    "LOOKUP_COLUMNS",
    "SCHEMAS",
    "LookupOrder",
    "read_index_rows",
    "sort_key",
    "with_hex_hashes",
]


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


def sort_key(order: LookupOrder, value: str) -> int:
    """A value's ``k``."""
    if SCHEMAS[order].field(LOOKUP_COLUMNS[order]).type == HASH:
        return int(value[:16], 16)
    return int.from_bytes(hashlib.sha256(value.encode()).digest()[:8])


def read_index_rows(store: ObjectStore, table: str, number: int) -> dict[LookupOrder, pa.Table]:
    """Read the rows of the manifest at this key, by order; `number` fills their column ``table``.

    Raises:
        ReleaseError: it is a release's, and is missing or damaged.
    """
    folder, name, version, *_ = table.split("/")
    if folder == "datasets":
        published = release.read_release(store, name, version)
        rows = release.read_release_arrow(store, published, release.MANIFEST, RELEASE_COLUMNS)
        orders: tuple[LookupOrder, ...] = (LookupOrder.RELEASE,)
    else:
        rows = manifest.read_manifest_arrow(store, table, INDEXED_COLUMNS)
        orders = (LookupOrder.IMAGE, LookupOrder.REQUEST, LookupOrder.PROMPT, LookupOrder.PROVIDER)
    return {order: _rows(order, rows, number) for order in orders}


def with_hex_hashes(row: dict[str, Any]) -> dict[str, Any]:
    """A row with its hashes as hexadecimal digits."""
    return {k: v.hex() if isinstance(v, bytes) else v for k, v in row.items()}


def _rows(order: LookupOrder, rows: pa.Table, number: int) -> pa.Table:
    valid = rows.filter(pc.is_valid(rows[LOOKUP_COLUMNS[order]]))
    # In parts: as Python objects, texts take several times as much memory.
    parts = [_part(order, each, number) for each in valid.to_batches(max_chunksize=PART_ROWS)]
    return pa.Table.from_batches(parts, SCHEMAS[order])


def _part(order: LookupOrder, rows: pa.RecordBatch, number: int) -> pa.RecordBatch:
    columns: dict[str, pa.Array] = {
        "k": pa.array(
            (sort_key(order, v) for v in rows[LOOKUP_COLUMNS[order]].to_pylist()), pa.uint64()
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
