"""The rows of the index: what manifests and releases say, once for each way to look it up.

Every order has a column ``k``, a number of 64 bits that it is sorted by: the first 8 bytes of a
hash that is looked up, or of the SHA-256 of another text. Numbers compare fast, spread evenly over
files whatever people call their prompts, and make small statistics.
"""

import hashlib
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from nanobanana_pipeline.bucket_keys import Folder
from nanobanana_pipeline.datasets import release
from nanobanana_pipeline.generation.manifest import manifest
from nanobanana_pipeline.storage import ObjectStore

__all__ = ["INDEXED_COLUMNS", "SCHEMAS", "VALUE", "Order", "key_of", "plain", "rows_of"]


class Order(StrEnum):
    """What rows are found by."""

    IMAGE = "image"
    REQUEST = "request"
    PROMPT = "prompt"
    PROVIDER = "provider"
    RELEASE = "release"


HASH: Final = pa.binary(32)
KEYS: Final = [("k", pa.uint64()), ("table", pa.int32())]
CELL_FIELDS: Final = [
    ("prompt_id", pa.string()),
    ("request_key", HASH),
    ("sample", pa.int32()),
    ("state", pa.string()),
    ("image_sha256", HASH),
    ("run_id", pa.string()),
    ("provider_id", pa.string()),
]
SCHEMAS: Final[Mapping[Order, pa.Schema]] = {
    Order.IMAGE: pa.schema([*KEYS, ("image_sha256", HASH), ("request_key", HASH)]),
    Order.REQUEST: pa.schema([*KEYS, *CELL_FIELDS]),
    Order.PROMPT: pa.schema([*KEYS, *CELL_FIELDS]),
    Order.PROVIDER: pa.schema([*KEYS, ("provider_id", pa.string()), ("request_key", HASH)]),
    Order.RELEASE: pa.schema(
        [
            *KEYS,
            ("image_sha256", HASH),
            ("key", pa.string()),
            ("split", pa.string()),
            ("shard", pa.int32()),
        ]
    ),
}
"""Each order's columns. ``table`` says which table of the segment a row was read from."""

VALUE: Final[Mapping[Order, str]] = {
    Order.IMAGE: "image_sha256",
    Order.REQUEST: "request_key",
    Order.PROMPT: "prompt_id",
    Order.PROVIDER: "provider_id",
    Order.RELEASE: "image_sha256",
}
"""The column that each order finds rows by."""

INDEXED_COLUMNS: Final = [name for name, _ in CELL_FIELDS]
RELEASE_COLUMNS: Final = ["image_sha256", "key", "split", "shard"]
PART_ROWS: Final = 65_536


def key_of(order: Order, value: str) -> int:
    """The number under which a value's rows stand."""
    if SCHEMAS[order].field(VALUE[order]).type == HASH:
        return int(value[:16], 16)
    return int.from_bytes(hashlib.sha256(value.encode()).digest()[:8])


def rows_of(store: ObjectStore, table: str, number: int) -> dict[Order, pa.Table]:
    """What a table gives to each order.

    Args:
        store: the bucket.
        table: the key of a partition's or a release's manifest.
        number: what the rows shall have in their column ``table``.

    Raises:
        StorageError: it is missing or damaged.
        ReleaseError: the same of a release.
    """
    folder, name, version, *_ = table.split("/")
    if folder == Folder.DATASETS:
        found = release.read_release(store, name, version)
        rows = release.read_release_arrow(store, found, release.MANIFEST, RELEASE_COLUMNS)
        orders: tuple[Order, ...] = (Order.RELEASE,)
    else:
        rows = manifest.read_manifest_arrow(store, table, INDEXED_COLUMNS)
        orders = (Order.IMAGE, Order.REQUEST, Order.PROMPT, Order.PROVIDER)
    return {order: _rows(order, rows, number) for order in orders}


def plain(row: dict[str, Any]) -> dict[str, Any]:
    """A row with its hashes in hexadecimal digits."""
    return {k: v.hex() if isinstance(v, bytes) else v for k, v in row.items()}


def _rows(order: Order, rows: pa.Table, number: int) -> pa.Table:
    found = rows.filter(pc.is_valid(rows[VALUE[order]]))
    # A part at a time: as Python's own, texts take several times as much memory.
    parts = [_part(order, each, number) for each in found.to_batches(max_chunksize=PART_ROWS)]
    return pa.Table.from_batches(parts, SCHEMAS[order])


def _part(order: Order, rows: pa.RecordBatch, number: int) -> pa.RecordBatch:
    columns: dict[str, pa.Array] = {
        "k": pa.array((key_of(order, v) for v in rows[VALUE[order]].to_pylist()), pa.uint64()),
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
