"""The cells of a partition: each row of a prompt set under one seed, with its request and key."""

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from types import MappingProxyType
from typing import Any, Final

import pandas as pd

from nanobanana_pipeline.errors import PlanError
from nanobanana_pipeline.request import ImageRequest, request_key

__all__ = ["LAST_SEED", "Cells", "build_cells", "build_requests", "check_seed", "read_seeds"]

LAST_SEED: Final = 2**32 - 1
MAX_SEEDS: Final = 10_000
CELLS_AT_ONCE: Final = 10_000
"""Rows that are Python objects at once."""


@dataclass(frozen=True)
class Cells:
    """A partition's cells.

    Attributes:
        frame: one row a cell, in the prompt set's order: prompt_id (str), prompt (str),
            request_key (str, 64 hexadecimal digits), seed_asked (int64), samples (int64),
            requested (bool; False outside a pilot's limit).
        prompts: the prompt set that they were made from.
        seed: the partition's.
        parameters: in force for rows that do not say otherwise; all named.
        model: of the provider's requests.
    """

    frame: pd.DataFrame
    prompts: pd.DataFrame
    seed: int
    parameters: Mapping[str, Any]
    model: type[ImageRequest]

    def requests(
        self, positions: list[int] | pd.Index, delivery: Mapping[str, Any] = MappingProxyType({})
    ) -> Iterator[ImageRequest]:
        """The requests of the cells at these positions of `frame`, delivered as a launch says."""
        chosen = {**self.parameters, **delivery}
        for first in range(0, len(positions), CELLS_AT_ONCE):
            some = self.prompts.iloc[positions[first : first + CELLS_AT_ONCE]]
            yield from build_requests(some, self.seed, chosen, self.model)


def check_seed(seed: int) -> int:
    """Accept a partition's seed.

    Raises:
        PlanError: it is not 1 to 2^32-1.
    """
    if seed == 0:
        raise PlanError(
            "seed 0 asks the provider for a random seed: the same cell would be another picture "
            "each time. Use 1 to 4294967295"
        )
    if not 1 <= seed <= LAST_SEED:
        raise PlanError(f"seed {seed} is out of range: use 1 to {LAST_SEED}")
    return seed


def read_seeds(text: str) -> list[int]:
    """Seeds from ``1-4`` or ``1,7,9-12``, each once.

    Raises:
        ValueError: it says something else.
        PlanError: a seed that may not be bought.
    """
    chosen: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
        if not 0 <= last - first < MAX_SEEDS:
            raise ValueError(f"wants 1-4 or 1,7,9-12, not {text!r}")
        chosen += [check_seed(seed) for seed in range(first, last + 1)]
    return list(dict.fromkeys(chosen))


def build_cells(
    prompts: pd.DataFrame,
    *,
    seed: int,
    parameters: Mapping[str, Any],
    realm: str,
    limit: int | None,
    model: type[ImageRequest],
) -> Cells:
    """Build a partition's cells, each with its request key.

    Args:
        prompts: a prompt set (see `prompts.prompt_set.load`).
        seed: the partition's; a row with a `seed` of its own keeps that.
        parameters: all of `model.default_parameters`; a row's own columns go first.
        realm: part of the key.
        limit: a pilot's number of rows; which ones depends on their ids alone, and a larger limit
            holds a smaller one's rows.
        model: of the provider's requests.
    """
    check_seed(seed)
    requests = (
        (request_key(request, realm=realm), request.seed, request.samples)
        for request in build_requests(prompts, seed, parameters, model)
    )
    kinds = {"request_key": "str", "seed_asked": "int64", "samples": "int64"}
    drawn = [
        pd.DataFrame(some, columns=list(kinds)).astype(kinds)
        for some in chain([[]], iter(lambda: list(islice(requests, CELLS_AT_ONCE)), []))
    ]
    frame = prompts[["prompt_id", "prompt"]].reset_index(drop=True)
    frame = pd.concat([frame, pd.concat(drawn, ignore_index=True)], axis="columns")
    return Cells(
        frame.assign(requested=_pilot(frame["prompt_id"], limit)), prompts, seed, parameters, model
    )


def build_requests(
    prompts: pd.DataFrame, seed: int, parameters: Mapping[str, Any], model: type[ImageRequest]
) -> Iterator[ImageRequest]:
    """The request of each row of a prompt set, in order; arguments as `build_cells` takes them."""
    named = [name for name in model.model_fields if name in prompts.columns]
    for first in range(0, len(prompts), CELLS_AT_ONCE):
        # Python's own strings take several times the memory of a column's.
        some = prompts[named].iloc[first : first + CELLS_AT_ONCE].astype(object)
        columns = [some[name].where(some[name].notna(), None) for name in named]
        for values in zip(*columns, strict=True):
            own = {k: value for k, value in zip(named, values, strict=True) if value is not None}
            if "ref_sha256" in own:
                own["ref_sha256"] = own["ref_sha256"].split()
            yield model(**{"seed": seed, **parameters, **own})


def _pilot(prompt_ids: pd.Series, limit: int | None) -> pd.Series:
    if limit is None or limit >= len(prompt_ids):
        return pd.Series(data=True, index=prompt_ids.index, dtype=bool)
    draw = prompt_ids.map(lambda prompt_id: hashlib.sha256(prompt_id.encode()).digest())
    chosen = draw.sort_values().index[:limit]
    return pd.Series(prompt_ids.index.isin(chosen), index=prompt_ids.index)
