"""Which pictures look alike: perceptual hashes that differ in few of 64 bits.

Two hashes that differ in at most n bits are equal in at least one of n+1 blocks of their bits, so
only hashes that share a block are compared (multi-index hashing; Norouzi, Punjani and Fleet, 2012).
"""

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from nanobanana_pipeline.features.judging import Hashes, hashes_of

__all__ = ["Positions", "components", "first_alike", "near_pairs"]

BITS: Final = 64
PAIRS_AT_ONCE: Final = 1 << 20
"""Pairs that are handed over at once, about."""

Positions = npt.NDArray[np.int64]


def near_pairs(hashes: Hashes, distance: int) -> Iterator[tuple[Positions, Positions]]:
    """All pairs that differ in at most `distance` bits, in batches; a pair may come repeatedly.

    Memory stays bounded by `PAIRS_AT_ONCE` and the number of hashes; the time grows with the pairs
    that share a block, so hashes should be distinct.
    """
    waiting: list[tuple[Positions, Positions]] = []
    found = 0
    edges = np.linspace(0, BITS, distance + 2).astype(np.uint64)
    for low, high in pairwise(edges):
        # Shifted apart, so that a block of all 64 bits needs no special case.
        blocks = (hashes << (np.uint64(BITS) - high)) >> (np.uint64(BITS) - high + low)
        order = np.argsort(blocks, kind="stable")
        blocks = blocks[order]
        # Where a hash's k-th successor has another block, no later one has its own.
        left, step = np.arange(len(hashes)), 0
        while len(left):
            step += 1
            left = left[left + step < len(hashes)]
            left = left[blocks[left] == blocks[left + step]]
            one, other = order[left], order[left + step]
            near = np.bitwise_count(hashes[one] ^ hashes[other]) <= distance
            waiting.append((one[near], other[near]))
            found += int(near.sum())
            if found >= PAIRS_AT_ONCE:
                yield _together(waiting)
                waiting, found = [], 0
    if found:
        yield _together(waiting)


def components(count: int, links: Iterable[tuple[Positions, Positions]]) -> Positions:
    """Which of `count` things hang together through links: a number for each, equal for those."""
    # Takes a fifth of a second, which Dagster would pay for each process that loads a recipe.
    from scipy.sparse import coo_array  # noqa: PLC0415
    from scipy.sparse.csgraph import connected_components  # noqa: PLC0415

    label = np.arange(count)
    for left, right in links:
        one, other = label[left], label[right]
        new = one != other
        if new.any():
            ones = np.ones(int(new.sum()), dtype=np.int8)
            graph = coo_array((ones, (one[new], other[new])), shape=(count, count))
            _, merged = connected_components(graph, directed=False)
            label = merged[label].astype(np.int64)
    return label


def first_alike(phashes: pd.Series, distance: int) -> Positions:
    """For each picture the position of the first one that it looks like: its own if of none.

    Pictures are taken in order; one is compared with those that were like none before it. Hashes
    have 16 hexadecimal digits, and differ in at most `distance` bits; one without is like none.
    """
    stands_for = np.arange(len(phashes))
    known = np.flatnonzero(phashes.notna())
    codes, distinct = pd.factorize(phashes.iloc[known])
    hashes = hashes_of(distinct)
    involved = np.zeros(len(hashes), dtype=np.bool_)
    for one, other in near_pairs(hashes, distance):
        involved[one] = involved[other] = True
    alike = np.arange(len(hashes))
    kept, last = np.empty(int(involved.sum()), dtype=np.int64), 0
    for position in np.flatnonzero(involved):
        near = np.bitwise_count(hashes[kept[:last]] ^ hashes[position]) <= distance
        if near.any():
            alike[position] = kept[np.argmax(near)]
        else:
            kept[last] = position
            last += 1
    first = np.unique(codes, return_index=True)[1]
    stands_for[known] = known[first[alike[codes]]]
    return stands_for


def _together(pairs: list[tuple[Positions, Positions]]) -> tuple[Positions, Positions]:
    return np.concatenate([one for one, _ in pairs]), np.concatenate([two for _, two in pairs])
