"""The rows of a release as one Arrow table, with the columns and types that all formats share.

Types are fixed here, so that all shards of a release agree, whatever is missing in one of them.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import pandas as pd
import pyarrow as pa

from nanobanana_pipeline.datasets.recipe_inputs import ROW_COLUMNS
from nanobanana_pipeline.errors import ReleaseError

__all__ = [
    "KEY_COLUMN",
    "as_table",
    "attributes",
    "metadata_json",
    "plain_table",
    "row_digests",
    "rows_of",
    "schema_text",
    "taken",
]

KEY_COLUMN: Final = "key"
"""The column with a sample's name in the release: nine digits, the same in every format."""

KINDS: Final = {
    name: pa.type_for_alias(kind.lower())
    for name, kind in {**ROW_COLUMNS, "group": "str", "split": "str"}.items()
}
NEEDED: Final = ("row_id", "prompt", "image_sha256", "image_key", "format", "bytes", "split")
SHARD_COLUMNS: Final = (KEY_COLUMN, "image", "shard", "row_sha256")
"""Columns that the formats add."""


def as_table(rows: pd.DataFrame) -> pa.Table:
    """Rows as chosen, in release order, with the types that every format has.

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
    # As with other columns of a prompt table that are called like one of ours.
    own = {name: f"prompt_{name}" for name in SHARD_COLUMNS}
    return plain_table(rows).rename_columns([own.get(name, str(name)) for name in rows.columns])


def plain_table(frame: pd.DataFrame) -> pa.Table:
    """A table with the types that a release's columns have; text is ``string``, never large.

    Raises:
        ReleaseError: a column holds values of different kinds.
    """
    return pa.table({str(name): _column(str(name), frame[name]) for name in frame.columns})


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
    return [hashlib.sha256(metadata_json(row)).hexdigest() for row in rows_of(table)]


def rows_of(table: pa.Table) -> Iterator[dict[str, Any]]:
    """The rows of a table one after the other; only some at a time are Python's objects."""
    for batch in table.to_batches(max_chunksize=1_000):
        yield from batch.to_pylist()


def taken(table: pa.Table, places: Sequence[int]) -> pa.Table:
    """Some rows of a table, in the order given."""
    return table.take(pa.array(places, pa.int64()))
