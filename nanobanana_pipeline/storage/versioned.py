"""Tables of which one is in force: immutable Parquet files, and a `current.json` that names one.

The pointer is changed by compare-and-swap, after its table is there; so no reader ever sees half a
table, and of two writers one starts over.
"""

import contextlib
import io
import json
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from nanobanana_pipeline.errors import StorageError
from nanobanana_pipeline.storage import ObjectStore, cas

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "SCHEMA_KEY",
    "TableColumns",
    "as_frame",
    "open_stored",
    "packed",
    "read_pointer",
    "read_table",
    "swap_pointer",
    "write_table",
]

BATCH_ROWS: Final = 10_000
SCHEMA_KEY: Final = b"nanobanana.schema"
"""Under which a Parquet file's own metadata holds the number of its schema."""
Pointer = TypeVar("Pointer")
TableColumns = Mapping[str, tuple[pa.DataType, str]]
"""Every column's type and meaning, in order."""


def read_pointer(
    store: ObjectStore,
    key: str,
    make: Callable[..., Pointer],
    schema: int,
    *,
    remedy: str = cas.RESTORE,
) -> tuple[Pointer | None, str | None]:
    """A `current.json` and its ETag; (None, None) if there is none.

    `make` is the pointer's class, `schema` the newest that this version knows; `remedy` says how
    to mend a damaged one.

    Raises:
        StorageError: it is damaged or was written by a newer version.
    """
    found = store.get(key)
    if found is None:
        return None, None

    def parse(body: bytes) -> Pointer:
        return make(**json.loads(body))

    return cas.parse_json(found.body, store.uri(key), parse, schema, remedy=remedy), found.etag


def swap_pointer(
    store: ObjectStore, key: str, pointer: Mapping[str, Any], etag: str | None
) -> bool:
    """Replace the `current.json` that was read with this `etag`; False if another was quicker.

    The pointer names a table of its own, so that no other writer writes the same bytes.

    Raises:
        StorageUnavailable: as `cas.write`.
    """
    body = json.dumps(dict(pointer), indent=1).encode()
    return isinstance(cas.write(store, key, body, etag), cas.Won)


def packed(rows: pa.Table | pa.RecordBatchReader) -> bytes:
    """A table as the Parquet file that is stored; of a reader a row group a batch, as they come."""
    body = io.BytesIO()
    with pq.ParquetWriter(body, rows.schema, compression="zstd") as file:
        for batch in rows.to_reader() if isinstance(rows, pa.Table) else rows:
            file.write_batch(batch)
    return body.getvalue()


def write_table(store: ObjectStore, key: str, file: bytes) -> None:
    """Write what `packed` gave where nothing will ever be written again."""
    store.put(key, file, content_type="application/vnd.apache.parquet")


def read_table(
    store: ObjectStore, key: str, known: TableColumns, wanted: list[str] | None = None
) -> "pd.DataFrame":
    """What `open_stored` reads, all at once, as `as_frame` gives it.

    Raises:
        StorageError: as `open_stored`.
    """
    return as_frame(open_stored(store, key, known, wanted).read_all())


def open_stored(
    store: ObjectStore, key: str, known: TableColumns, wanted: list[str] | None = None
) -> pa.RecordBatchReader:
    """A table's rows, some at once; a column that its version did not know yet is there, and empty.

    `known` columns are those of this version. `wanted` are some of them; None gives all, and those
    that only the table's version knows.

    Raises:
        StorageError: there is none, or it is damaged; of damage the reader tells as well.
    """
    found = store.get(key)
    if found is None:
        raise StorageError(f"{store.uri(key)} is missing though current.json names it")
    with _damage_named(store.uri(key)):
        file = pq.ParquetFile(pa.BufferReader(found.body))
        there = file.schema_arrow.names
    names = wanted or list(dict.fromkeys([*known, *there]))
    schema = pa.schema(
        [file.schema_arrow.field(n) if n in there else pa.field(n, known[n][0]) for n in names],
        file.schema_arrow.metadata,
    )

    def batches() -> Iterator[pa.RecordBatch]:
        with _damage_named(store.uri(key)):
            for some in file.iter_batches(
                BATCH_ROWS, columns=[n for n in names if n in there], use_threads=False
            ):
                columns = [
                    some[f.name] if f.name in there else pa.nulls(len(some), f.type) for f in schema
                ]
                yield pa.RecordBatch.from_arrays(columns, schema=schema)

    return pa.RecordBatchReader.from_batches(schema, batches())


@contextlib.contextmanager
def _damage_named(uri: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise StorageError(f"{uri} is damaged: {error}") from error


def as_frame(table: pa.Table) -> "pd.DataFrame":
    """A table with pandas' nullable types."""
    # Takes longer to import than many commands take that read no table, or read it as it is.
    import pandas as pd  # noqa: PLC0415

    # Whole numbers stay whole where some are missing: a seed does not fit a float.
    nullable = {
        pa.int64(): pd.Int64Dtype(),
        pa.int32(): pd.Int32Dtype(),
        pa.float32(): pd.Float32Dtype(),
        pa.float64(): pd.Float64Dtype(),
        pa.bool_(): pd.BooleanDtype(),
    }
    frame: pd.DataFrame = table.to_pandas(types_mapper=nullable.get)
    return frame
