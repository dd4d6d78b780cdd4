"""What a launch is asked for, and what it would find; nothing is written for it."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from nanobanana_pipeline.errors import PlanError
from nanobanana_pipeline.generation.cells import Cells, check_seed, draw_cells
from nanobanana_pipeline.generation.evidence import may_have_evidence
from nanobanana_pipeline.generation.manifest import (
    CellState,
    CurrentManifest,
    read_current,
    read_manifest,
)
from nanobanana_pipeline.generation.runs import Plan
from nanobanana_pipeline.generation.work import PlannedRequest
from nanobanana_pipeline.ledger import Ledger, State
from nanobanana_pipeline.money import Budget
from nanobanana_pipeline.request import DeliveryParameters, PictureParameters
from nanobanana_pipeline.storage import ObjectStore

__all__ = ["Launch", "Survey", "known_rows", "survey_cells"]


@dataclass(frozen=True)
class Launch:
    """What somebody asked for.

    Attributes:
        prompt_set: its name.
        seed: 1 to 2^32-1.
        run_id: names everything that this launch writes.
        parameters: those that were named; the others stay as they are.
        delivery: how the pictures come; chosen anew by each launch.
        change_parameters: accept parameters other than those the partition was made with.
        limit: a pilot's number of rows.
        shard_size: most requests a shard; None keeps them in one.
        rebuy: buy again what is in doubt or lost, where no evidence settles it.
        max_images, max_cost: caps of this run's own, beside those that are configured; with 0
            images it buys nothing, and only brings to its end what was bought.
        only: request keys to which the launch keeps; None for all that are missing.
    """

    prompt_set: str
    seed: int
    run_id: str
    parameters: PictureParameters = field(default_factory=PictureParameters)
    delivery: DeliveryParameters = field(default_factory=DeliveryParameters)
    change_parameters: bool = False
    limit: int | None = None
    shard_size: int | None = None
    rebuy: bool = False
    max_images: int | None = None
    max_cost: Decimal | None = None
    only: frozenset[str] | None = None

    @property
    def faults(self) -> list[str]:
        """What is out of range; a sentence a fault."""
        found = []
        for name, least in (("limit", 1), ("shard_size", 1), ("max_images", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                found.append(f"{name} {value} is out of range: use {least} or more, or none")
        if self.max_cost is not None and not (self.max_cost.is_finite() and self.max_cost > 0):
            found.append(f"max_cost {self.max_cost} is out of range: use an amount above 0")
        return found


@dataclass(frozen=True)
class Survey:
    """What a launch would find; nothing is written for it.

    Attributes:
        made: the plan, without run files.
        changes: picture parameters that differ from those the partition was made with: old, new.
        cells: the partition's.
        todo: whether each request that is to be settled is to be bought (bool); its index has the
            request's position in `cells.frame`.
    """

    made: Plan
    changes: Mapping[str, tuple[Any, Any]]
    cells: Cells
    todo: pd.Series

    def requests(self, launch: Launch) -> Iterator[PlannedRequest]:
        """What is to be settled, as the engine takes it."""
        keys = self.cells.frame["request_key"].iloc[self.todo.index]
        requests = self.cells.requests(self.todo.index, launch.delivery)
        for key, request, buy in zip(keys, requests, self.todo, strict=True):
            yield PlannedRequest(key, request, buy)


def survey_cells(
    store: ObjectStore, realm: str, launch: Launch, prompts: pd.DataFrame, budget: Budget
) -> Survey:
    """Find what is missing of a partition, and what it will cost.

    Settled rows of the current manifest are trusted; the ledger is read for the rest only.

    Args:
        store: the bucket.
        realm: whose pictures these are.
        launch: what was asked for.
        prompts: the prompt set's rows.
        budget: the price, and the caps that hold for every launch.

    Raises:
        PlanError: the launch must not start; the text says why and what to do.
        StorageError: S3 refuses or holds damaged objects.
    """
    _check(launch, budget)
    current, _ = read_current(store, launch.prompt_set, launch.seed)
    parameters, changes = _parameters(current, launch.parameters)
    cells = draw_cells(
        prompts, seed=launch.seed, parameters=parameters, realm=realm, limit=launch.limit
    )
    asked = cells.frame.loc[cells.frame["requested"], ["request_key", "samples"]]
    asked = asked[_is_first(asked["request_key"])]
    known = known_rows(store, current, asked["request_key"], ["request_key", "state"])
    settled = known.loc[known["state"] == CellState.SETTLED, "request_key"]
    rest = asked[~_is_among(asked["request_key"], settled)]
    held = Ledger(store).read_many(rest["request_key"])
    entries = {key: found.entry for key, found in held.items()}
    wanted = rest if launch.only is None else rest[rest["request_key"].isin(launch.only)]
    tried = {key: entries[key] for key in wanted["request_key"] if key in entries}
    may_buy = launch.max_images != 0
    barred = {k for k, e in tried.items() if not (may_buy and e.may_claim(rebuy=launch.rebuy))}
    buy = wanted[may_buy & ~wanted["request_key"].isin(barred)]
    resume = {k for k, e in tried.items() if e.state in {State.ACCEPTED, State.SUBMITTING}}
    look = {key for key in barred if may_have_evidence(tried[key])}
    todo = pd.Series(rest.index.isin(buy.index), index=rest.index)
    todo = todo[todo | rest["request_key"].isin(resume | look)]
    counted = Counter(entry.state.value for entry in entries.values())
    counted["open"] += len(rest) - len(entries)
    counted["settled"] += settled.nunique()
    made = Plan(
        prompt_set=launch.prompt_set,
        seed=launch.seed,
        run_id=launch.run_id,
        fingerprint="",
        parameters=parameters,
        limit=launch.limit,
        cells=len(cells.frame),
        states=dict(sorted((+counted).items())),
        buy=len(buy),
        buy_images=int(buy["samples"].sum()),
        resume=len(resume),
        look=len(look),
        price=budget.price,
        rebuy=launch.rebuy,
        max_images=launch.max_images,
        max_cost=launch.max_cost,
    )
    return Survey(made, changes, cells, todo)


def known_rows(
    store: ObjectStore,
    current: CurrentManifest | None,
    keys: pd.Series,
    columns: list[str] | None = None,
) -> pd.DataFrame:
    """The current manifest's rows for these requests: all columns, or those that are named."""
    if current is None:
        return pd.DataFrame({"request_key": [], "state": []}, dtype="str")
    rows = read_manifest(store, current.manifest, columns)
    return rows[_is_among(rows["request_key"], keys)]


def _parameters(
    current: CurrentManifest | None, named: PictureParameters
) -> tuple[dict[str, Any], dict[str, tuple[Any, Any]]]:
    """The parameters in force, and those that differ from what the partition was made with."""
    before = {**PictureParameters.defaults(), **(current.parameters if current else {})}
    given = named.given()
    changes = {
        name: (before[name], value) for name, value in given.items() if before[name] != value
    }
    return {**before, **given}, changes if current else {}


def _check(launch: Launch, budget: Budget) -> None:
    check_seed(launch.seed)
    if launch.faults:
        raise PlanError("; ".join(launch.faults))
    if launch.max_cost is not None and budget.price is None:
        raise PlanError(
            f"max_cost {launch.max_cost} cannot be kept while the price is unknown: set "
            "NANOBANANA_PRICE_PER_IMAGE, or cap the images with max_images"
        )


# pandas' own `isin` and `duplicated` make Python's objects of all strings: 400 MB for a million.
def _is_among(column: pd.Series, values: pd.Series) -> np.ndarray:
    among = pc.is_in(pa.array(column), value_set=pa.array(values))
    return np.asarray(among)


def _is_first(column: pd.Series) -> np.ndarray:
    return ~pd.Series(column.factorize()[0]).duplicated().to_numpy()
