"""Puts a manifest together: what the ledger says of every cell, and what that comes to."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, Final

import pandas as pd
import pyarrow as pa

from nanobanana_pipeline.generation.cells import Cells
from nanobanana_pipeline.generation.manifest import (
    OUTCOME_COLUMNS,
    SCHEMA_OF_TABLE,
    CellState,
)
from nanobanana_pipeline.ledger import Entry, State

__all__ = ["CELL_OF", "content_hash", "count_cells", "count_images", "manifest_table"]

MAX_SEED_REPORTED: Final = 2**63 - 1
CELL_OF: Final = {
    State.SUBMITTING: CellState.PENDING,
    State.ACCEPTED: CellState.PENDING,
    State.SETTLED: CellState.SETTLED,
    State.IN_DOUBT: CellState.IN_DOUBT,
    State.FAILED: CellState.FAILED,
    State.REFUSED: CellState.REFUSED,
    State.LOST: CellState.LOST,
}
"""Where a cell stands whose request was tried."""


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
