"""Builds the rows of a manifest from cells and ledger entries, and computes its figures."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Final, TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from nanobanana_pipeline.generation.manifest.manifest import (
    MANIFEST_TABLE_SCHEMA,
    OUTCOME_COLUMNS,
    CellState,
)
from nanobanana_pipeline.ledger import Entry, State

__all__ = [
    "CELL_OF",
    "OUTCOMES",
    "content_hash",
    "count_cells",
    "count_images",
    "manifest_batches",
    "outcomes",
    "unreadable_outcomes",
]

MANIFEST_ROWS_AT_ONCE: Final = 10_000
"""Rows that are Python objects at once, or cells whose rows are taken from larger tables."""
SAMPLE_BITS: Final = 32
OUTCOMES: Final = pa.schema(
    [MANIFEST_TABLE_SCHEMA.field(name) for name in ("request_key", "sample", *OUTCOME_COLUMNS)]
)
"""What came of a request, a row a picture."""
ReadColumns: TypeAlias = Callable[[list[str]], pa.Table]
"""Gives some columns of a manifest, be it in memory or packed."""
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
"""The state of a cell whose request was tried."""


def outcomes(
    entries: Iterable[Entry], uri: Callable[[str], str], missing: CellState = CellState.PENDING
) -> pa.Table:
    """The outcomes of requests that were tried: a row for each picture of an entry, as `OUTCOMES`.

    The entries are taken one by one, and not kept; open ones get the state `missing`. `uri` gives
    an image's address for its key (`ObjectStore.uri`).
    """
    rows = (row for entry in entries for row in _outcome_rows(entry, uri, missing))
    batches = iter(lambda: list(islice(rows, MANIFEST_ROWS_AT_ONCE)), [])
    return pa.Table.from_batches(
        [pa.RecordBatch.from_pylist(some, OUTCOMES) for some in batches], OUTCOMES
    )


def unreadable_outcomes(damaged: Mapping[str, tuple[int, str]]) -> pa.Table:
    """Rows of requests whose ledger entry cannot be read: in doubt, for they may have been bought.

    By request key: how many pictures it asks for, and what is wrong with the entry.
    """
    rows = [
        {"request_key": key, "sample": n, "state": CellState.IN_DOUBT.value, "reason": reason}
        for key, (samples, reason) in damaged.items()
        for n in range(samples)
    ]
    return pa.Table.from_pylist(rows, OUTCOMES)


def manifest_batches(
    cells: pd.DataFrame,
    prompt_set: str,
    seed: int,
    known: Sequence[pa.Table],
    missing: CellState = CellState.PENDING,
) -> pa.RecordBatchReader:
    """Build a manifest of `planning.cells.Cells.frame`, some rows at once, as `MANIFEST_COLUMNS`.

    Known are the outcomes of its requests: `outcomes`, or rows of an earlier manifest. Of two rows
    of the same picture the first counts. Cells that were asked for, and of which nothing is known,
    get the state `missing`.
    """
    batches = _batches(cells, {"prompt_set": prompt_set, "seed": seed}, known, missing)
    return pa.RecordBatchReader.from_batches(MANIFEST_TABLE_SCHEMA, batches)


def _batches(
    cells: pd.DataFrame, named: dict[str, Any], known: Sequence[pa.Table], missing: CellState
) -> Iterator[pa.RecordBatch]:
    nothing = pa.Table.from_pylist([{"sample": 0}], OUTCOMES)
    tables = [rows.select(OUTCOMES.names).cast(OUTCOMES) for rows in (*known, nothing)]
    outcome = pa.concat_tables(tables)
    drawn = pa.Table.from_pandas(cells, preserve_index=False)
    for places in _places(cells, outcome):
        cell = _taken(drawn, places["cell"].to_numpy())
        came = _taken(outcome, places["outcome"].to_numpy())
        untried = pc.if_else(cell["requested"], missing.value, CellState.NOT_REQUESTED.value)
        columns = {
            **{name: cell[name] for name in ("prompt_id", "prompt", "request_key", "seed_asked")},
            **{name: came[name] for name in OUTCOME_COLUMNS},
            **{name: pa.repeat(value, len(places)) for name, value in named.items()},
            "sample": places["sample"],
            "state": pc.coalesce(came["state"], untried),
        }
        rows = pa.table(columns).select(MANIFEST_TABLE_SCHEMA.names).cast(MANIFEST_TABLE_SCHEMA)
        yield from rows.combine_chunks().to_batches()


def _places(cells: pd.DataFrame, outcome: pa.Table) -> Iterator[pa.RecordBatch]:
    """The manifest's rows: whose cell and which outcome each has, by position, and its sample.

    Rows of one set that ask for the same picture share its outcome. A cell whose request was never
    tried has the last, which is empty, and still a row for each picture that was asked for.
    """
    keys = pa.array(cells["request_key"]).cast(pa.string())
    distinct = pc.unique(keys)
    key_of_cell = pc.index_in(keys, value_set=distinct).to_numpy()
    asked = cells["samples"].to_numpy()
    # Key and sample in one number: sorted by both, and of each the first.
    key = pc.index_in(outcome["request_key"], value_set=distinct).fill_null(len(distinct))
    both = key.to_numpy().astype(np.int64) << SAMPLE_BITS | outcome["sample"].to_numpy()
    both, position = np.unique(both, return_index=True)
    starts = np.searchsorted(both >> SAMPLE_BITS, np.arange(len(distinct) + 1))
    sample = np.append(both & (1 << SAMPLE_BITS) - 1, 0)
    position = np.append(position, len(outcome) - 1)
    for first in range(0, len(key_of_cell), MANIFEST_ROWS_AT_ONCE):
        some = key_of_cell[first : first + MANIFEST_ROWS_AT_ONCE]
        came = starts[some + 1] - starts[some]
        count = np.where(came, came, asked[first : first + MANIFEST_ROWS_AT_ONCE])
        nth = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        untried = np.repeat(came == 0, count)
        place = np.where(untried, -1, np.repeat(starts[some], count) + nth)
        yield pa.record_batch(
            {
                "cell": np.repeat(np.arange(first, first + len(some)), count),
                "outcome": position[place],
                "sample": np.where(untried, nth, sample[place]),
            }
        )


def _taken(table: pa.Table, positions: np.ndarray) -> pa.Table:
    """Some rows; Arrow's own `take` copies whole columns each time, to have them in one piece."""
    pieces = table.to_batches()
    ends = np.cumsum([len(piece) for piece in pieces])
    whose = np.searchsorted(ends, positions, side="right")
    taken = [
        piece.take(pa.array(positions[whose == number] - (ends[number] - len(piece))))
        for number, piece in enumerate(pieces)
    ]
    return pa.Table.from_batches(taken).take(np.argsort(np.argsort(whose, kind="stable")))


def count_cells(read: ReadColumns) -> dict[str, int]:
    """How many cells, not rows, are in each state."""
    table = read(["sample", "state"])
    first = table["state"].filter(pc.equal(table["sample"], 0))
    counts = pc.value_counts(first).to_pylist()
    return dict(sorted((each["values"], each["counts"]) for each in counts))


def count_images(read: ReadColumns) -> tuple[int, int]:
    """Distinct pictures of a manifest and their bytes."""
    images = read(["image_sha256", "bytes"]).drop_null()
    distinct = images.group_by("image_sha256", use_threads=False).aggregate([("bytes", "max")])
    return len(distinct), pc.sum(distinct["bytes_max"]).as_py() or 0


def content_hash(read: ReadColumns) -> str:
    """SHA-256 of a manifest's requests, states and pictures, whatever run brought them.

    It is that of ``{"prompt_id":[…],"sample":[…],…}`` as JSON without spaces.
    """
    digest = hashlib.sha256()
    names = ("prompt_id", "sample", "request_key", "state", "image_sha256")
    for lead, name in zip("{,,,,", names, strict=True):
        # A column at a time: as Python's objects all of them would be several times the table.
        told = json.dumps(read([name])[name].to_pylist(), separators=(",", ":"))
        digest.update(f'{lead}"{name}":{told}'.encode())
    digest.update(b"}")
    return digest.hexdigest()


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
        "attempts": entry.tries,
        "run_id": attempt.run_id if attempt else None,
        "accepted": attempt.accepted if attempt else None,
    }
    images = {image.sample: image for image in entry.images}
    for sample in sorted(set(images) | set(range(entry.samples))):
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
