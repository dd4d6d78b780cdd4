"""The rows of a release as one Arrow table, with the columns and types that all formats share.

Types are fixed here, so that all shards of a release agree, whatever is missing in one of them.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from nanobanana_pipeline.datasets.recipe_inputs import ROW_COLUMNS
from nanobanana_pipeline.errors import ReleaseError

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "KEY_COLUMN",
    "as_table",
    "attributes",
    "metadata_json",
    "row_digests",
    "schema_text",
    "taken",
]

KEY_COLUMN: Final = "key"
"""The column with a sample's name in the release: nine digits, the same in every format."""

ARROW: Final = {
    "str": pa.string(),
    "Int64": pa.int64(),
    "Int32": pa.int32(),
    "Float32": pa.float32(),
    "boolean": pa.bool_(),
}
KINDS: Final = {
    **{name: ARROW[kind] for name, kind in ROW_COLUMNS.items()},
    "group": pa.string(),
    "split": pa.string(),
}
NEEDED: Final = ("row_id", "prompt", "image_sha256", "image_key", "format", "bytes", "split")
SHARD_COLUMNS: Final = (KEY_COLUMN, "image", "shard", "row_sha256")
"""Columns that the formats add."""


def as_table(rows: "pd.DataFrame") -> pa.Table:
    """Rows as chosen, with the types that every format has.

    Args:
        rows: one a picture, in release order; columns of the prompt table among them.

    Raises:
        ReleaseError: there are none, one comes twice, or what each must have is missing in one.
    """
    if rows.empty:
        raise ReleaseError(
            "the recipe leaves no row to release: look at its filters and at what was generated, "
            "with nanobanana recipe preview"
        )
    for name in NEEDED:
        if name not in rows or rows[name].isna().any():
            raise ReleaseError(f"rows without {name} cannot be released")
    if rows["row_id"].duplicated().any():
        twice = rows.loc[rows["row_id"].duplicated(), "row_id"].iloc[0]
        raise ReleaseError(f"row {twice} comes twice")
    return pa.table({_own(str(name)): _column(str(name), rows[name]) for name in rows.columns})


def _own(name: str) -> str:
    # As with other columns of a prompt table that are called like one of ours.
    return f"prompt_{name}" if name in SHARD_COLUMNS else name


def _column(name: str, values: "pd.Series[Any]") -> pa.Array:
    try:
        found = pa.array(values, type=KINDS.get(name), from_pandas=True)
    except pa.ArrowException as error:
        raise ReleaseError(
            f"column {name!r} holds values of different kinds ({error}): make them one kind in the "
            "prompt table"
        ) from error
    if isinstance(found, pa.ChunkedArray):
        found = found.combine_chunks()
    if pa.types.is_large_string(found.type) or pa.types.is_null(found.type):
        return found.cast(pa.string())
    return found


def attributes(columns: Iterable[str]) -> list[str]:
    """Those of a release's columns that come from the prompt tables."""
    return [name for name in columns if name not in KINDS and name not in SHARD_COLUMNS]


def schema_text(schema: pa.Schema) -> str:
    """Names and types of the columns, to see whether two tables have the same."""
    return json.dumps([[field.name, str(field.type)] for field in schema])


def metadata_json(row: dict[str, Any]) -> bytes:
    """A row for the file beside its picture.

    What is unknown is left out, not null: readers that guess types from the first samples of a
    shard (Hugging Face's is one) fail on a column whose first values are null.
    """
    said = {name: value for name, value in row.items() if value is not None}
    return json.dumps(said, ensure_ascii=False, allow_nan=False, default=str).encode()


def row_digests(table: pa.Table) -> list[str]:
    """SHA-256 of each row, in hexadecimal."""
    return [
        hashlib.sha256(metadata_json(row)).hexdigest()
        for batch in table.to_batches(max_chunksize=1_000)
        for row in batch.to_pylist()
    ]


def taken(table: pa.Table, places: Sequence[int]) -> pa.Table:
    """Some rows of a table, in the order given."""
    return table.take(pa.array(places, pa.int64()))
