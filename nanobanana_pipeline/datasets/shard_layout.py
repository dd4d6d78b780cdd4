"""Assigns the rows of a release to shards (`ShardAssignment`), and gives them their keys.

A row that was released before keeps its key and its shard, so that a shard whose rows are all the
same has the same digest, and with it the same file. New rows make new shards.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import pandas as pd
import pyarrow as pa

from nanobanana_pipeline.datasets.recipe import ShardSize
from nanobanana_pipeline.datasets.release_rows import schema_text

__all__ = ["BUILD", "Shard", "assign_shards"]

BUILD: Final = 2
"""Raised when the same rows shall give other bytes or paths: every shard is built anew then."""


@dataclass(frozen=True)
class Shard:
    """Rows that lie together in one file of each format.

    Attributes:
        number: of the shard in its split.
        places: the rows' numbers in the release's table, by key.
        digest: SHA-256, in hexadecimal, of all that the shard's bytes depend on.
    """

    split: str
    number: int
    places: tuple[int, ...]
    digest: str

    @property
    def name(self) -> str:
        """What it is called in every format."""
        return f"{self.split}/{self.number:05d}-{self.digest[:12]}"


@dataclass(frozen=True)
class ShardAssignment:
    """Each row's key and shard number, in the table's order, and all shards, by split and number.

    `next_key` is the first number that no row of this release or an earlier one has had.
    """

    keys: tuple[str, ...]
    shards: tuple[Shard, ...]
    numbers: tuple[int, ...]
    next_key: int


def assign_shards(
    table: pa.Table,
    digests: Sequence[str],
    size: ShardSize,
    earlier: pd.DataFrame | None = None,
    next_key: int = 0,
) -> ShardAssignment:
    """Assign a release's rows to shards, given their `row_digests`.

    All pictures of a shard have one format, since every sample of a shard must have the same files.
    Of the parent are its `next_key`, and row_id, split, format, key and shard of its rows.
    """
    columns = table.select(["row_id", "split", "format", "bytes"]).to_pydict()
    rows = list(zip(*columns.values(), strict=True))
    known = {} if earlier is None else _known(earlier)
    highest: dict[str, int] = {}
    for split, _, _, number in known.values():
        highest[split] = max(highest.get(split, -1), number)
    keys, numbers = [""] * len(rows), [-1] * len(rows)
    newcomers: dict[tuple[str, str], list[int]] = {}
    for place, (row_id, split, kind, _) in enumerate(rows):
        before = known.get(row_id)
        if before is not None and before[:2] == (split, kind):
            keys[place], numbers[place] = before[2], before[3]
        else:
            keys[place] = before[2] if before else f"{next_key:09d}"
            next_key += before is None
            newcomers.setdefault((split, kind), []).append(place)
    for (split, _), places in newcomers.items():
        for full in _filled(places, [row[3] for row in rows], size):
            highest[split] = highest.get(split, -1) + 1
            for place in full:
                numbers[place] = highest[split]
    members: dict[tuple[str, int], list[int]] = {}
    for place, number in enumerate(numbers):
        members.setdefault((rows[place][1], number), []).append(place)
    schema = schema_text(table.schema)
    shards = []
    for (split, number), places in sorted(members.items()):
        places.sort(key=keys.__getitem__)
        made_of = [BUILD, schema, [[keys[place], digests[place]] for place in places]]
        digest = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()
        shards.append(Shard(split, number, tuple(places), digest))
    return ShardAssignment(tuple(keys), tuple(shards), tuple(numbers), next_key)


def _known(earlier: pd.DataFrame) -> dict[str, tuple[str, str, str, int]]:
    wanted = ["split", "format", "key", "shard"]
    rows = zip(*(earlier[name].tolist() for name in wanted), strict=True)
    return dict(zip(earlier["row_id"].tolist(), rows, strict=True))


def _filled(places: Sequence[int], sizes: Sequence[int], size: ShardSize) -> Iterator[list[int]]:
    full: list[int] = []
    held = 0
    for place in places:
        if full and (len(full) >= size.images or held + sizes[place] > size.bytes):
            yield full
            full, held = [], 0
        full.append(place)
        held += sizes[place]
    yield full
