"""The manifest: what became of every cell of a partition.

Immutable Parquet files, one row a (prompt row, seed, sample), and `current.json`, which names the
one in force and is changed by compare-and-swap.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Final

import pandas as pd
import pyarrow as pa

from nanobanana_pipeline.current import read_pointer, read_table, swap_pointer, write_table
from nanobanana_pipeline.generation.cells import Cells
from nanobanana_pipeline.layout import manifest_prefix
from nanobanana_pipeline.ledger import Entry, State, new_nonce
from nanobanana_pipeline.storage import ObjectStore

__all__ = [
    "COLUMNS",
    "GAPS",
    "CellState",
    "CurrentManifest",
    "advice",
    "list_partitions",
    "manifest_table",
    "publish",
    "read_all_current",
    "read_current",
    "read_manifest",
]

SCHEMA: Final = 1
SCHEMA_KEY: Final = b"nanobanana.schema"
MAX_SEED_REPORTED: Final = 2**63 - 1


class CellState(StrEnum):
    """Where a cell stands."""

    SETTLED = "settled"
    PENDING = "pending"
    IN_DOUBT = "in_doubt"
    LOST = "lost"
    FAILED = "failed"
    REFUSED = "refused"
    OVER_BUDGET = "over_budget"
    NOT_REQUESTED = "not_requested"


GAPS: Final = frozenset(CellState) - {
    CellState.SETTLED,
    CellState.REFUSED,
    CellState.NOT_REQUESTED,
}
"""States in which a cell that was asked for is missing and may still come."""

ADVICE: Final = {
    CellState.PENDING: "pending: launch again, to buy or resume them",
    CellState.OVER_BUDGET: (
        "over budget: a cap was reached. Launch again when there is room, or raise the cap"
    ),
    CellState.FAILED: "failed: the provider drew nothing, three times",
    CellState.IN_DOUBT: (
        "in doubt: nobody knows whether they were bought. They are held, and never bought again by "
        "themselves"
    ),
    CellState.LOST: "lost: they were paid for, and their pictures cannot be had. They are held",
    CellState.REFUSED: "refused: the provider will not draw them as they are; change the prompt",
}

CELL_OF: Final = {
    State.SUBMITTING: CellState.PENDING,
    State.ACCEPTED: CellState.PENDING,
    State.SETTLED: CellState.SETTLED,
    State.IN_DOUBT: CellState.IN_DOUBT,
    State.FAILED: CellState.FAILED,
    State.REFUSED: CellState.REFUSED,
    State.LOST: CellState.LOST,
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
COLUMNS: Final = {
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

SCHEMA_OF_TABLE: Final = pa.schema(
    [pa.field(name, kind) for name, (kind, _) in COLUMNS.items()],
    metadata={SCHEMA_KEY: str(SCHEMA).encode()},
)


@dataclass(frozen=True)
class CurrentManifest:
    """What `current.json` says of a partition.

    Attributes:
        manifest: the Parquet file's key, below the prefix.
        fingerprint: of the prompt set.
        parameters: the picture parameters in force, all of them.
        limit: a pilot's number of rows, or None.
        cells: how many cells are in each state.
        images: distinct pictures, those of lost cells that did come among them.
        size: their bytes.
        content: SHA-256 of what was asked for and what came: equal where nothing changed.
        rows: of the manifest.
        request_seconds: how long the provider took for a request, as a mean of the last run that
            bought some; None if unknown.
        abandoned: lost cells that somebody has given up: they are no gaps any more.
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
    schema: int = SCHEMA

    @property
    def gaps(self) -> int:
        """Cells that were asked for, are missing and may still come."""
        return sum(n for state, n in self.cells.items() if state in GAPS) - self.abandoned


def advice(current: CurrentManifest) -> list[str]:
    """What the cells that are missing mean, and what can be done; a sentence a state."""
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

    Args:
        store: the bucket.
        begins: only prompt sets whose names begin so.
    """
    for key in store.keys(f"manifests/{begins}"):
        folder, _, leaf = key.rpartition("/")
        if leaf == "current.json":
            _, name, seed = folder.split("/")
            yield name, int(seed.removeprefix("seed="))


def read_all_current(store: ObjectStore, begins: str = "") -> Iterator[CurrentManifest]:
    """Every partition's current manifest, by prompt set and seed.

    Args:
        store: the bucket.
        begins: only prompt sets whose names begin so.
    """
    for name, seed in list_partitions(store, begins):
        current, _ = read_current(store, name, seed)
        if current is not None:
            yield current


def read_manifest(store: ObjectStore, key: str, columns: list[str] | None = None) -> pd.DataFrame:
    """A manifest's rows; a column that its version did not know yet is there, and empty.

    Raises:
        StorageError: there is none, or it is damaged.
    """
    return read_table(store, key, COLUMNS, columns)


def manifest_table(
    cells: Cells,
    prompt_set: str,
    settled: pd.DataFrame | None,
    entries: Iterable[Entry],
    uri: Callable[[str], str],
    missing: CellState = CellState.PENDING,
) -> pa.Table:
    """Put a manifest together.

    Args:
        cells: the partition's.
        prompt_set: its name.
        settled: rows of an earlier manifest for requests that were settled by then.
        entries: the ledger's entries of the other requests that were ever tried.
        uri: gives an image's address for its key (`ObjectStore.uri`).
        missing: the state of cells that were asked for and are open.

    Returns:
        A table as `COLUMNS` says.
    """
    fresh = pd.DataFrame([row for entry in entries for row in _outcome_rows(entry, uri, missing)])
    known = [frame for frame in (settled, fresh) if frame is not None and len(frame)]
    wanted = ["request_key", "sample", *OUTCOME_COLUMNS]
    outcome = (
        pd.concat([frame[wanted].astype(object) for frame in known], ignore_index=True)
        # Rows of one set that ask for the same picture share its outcome.
        .drop_duplicates(["request_key", "sample"])
        if known
        else pd.DataFrame(columns=wanted, dtype=object)
    )
    frame = cells.frame.merge(outcome, on="request_key", how="left")
    untried = frame["state"].isna()
    state = frame["requested"].map({True: missing, False: CellState.NOT_REQUESTED})
    frame["state"] = frame["state"].astype(object).where(~untried, state.astype(str))
    # A cell whose request was never tried still has a row for each picture that was asked for.
    repeats = frame["samples"].where(untried, 1)
    frame = frame.loc[frame.index.repeat(repeats)]
    counted = frame.groupby(level=0).cumcount()
    frame["sample"] = frame["sample"].where(frame["sample"].notna(), counted)
    frame["prompt_set"] = prompt_set
    frame["seed"] = cells.seed
    columns = {}
    for field in SCHEMA_OF_TABLE:
        values = frame[field.name].astype(object)
        columns[field.name] = pa.array(
            values.where(values.notna(), None), type=field.type, from_pandas=True
        )
    return pa.table(columns, schema=SCHEMA_OF_TABLE)


def publish(
    store: ObjectStore, table: pa.Table, current: CurrentManifest, etag: str | None
) -> bool:
    """Write a new manifest and make it the current one; False if another was quicker.

    Raises:
        StorageUnavailable: S3 stayed silent.
    """
    write_table(store, current.manifest, table)
    key = f"{manifest_prefix(current.prompt_set, current.seed)}current.json"
    return swap_pointer(store, key, asdict(current), etag)


def manifest_key(prompt_set: str, seed: int, run_id: str) -> str:
    """A key for a new manifest that no other write will ever use."""
    return f"{manifest_prefix(prompt_set, seed)}{run_id}-{new_nonce()}.parquet"


def count_cells(table: pa.Table) -> dict[str, int]:
    """How many cells, not rows, are in each state."""
    first = table.to_pandas().drop_duplicates("prompt_id")["state"]
    return dict(sorted(Counter(first).items()))


def count_images(table: pa.Table) -> tuple[int, int]:
    """Distinct pictures of a manifest and their bytes."""
    images = table.select(["image_sha256", "bytes"]).to_pandas().dropna()
    distinct = images.drop_duplicates("image_sha256")
    return len(distinct), int(distinct["bytes"].sum())


def content_hash(table: pa.Table) -> str:
    """SHA-256 of a manifest's requests, states and pictures, whatever run brought them."""
    rows = table.select(["prompt_id", "sample", "request_key", "state", "image_sha256"])
    body = json.dumps(rows.to_pydict(), separators=(",", ":"))
    return hashlib.sha256(body.encode()).hexdigest()


def _outcome_rows(
    entry: Entry, uri: Callable[[str], str], missing: CellState
) -> Iterable[dict[str, Any]]:
    """One row a picture of an entry; of one that has none, one row a picture asked for."""
    attempt = entry.deciding
    seed = attempt.seed_reported if attempt else None
    row = {
        "request_key": entry.request_key,
        "state": (missing if entry.state is State.OPEN else CELL_OF[entry.state]).value,
        "reason": entry.reason,
        "seed_reported": seed if seed is not None and 0 <= seed <= MAX_SEED_REPORTED else None,
        "provider_id": attempt.provider_id if attempt else None,
        "attempts": len(entry.attempts),
        "run_id": attempt.run_id if attempt else None,
        "accepted": attempt.accepted if attempt else None,
    }
    images = {image.sample: image for image in entry.images}
    for sample in sorted(set(images) | set(range(entry.request.samples))):
        image = images.get(sample)
        yield {
            **row,
            "sample": sample,
            "image_sha256": image.sha256 if image else None,
            "image_uri": uri(image.key) if image else None,
            "format": image.format if image else None,
            "width": image.width if image else None,
            "height": image.height if image else None,
            "bytes": image.size if image else None,
            "provenance": " ".join(image.marks) or None if image else None,
        }
