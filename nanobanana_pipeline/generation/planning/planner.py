"""`plan_cells`: finds what is missing of a partition and what it would cost; writes nothing.

A `Launch` is what is asked for, a `LaunchPlan` what it would do.
"""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import pandas as pd

from nanobanana_pipeline.errors import EntryDamaged, PlanError
from nanobanana_pipeline.generation.manifest.manifest import read_current
from nanobanana_pipeline.generation.planning.cells import Cells, build_cells, check_seed
from nanobanana_pipeline.generation.planning.partition_plan import read_partition_plan
from nanobanana_pipeline.generation.planning.run_files import PlannedRequest, RunPlan
from nanobanana_pipeline.generation.planning.settled_keys import is_among, read_settled_keys
from nanobanana_pipeline.ledger import Ledger, State
from nanobanana_pipeline.money import Budget
from nanobanana_pipeline.provider.account import Account
from nanobanana_pipeline.request import ImageRequest
from nanobanana_pipeline.storage import ObjectStore

__all__ = ["Launch", "plan_cells"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Launch:
    """What is asked for: a partition, parameters, caps.

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
        only: the request keys to settle; None for all that are missing.
    """

    prompt_set: str
    seed: int
    run_id: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    delivery: Mapping[str, Any] = field(default_factory=dict)
    change_parameters: bool = False
    limit: int | None = None
    shard_size: int | None = None
    rebuy: bool = False
    max_images: int | None = None
    max_cost: Decimal | None = None
    only: frozenset[str] | None = None

    @property
    def faults(self) -> list[str]:
        """The parameters that are out of range; a sentence each."""
        found = []
        for name, least in (("limit", 1), ("shard_size", 1), ("max_images", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                found.append(f"{name} {value} is out of range: use {least} or more, or none")
        if self.max_cost is not None and not (self.max_cost.is_finite() and self.max_cost > 0):
            found.append(f"max_cost {self.max_cost} is out of range: use an amount above 0")
        return found


@dataclass(frozen=True)
class LaunchPlan:
    """What a launch would do.

    Attributes:
        run_plan: without fingerprint and shards.
        changes: picture parameters that differ from those the partition was made with: old, new.
        is_first: the partition has no manifest yet.
        cells: the partition's.
        todo: whether each request that is to be settled is to be bought (bool); its index has the
            request's position in `cells.frame`.
    """

    run_plan: RunPlan
    changes: Mapping[str, tuple[Any, Any]]
    is_first: bool
    cells: Cells
    todo: pd.Series

    def requests(self, launch: Launch) -> Iterator[PlannedRequest]:
        """What is to be settled, as the engine takes it."""
        keys = self.cells.frame["request_key"].iloc[self.todo.index]
        requests = self.cells.requests(self.todo.index, launch.delivery)
        for key, request, buy in zip(keys, requests, self.todo, strict=True):
            yield PlannedRequest(key, request, buy)


def plan_cells(
    store: ObjectStore, account: Account, launch: Launch, prompts: pd.DataFrame
) -> LaunchPlan:
    """Find what is missing of a partition, and what it will cost.

    Settled rows of the current manifest are trusted; the ledger is read for the rest only.

    Raises:
        PlanError: the launch must not start; the text says why and what to do.
        StorageError: S3 refuses or holds damaged objects.
    """
    model, budget = account.provider.request_model, account.budget
    _check(launch, budget)
    current, _ = read_current(store, launch.prompt_set, launch.seed)
    # Until its manifest is there, a first launch's plan says what is in force.
    in_force = current or read_partition_plan(store, launch.prompt_set, launch.seed)
    parameters, changes = _parameters(
        None if in_force is None else in_force.parameters, launch.parameters, model
    )
    cells = build_cells(
        prompts,
        seed=launch.seed,
        parameters=parameters,
        realm=account.realm,
        limit=launch.limit,
        model=model,
    )
    asked = cells.frame.loc[cells.frame["requested"], ["request_key", "samples"]]
    # pandas' own `duplicated` makes Python's objects of all strings.
    asked = asked[~pd.Series(asked["request_key"].factorize()[0]).duplicated().to_numpy()]
    known = read_settled_keys(store, current, ["request_key", "state"])
    is_settled = is_among(asked["request_key"], known.settled["request_key"])
    rest = asked[~is_settled]
    wanted = rest if launch.only is None else rest[is_among(rest["request_key"], launch.only)]
    may_buy = launch.max_images != 0
    barred, resume, look = set[str](), set[str](), set[str]()
    counted: Counter[str] = Counter()
    for held in Ledger(store).read_many(rest["request_key"]):
        if isinstance(held, EntryDamaged):
            # It may have been paid for: it is not bought, and `collect` shows it as a gap.
            log.warning("not bought, since its ledger entry cannot be read: %s", held)
            counted[State.IN_DOUBT.value] += 1
            barred.add(held.request_key)
            continue
        entry = held.entry
        counted[entry.state.value] += 1
        if not (may_buy and entry.may_claim(rebuy=launch.rebuy)):
            barred.add(entry.request_key)
            if entry.can_reconcile(account.provider.kept_seconds):
                look.add(entry.request_key)
        if entry.state in {State.ACCEPTED, State.SUBMITTING}:
            resume.add(entry.request_key)
    counted["open"] += len(rest) - counted.total()
    counted["settled"] += int(is_settled.sum())
    keys = wanted["request_key"]
    bought = may_buy & ~is_among(keys, barred)
    resumed, looked_at = is_among(keys, resume), is_among(keys, look)
    todo = pd.Series(bought, index=wanted.index)[bought | resumed | looked_at]
    run_plan = RunPlan(
        prompt_set=launch.prompt_set,
        seed=launch.seed,
        run_id=launch.run_id,
        fingerprint="",
        parameters=parameters,
        limit=launch.limit,
        cells=len(cells.frame),
        states=dict(sorted((+counted).items())),
        buy=int(bought.sum()),
        buy_images=int(wanted.loc[bought, "samples"].sum()),
        resume=int(resumed.sum()),
        look=int(looked_at.sum()),
        price=budget.price,
        rebuy=launch.rebuy,
        max_images=launch.max_images,
        max_cost=launch.max_cost,
    )
    return LaunchPlan(run_plan, changes, current is None, cells, todo)


def _parameters(
    in_force: Mapping[str, Any] | None, named: Mapping[str, Any], model: type[ImageRequest]
) -> tuple[dict[str, Any], dict[str, tuple[Any, Any]]]:
    """The parameters in force, and those that differ from what the partition was made with."""
    before = {**model.default_parameters(), **(in_force or {})}
    given, _ = model.read_parameters(named)
    changes = {
        name: (before[name], value) for name, value in given.items() if before[name] != value
    }
    return {**before, **given}, {} if in_force is None else changes


def _check(launch: Launch, budget: Budget) -> None:
    check_seed(launch.seed)
    if launch.faults:
        raise PlanError("; ".join(launch.faults))
    if launch.max_cost is not None and budget.price is None:
        raise PlanError(
            f"max_cost {launch.max_cost} cannot be kept while the price is unknown: set "
            "NANOBANANA_PRICE_PER_IMAGE, or cap the images with max_images"
        )
