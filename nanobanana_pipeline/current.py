"""Tables of which one is in force: immutable Parquet files, and a `current.json` that names one.

The pointer is changed by compare-and-swap, after its table is there; so no reader ever sees half a
table, and of two writers one starts over.
"""

import io
import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from nanobanana_pipeline.errors import StorageError, StorageFull, StorageUnavailable
from nanobanana_pipeline.storage import ObjectStore

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "Columns",
    "as_frame",
    "read_pointer",
    "read_stored",
    "read_table",
    "swap_pointer",
    "write_table",
]

Pointer = TypeVar("Pointer")
Columns = Mapping[str, tuple[pa.DataType, str]]
"""Every column's type and meaning, in order."""


def read_pointer(
    store: ObjectStore, key: str, make: Callable[..., Pointer], schema: int
) -> tuple[Pointer | None, str | None]:
    """A `current.json` and its ETag; (None, None) if there is none.

    Args:
        store: the bucket.
        key: where it lies.
        make: the pointer's class.
        schema: the newest that this version knows.

    Raises:
        StorageError: it is damaged or was written by a newer version.
    """
    found = store.get(key)
    if found is None:
        return None, None
    try:
        record = json.loads(found.body)
        if record["schema"] > schema:
            raise StorageError(
                f"{store.uri(key)} has schema {record['schema']}, and this version knows "
                f"{schema}: upgrade nanobanana-pipeline"
            )
        return make(**record), found.etag
    except (ValueError, KeyError, TypeError) as error:
        raise StorageError(f"{store.uri(key)} is damaged: {error}") from error


def swap_pointer(
    store: ObjectStore, key: str, pointer: Mapping[str, Any], etag: str | None
) -> bool:
    """Put a new `current.json` in the place of the one that was read; False if another was quicker.

    Args:
        store: the bucket.
        key: where it lies.
        pointer: the new one, unlike any that somebody else may write: it names a table of its own.
        etag: of the one that was read; None if there was none.

    Raises:
        StorageFull: there is no room for it.
        StorageUnavailable: S3 stayed silent, and does not say what lies there now.
    """
    body = json.dumps(dict(pointer), indent=1).encode()
    try:
        if etag is None:
            written = store.create(key, body, content_type="application/json")
        else:
            written = store.update(key, body, etag)
    except StorageFull:
        raise
    except StorageUnavailable:
        written = None
    if written is not None:
        return True
    # A write whose answer was lost looks like a defeat; what lies there now tells.
    now = store.get(key)
    return now is not None and now.body == body


def write_table(store: ObjectStore, key: str, table: pa.Table) -> None:
    """Write a table where nothing will ever be written again."""
    body = io.BytesIO()
    pq.write_table(table, body, compression="zstd")
    store.put(key, body.getvalue(), content_type="application/vnd.apache.parquet")


def read_table(
    store: ObjectStore, key: str, known: Columns, wanted: list[str] | None = None
) -> "pd.DataFrame":
    """What `read_stored` reads, as `as_frame` gives it.

    Raises:
        StorageError: as `read_stored`.
    """
    return as_frame(read_stored(store, key, known, wanted))


def read_stored(
    store: ObjectStore, key: str, known: Columns, wanted: list[str] | None = None
) -> pa.Table:
    """A table's rows; a column that its version did not know yet is there, and empty.

    Args:
        store: the bucket.
        key: where it lies.
        known: the columns that this version knows.
        wanted: some of them; None gives all, and those that only the table's version knows.

    Raises:
        StorageError: there is none, or it is damaged.
    """
    found = store.get(key)
    if found is None:
        raise StorageError(f"{store.uri(key)} is missing though current.json names it")
    try:
        file = pq.ParquetFile(io.BytesIO(found.body))
        there = file.schema_arrow.names
        wanted = wanted or list(dict.fromkeys([*known, *there]))
        table = file.read([name for name in wanted if name in there])
    except pa.ArrowException as error:
        raise StorageError(f"{store.uri(key)} is damaged: {error}") from error
    for name in set(wanted) - set(there):
        table = table.append_column(name, pa.nulls(len(table), known[name][0]))
    return table.select(wanted)


def as_frame(table: pa.Table) -> "pd.DataFrame":
    """A table with pandas' nullable types."""
    # Takes longer to import than many commands take that read no table, or read it as it is.
    import pandas as pd  # noqa: PLC0415

    # Whole numbers stay whole where some are missing: a seed does not fit a float.
    nullable = {
        pa.int64(): pd.Int64Dtype(),
        pa.int32(): pd.Int32Dtype(),
        pa.float32(): pd.Float32Dtype(),
        pa.bool_(): pd.BooleanDtype(),
    }
    frame: pd.DataFrame = table.to_pandas(types_mapper=nullable.get)
    return frame
