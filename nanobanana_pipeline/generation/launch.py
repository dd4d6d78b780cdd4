"""One launch of one partition, in the three steps that Dagster's graph and the CLI share.

`plan` finds what is missing and writes it down under the run; `settle_shard` buys and brings a
shard of it; `collect` publishes the manifest. Only S3 passes between them, so that each may run in
a process or on a machine of its own.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from importlib.metadata import version as installed_version
from typing import Any

import pandas as pd

from nanobanana_pipeline.errors import PlanError
from nanobanana_pipeline.generation.budget import open_purse, settle_accounts
from nanobanana_pipeline.generation.cells import Cells, check_seed, draw_cells
from nanobanana_pipeline.generation.engine import Engine, Progress, Report
from nanobanana_pipeline.generation.evidence import may_have_evidence
from nanobanana_pipeline.generation.manifest import (
    CellState,
    CurrentManifest,
    manifest_key,
    publish,
    read_current,
    read_manifest,
)
from nanobanana_pipeline.generation.manifest_rows import (
    content_hash,
    count_cells,
    count_images,
    manifest_table,
)
from nanobanana_pipeline.generation.metrics import told_metrics
from nanobanana_pipeline.generation.notes import SettledNotes, read_settled
from nanobanana_pipeline.generation.runs import (
    Plan,
    mark_done,
    read_plan,
    read_shard,
    write_plan,
    write_shards,
)
from nanobanana_pipeline.generation.work import PlannedRequest
from nanobanana_pipeline.ledger import Entry, Held, Ledger, State, now_iso
from nanobanana_pipeline.money import Budget, cost_text
from nanobanana_pipeline.prompts import prompt_set
from nanobanana_pipeline.provider.account import Account
from nanobanana_pipeline.provider.slots import Slots
from nanobanana_pipeline.request import DeliveryParameters, PictureParameters
from nanobanana_pipeline.storage import ObjectStore
from nanobanana_pipeline.wording import counted

__all__ = [
    "Launch",
    "Plan",
    "Survey",
    "collect",
    "needs_rescue",
    "plan",
    "settle_shard",
    "survey_cells",
]


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


def plan(
    store: ObjectStore,
    realm: str,
    launch: Launch,
    budget: Budget = Budget(),  # noqa: B008 - frozen
) -> Plan:
    """Find what is missing, and write run files for it.

    Args:
        store: the bucket.
        realm: whose pictures these are.
        launch: what was asked for.
        budget: the price, and the caps that hold for every launch.

    Raises:
        PlanError: the launch must not start; the text says why and what to do.
        StorageError: S3 refuses or holds damaged objects.
    """
    snapshot = prompt_set.current(store, launch.prompt_set)
    if snapshot is None:
        raise PlanError(
            f"there is no prompt set {launch.prompt_set!r} in {store.uri('')}: materialize "
            "prompt_set first"
        )
    prompts = prompt_set.load(store, launch.prompt_set, snapshot.fingerprint)
    survey = survey_cells(store, realm, launch, prompts, budget)
    made = replace(survey.made, fingerprint=snapshot.fingerprint)
    if survey.changes and not launch.change_parameters:
        raise PlanError(_refusal(made, survey.changes))
    requests, count = survey.requests(launch), len(survey.todo)
    names = write_shards(store, launch.run_id, requests, count, launch.shard_size)
    made = replace(made, shards=names, code_version=installed_version("nanobanana-pipeline"))
    write_plan(store, made)
    return made


@dataclass(frozen=True)
class Survey:
    """What a launch would find; nothing is written for it.

    Attributes:
        made: the plan, without run files.
        changes: picture parameters that differ from those the partition was made with: old, new.
        cells: the partition's.
        todo: positions in `cells.frame` of what is to be settled, and whether it is to be bought.
    """

    made: Plan
    changes: Mapping[str, tuple[Any, Any]]
    cells: Cells
    todo: Mapping[int, bool]

    def requests(self, launch: Launch) -> Iterator[PlannedRequest]:
        """What is to be settled, as the engine takes it."""
        positions = list(self.todo)
        keys = self.cells.frame["request_key"].iloc[positions]
        for key, request, buy in zip(
            keys, self.cells.requests(positions, launch.delivery), self.todo.values(), strict=True
        ):
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
    asked = cells.frame[cells.frame["requested"]].drop_duplicates("request_key")
    known = _known_rows(store, current, asked["request_key"])
    settled = known[known["state"] == CellState.SETTLED]
    rest = asked[~asked["request_key"].isin(settled["request_key"])]
    held = Ledger(store).read_many(rest["request_key"])
    entries = {key: found.entry for key, found in held.items()}
    wanted = [k for k in rest["request_key"] if launch.only is None or k in launch.only]
    tried = {key: entries[key] for key in wanted if key in entries}
    buy = [key for key in wanted if _may_be_bought(tried.get(key), launch)]
    resume = {k for k, e in tried.items() if e.state in {State.ACCEPTED, State.SUBMITTING}}
    look = {k for k, e in tried.items() if may_have_evidence(e)} - set(buy)
    todo = rest.loc[rest["request_key"].isin({*buy, *resume, *look}), "request_key"]
    counted = Counter(entry.state.value for entry in entries.values())
    counted["open"] += len(rest) - len(entries)
    counted["settled"] += settled["request_key"].nunique()
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
        buy_images=int(asked.loc[asked["request_key"].isin(buy), "samples"].sum()),
        resume=len(resume),
        look=len(look),
        price=budget.price,
        rebuy=launch.rebuy,
        max_images=launch.max_images,
        max_cost=launch.max_cost,
    )
    positions = [int(at) for at in todo.index.to_numpy()]
    return Survey(made, changes, cells, dict(zip(positions, todo.isin(buy), strict=True)))


def settle_shard(
    store: ObjectStore,
    account: Account,
    run_id: str,
    shard: str,
    *,
    slots: int | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    progress_seconds: float = 10.0,
) -> Report:
    """Settle the requests of one run file.

    Args:
        store: the bucket.
        account: who buys.
        run_id: the launch.
        shard: one of `Plan.shards`.
        slots: most requests at the provider at once; the account's if None.
        on_progress: called now and then from this thread.
        progress_seconds: how often.

    Raises:
        PlanError: fewer than one slot.
        StorageError: S3 refuses, or the run file is missing.
        BaseException: what interrupted this thread, after what is under way has had its grace.
    """
    if slots is not None and slots < 1:
        raise PlanError(f"slots {slots} is out of range: use 1 or more, or leave it out")
    made = read_plan(store, run_id)
    todo = read_shard(store, run_id, shard)
    expected = sum(planned.request.samples for planned in todo if planned.buy)
    with (
        told_metrics(run_id, account.budget.price) as metrics,
        open_purse(store, account.budget, made, shard, expected) as purse,
    ):
        notes = SettledNotes()
        engine = Engine(
            store,
            account,
            Slots(slots or account.slots),
            purse,
            run_id=run_id,
            rebuy=made.rebuy,
            on_progress=on_progress,
            progress_seconds=progress_seconds,
            on_settled=notes.add,
            metrics=metrics,
        )
        report = engine.settle(todo, len(todo))
        notes.write(store, run_id, shard)
        return report


def collect(store: ObjectStore, realm: str, made: Plan, report: Report) -> CurrentManifest:
    """Publish the manifest of a launched partition, from what the ledger says now.

    Raises:
        StorageError: S3 refuses or holds damaged objects.
    """
    cells = draw_cells(
        prompt_set.load(store, made.prompt_set, made.fingerprint),
        seed=made.seed,
        parameters=made.parameters,
        realm=realm,
        limit=made.limit,
    )
    keys = cells.frame["request_key"].drop_duplicates()
    ledger = Ledger(store)
    noted = {
        entry.request_key: entry
        for shard in made.shards
        for entry in read_settled(store, made.run_id, shard)
    }
    while True:
        before, etag = read_current(store, made.prompt_set, made.seed)
        known = _known_rows(store, before, keys)
        settled = known[known["state"] == CellState.SETTLED]
        # A smaller limit does not make unseen what was asked for under a larger one.
        asked = [
            cells.frame.loc[cells.frame["requested"], "request_key"],
            known.loc[known["state"] != CellState.NOT_REQUESTED, "request_key"],
        ]
        rest = pd.concat(asked).drop_duplicates()
        rest = rest[~rest.isin(settled["request_key"])]
        here = [noted[key] for key in rest if key in noted]
        held = ledger.read_many(key for key in rest if key not in noted)
        table = manifest_table(
            cells,
            made.prompt_set,
            settled,
            [*here, *(h.entry for h in held.values())],
            store.uri,
            missing=_state_of_missing(made, report),
        )
        images, size = count_images(table)
        current = CurrentManifest(
            prompt_set=made.prompt_set,
            seed=made.seed,
            manifest=manifest_key(made.prompt_set, made.seed, made.run_id),
            fingerprint=made.fingerprint,
            parameters=made.parameters,
            limit=made.limit,
            cells=count_cells(table),
            request_seconds=report.request_seconds or (before.request_seconds if before else None),
            abandoned=_count_abandoned(cells, held),
            images=images,
            size=size,
            content=content_hash(table),
            rows=table.num_rows,
            run_id=made.run_id,
            created=now_iso(),
        )
        if publish(store, table, current, etag):
            break
    if not any(needs_rescue(h.entry, made.run_id) for h in held.values()):
        mark_done(store, made.run_id, report.bought)
    settle_accounts(store, made.prompt_set, made.seed, is_complete=not current.gaps)
    return current


def _state_of_missing(made: Plan, report: Report) -> CellState:
    """What cells are that could be bought and were not; a run that may not buy says nothing."""
    capped = report.over_budget and made.max_images != 0
    return CellState.OVER_BUDGET if capped else CellState.PENDING


def needs_rescue(entry: Entry, run_id: str) -> bool:
    """Whether a run has bought something that is neither here nor given up."""
    unfinished = {State.SUBMITTING, State.ACCEPTED, State.IN_DOUBT}
    return entry.state in unfinished and any(a.run_id == run_id for a in entry.attempts)


def _count_abandoned(cells: Cells, held: Mapping[str, Held]) -> int:
    given_up = [key for key, found in held.items() if found.entry.is_abandoned]
    return int(cells.frame["request_key"].isin(given_up).sum())


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


def _may_be_bought(entry: Entry | None, launch: Launch) -> bool:
    if launch.max_images == 0:
        return False
    return entry is None or entry.may_claim(rebuy=launch.rebuy)


def _refusal(made: Plan, changes: Mapping[str, tuple[Any, Any]]) -> str:
    named = ", ".join(f"{name} {old!r} → {new!r}" for name, (old, new) in changes.items())
    cost = "an unknown price" if made.cost is None else cost_text(made.cost)
    return (
        f"{made.prompt_set}, seed {made.seed} was made with other parameters ({named}); going on "
        f"would buy {counted(made.buy, 'request')} for "
        f"{counted(made.buy_images, 'new image')} at {cost}. Leave the parameters out to keep "
        "those in force, or set change_parameters to buy the new ones"
    )


def _known_rows(
    store: ObjectStore, current: CurrentManifest | None, keys: pd.Series
) -> pd.DataFrame:
    """The current manifest's rows for these requests."""
    if current is None:
        return pd.DataFrame({"request_key": [], "state": []}, dtype="str")
    rows = read_manifest(store, current.manifest)
    return rows[rows["request_key"].isin(keys)]
