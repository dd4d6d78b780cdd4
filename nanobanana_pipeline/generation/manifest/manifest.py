"""The manifest: a partition's table of every requested cell with its state (`CurrentManifest`).

Immutable Parquet files, one row a (prompt row, seed, sample), and `current.json`, which names the
current one and is changed by compare-and-swap.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from nanobanana_pipeline.bucket_keys import Folder, manifest_prefix
from nanobanana_pipeline.ledger import new_nonce
from nanobanana_pipeline.storage import ObjectStore
from nanobanana_pipeline.storage.versioned import (
    SCHEMA_KEY,
    as_frame,
    open_stored,
    read_pointer,
    swap_pointer,
    write_table,
)

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "GAPS",
    "MANIFEST_COLUMNS",
    "MANIFEST_TABLE_SCHEMA",
    "OUTCOME_COLUMNS",
    "CellState",
    "CurrentManifest",
    "advice",
    "list_partitions",
    "manifest_key",
    "open_manifest",
    "publish",
    "read_all_current",
    "read_current",
    "read_manifest",
    "read_manifest_arrow",
]

SCHEMA: Final = 2
"""Of `current.json`: 2 has `plan_number`."""
TABLE_SCHEMA: Final = 1


class CellState(StrEnum):
    """The state of a cell."""

    SETTLED = "settled"
    PENDING = "pending"
    IN_DOUBT = "in_doubt"
    LOST = "lost"
    FAILED = "failed"
    REFUSED = "refused"
    OVER_BUDGET = "over_budget"
    NOT_REQUESTED = "not_requested"


GAPS: Final = frozenset(CellState) - {CellState.SETTLED, CellState.REFUSED, CellState.NOT_REQUESTED}
"""States in which a cell that was asked for is missing and may still come."""

ADVICE: Final = {
    CellState.PENDING: "pending: launch again, to buy or resume",
    CellState.OVER_BUDGET: (
        "over budget: a cap was reached. Launch again when there is room, or raise the cap"
    ),
    CellState.FAILED: "failed: the provider drew nothing, three times",
    CellState.IN_DOUBT: (
        "in doubt: nobody knows whether it was paid for. Held, and never bought again by itself"
    ),
    CellState.LOST: (
        "lost: paid for, and the pictures cannot be had. Held, and never bought again by itself"
    ),
    CellState.REFUSED: "refused: the provider will not draw this as it is; change the prompt",
}

OUTCOME_COLUMNS: Final = {
    "state": (pa.string(), "where the cell stands"),
    "reason": (pa.string(), "why it is not settled, in the provider's or our own words"),
    "seed_reported": (pa.int64(), "the seed the provider says it used; null if it said none"),
    "image_sha256": (pa.string(), "of the bytes, 64 hexadecimal digits"),
    "image_uri": (pa.string(), "where the image lies"),
    "format": (pa.string(), "png, jpg or webp, as the bytes say"),
    "width": (pa.int32(), "pixels"),
    "height": (pa.int32(), "pixels"),
    "bytes": (pa.int64(), "size of the image"),
    "provenance": (pa.string(), "marks that the image bears, joined by a space; null if none"),
    "provider_id": (pa.string(), "the provider's id of the request"),
    "attempts": (pa.int32(), "how often it was tried"),
    "run_id": (pa.string(), "the run that bought it"),
    "accepted": (pa.string(), "when the provider took it, UTC"),
}
MANIFEST_COLUMNS: Final = {
    "prompt_set": (pa.string(), "the prompt set's name"),
    "prompt_id": (pa.string(), "the prompt row"),
    "prompt": (pa.string(), "its text"),
    "seed": (pa.int64(), "the partition's seed"),
    "seed_asked": (pa.int64(), "the seed that was sent"),
    "sample": (pa.int32(), "which picture of the request, from 0"),
    "request_key": (pa.string(), "SHA-256 of the canonical request"),
    **OUTCOME_COLUMNS,
}
"""Every column's type and meaning, in order."""

MANIFEST_TABLE_SCHEMA: Final = pa.schema(
    [pa.field(name, kind) for name, (kind, _) in MANIFEST_COLUMNS.items()],
    metadata={SCHEMA_KEY: str(TABLE_SCHEMA).encode()},
)


@dataclass(frozen=True)
class CurrentManifest:
    """What `current.json` says of a partition.

    Attributes:
        manifest: the Parquet file's key, below the prefix.
        parameters: the picture parameters in force, all of them.
        limit: a pilot's number of rows, or None.
        cells: how many cells are in each state.
        images, size: distinct pictures, those of lost cells that did come among them; their bytes.
        content: SHA-256 of the requests, states and images: equal where nothing changed.
        request_seconds: how long the provider took for a request, as a mean of the last run that
            bought some; None if unknown.
        abandoned: lost cells that were given up: they are no gaps any more.
        plan_number: the highest number of a plan that was collected; 0 where the plans were
            version 0.1.0's.
    """

    prompt_set: str
    seed: int
    manifest: str
    fingerprint: str
    parameters: Mapping[str, Any]
    limit: int | None
    cells: Mapping[str, int]
    images: int
    size: int
    content: str
    rows: int
    run_id: str
    created: str
    request_seconds: float | None = None
    abandoned: int = 0
    plan_number: int = 0
    schema: int = SCHEMA

    @property
    def gaps(self) -> int:
        """Cells that were asked for, are missing and may still come."""
        return sum(n for state, n in self.cells.items() if state in GAPS) - self.abandoned


def advice(current: CurrentManifest) -> list[str]:
    """The meaning of the missing cells and the remedy; a sentence a state."""
    return [f"{n:,} {ADVICE[CellState(s)]}" for s, n in current.cells.items() if s in ADVICE]


def read_current(
    store: ObjectStore, prompt_set: str, seed: int
) -> tuple[CurrentManifest | None, str | None]:
    """A partition's current manifest and the ETag of `current.json`; (None, None) if none.

    Raises:
        StorageError: it is damaged or was written by a newer version.
    """
    key = f"{manifest_prefix(prompt_set, seed)}current.json"
    return read_pointer(store, key, CurrentManifest, SCHEMA)


def list_partitions(store: ObjectStore, begins: str = "") -> Iterator[tuple[str, int]]:
    """Prompt set and seed of every partition that has a manifest, in order; reads none of them.

    Only those of prompt sets whose names begin so.
    """
    for key in store.keys(Folder.MANIFESTS.prefix + begins):
        folder, _, leaf = key.rpartition("/")
        if leaf == "current.json":
            _, name, seed = folder.split("/")
            yield name, int(seed.removeprefix("seed="))


def read_all_current(store: ObjectStore, begins: str = "") -> Iterator[CurrentManifest]:
    """Every partition's current manifest, by prompt set and seed, as `list_partitions` has them."""
    for name, seed in list_partitions(store, begins):
        current, _ = read_current(store, name, seed)
        if current is not None:
            yield current


def read_manifest(store: ObjectStore, key: str, columns: list[str] | None = None) -> "pd.DataFrame":
    """A manifest's rows; a column that its version did not know yet is there, and empty.

    Raises:
        StorageError: there is none, or it is damaged.
    """
    return as_frame(read_manifest_arrow(store, key, columns))


def read_manifest_arrow(store: ObjectStore, key: str, columns: list[str] | None = None) -> pa.Table:
    """`read_manifest`, as it is stored."""
    return open_manifest(store, key, columns).read_all()


def open_manifest(
    store: ObjectStore, key: str, columns: list[str] | None = None
) -> pa.RecordBatchReader:
    """`read_manifest`, some rows at once."""
    return open_stored(store, key, MANIFEST_COLUMNS, columns)


def publish(store: ObjectStore, file: bytes, current: CurrentManifest, etag: str | None) -> bool:
    """Write a new manifest, `packed`, and make it the current one; False if another was quicker.

    The ETag is of the `current.json` that it follows; None if there was none.

    Raises:
        StorageUnavailable: S3 stayed silent.
    """
    write_table(store, current.manifest, file)
    key = f"{manifest_prefix(current.prompt_set, current.seed)}current.json"
    return swap_pointer(store, key, asdict(current), etag)


def manifest_key(prompt_set: str, seed: int, run_id: str) -> str:
    """A key for a new manifest that no other write will ever use."""
    return f"{manifest_prefix(prompt_set, seed)}{run_id}-{new_nonce()}.parquet"
