"""Reads from a manifest which requests are settled: `SettledKeys`."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from nanobanana_pipeline.generation.manifest.manifest import (
    MANIFEST_TABLE_SCHEMA,
    CellState,
    CurrentManifest,
    open_manifest,
)
from nanobanana_pipeline.storage import ObjectStore

__all__ = ["is_among", "read_settled_keys"]

Strings: TypeAlias = pd.Series | pa.ChunkedArray | pa.Array | Collection[str]


@dataclass(frozen=True)
class SettledKeys:
    """The requests of a manifest.

    Attributes:
        settled: its rows of those that are settled.
        asked: keys of those that were asked for, under whatever limit; some of them several times.
    """

    settled: pa.Table
    asked: pa.ChunkedArray


def read_settled_keys(
    store: ObjectStore, current: CurrentManifest | None, columns: Sequence[str]
) -> SettledKeys:
    """Read the requests of the manifest that `current` names; None where there is none yet.

    The columns are those of `settled`, request_key and state among them.

    Raises:
        StorageError: the manifest is missing or damaged.
    """
    settled = [MANIFEST_TABLE_SCHEMA.empty_table().select(columns)]
    asked = [pa.array([], pa.string())]
    for rows in open_manifest(store, current.manifest, list(columns)) if current else ():
        is_settled = pc.equal(rows["state"], CellState.SETTLED.value)
        is_asked = pc.not_equal(rows["state"], CellState.NOT_REQUESTED.value)
        settled.append(pa.Table.from_batches([rows.filter(is_settled)]))
        asked.append(rows["request_key"].filter(is_asked))
    return SettledKeys(pa.concat_tables(settled), pa.chunked_array(asked))


# pandas' own `isin` makes Python's objects of all strings: 400 MB for a million keys.
def is_among(column: Strings, values: Strings) -> np.ndarray:
    """Whether each of a column's strings is one of these values (bool, as long as the column)."""
    return np.asarray(pc.is_in(_strings(column), value_set=_strings(values)))


def _strings(values: Strings) -> pa.ChunkedArray | pa.Array:
    if isinstance(values, pd.Series):
        return pa.array(values).cast(pa.large_string())
    if isinstance(values, pa.ChunkedArray | pa.Array):
        return values.cast(pa.large_string())
    return pa.array(list(values), pa.large_string())
