"""One launch of one partition, in the three steps that Dagster's graph and the CLI share.

`plan` finds what is missing and writes it down under the run; `settle_shard` buys and brings a
shard of it; `collect` publishes the manifest. Only S3 passes between them, so that each may run in
a process or on a machine of its own.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version as installed_version
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nanobanana_pipeline.errors import PlanError
from nanobanana_pipeline.generation.budget.reservations import (
    open_shard_budget,
    reclaim_reservations,
)
from nanobanana_pipeline.generation.engine.engine import Engine, Progress, Report
from nanobanana_pipeline.generation.engine.metrics import open_metrics
from nanobanana_pipeline.generation.manifest.manifest import (
    CellState,
    CurrentManifest,
    manifest_key,
    publish,
    read_current,
)
from nanobanana_pipeline.generation.manifest.rows import (
    OUTCOMES,
    content_hash,
    count_cells,
    count_images,
    manifest_batches,
    outcomes,
)
from nanobanana_pipeline.generation.manifest.shard_log import ShardLog, read_shard_log
from nanobanana_pipeline.generation.planning.cells import Cells, draw_cells
from nanobanana_pipeline.generation.planning.planner import Launch, plan_cells
from nanobanana_pipeline.generation.planning.run_files import (
    RunPlan,
    mark_done,
    read_plan,
    read_shard,
    write_plan,
    write_shards,
)
from nanobanana_pipeline.generation.planning.settled_keys import is_among, read_settled_keys
from nanobanana_pipeline.ledger import Entry, Held, Ledger, State, now_iso
from nanobanana_pipeline.money import Budget, cost_text
from nanobanana_pipeline.prompts import prompt_set
from nanobanana_pipeline.provider.account import Account
from nanobanana_pipeline.provider.slots import Slots
from nanobanana_pipeline.storage import ObjectStore
from nanobanana_pipeline.storage.cas import contention
from nanobanana_pipeline.storage.versioned import packed
from nanobanana_pipeline.wording import counted

__all__ = [
    "collect",
    "needs_rescue",
    "plan",
    "settle_shard",
]


def plan(
    store: ObjectStore,
    realm: str,
    launch: Launch,
    budget: Budget = Budget(),  # noqa: B008 - frozen
) -> RunPlan:
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
    survey = plan_cells(store, realm, launch, prompts, budget)
    made = replace(survey.made, fingerprint=snapshot.fingerprint)
    if survey.changes and not launch.change_parameters:
        raise PlanError(_refusal(made, survey.changes))
    requests, count = survey.requests(launch), len(survey.todo)
    names = write_shards(store, launch.run_id, requests, count, launch.shard_size)
    made = replace(made, shards=names, code_version=installed_version("nanobanana-pipeline"))
    write_plan(store, made)
    return made


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
        open_metrics(run_id, account.budget.price) as metrics,
        open_shard_budget(store, account.budget, made, shard, expected) as purse,
    ):
        notes = ShardLog()
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


def collect(store: ObjectStore, realm: str, made: RunPlan, report: Report) -> CurrentManifest:
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
    missing = _state_of_missing(made, report)
    back_off = contention(f"the manifest of {made.prompt_set}, seed {made.seed}")
    while True:
        before, etag = read_current(store, made.prompt_set, made.seed)
        left = _Left(made.run_id)
        known = _known(store, made, before, cells, left, missing)
        file = packed(manifest_batches(cells, made.prompt_set, known, missing))
        del known  # as large as all that follows
        # Read back by columns: together they take several times the packed file.
        there = pq.ParquetFile(pa.BufferReader(file))
        images, size = count_images(there.read)
        current = CurrentManifest(
            prompt_set=made.prompt_set,
            seed=made.seed,
            manifest=manifest_key(made.prompt_set, made.seed, made.run_id),
            fingerprint=made.fingerprint,
            parameters=made.parameters,
            limit=made.limit,
            cells=count_cells(there.read),
            request_seconds=report.request_seconds or (before.request_seconds if before else None),
            abandoned=int(is_among(cells.frame["request_key"], left.abandoned).sum()),
            images=images,
            size=size,
            content=content_hash(there.read),
            rows=there.metadata.num_rows,
            run_id=made.run_id,
            created=now_iso(),
        )
        if publish(store, file, current, etag):
            break
        back_off()
    if not left.needs_rescue:
        mark_done(store, made.run_id, report.bought)
    reclaim_reservations(store, made.prompt_set, made.seed, is_complete=not current.gaps)
    return current


def _known(
    store: ObjectStore,
    made: RunPlan,
    before: CurrentManifest | None,
    cells: Cells,
    left: "_Left",
    missing: CellState,
) -> list[pa.Table]:
    """What came of all requests that were ever asked for.

    From the manifest in force, from what shards have noted, and for the rest from the ledger.
    """
    noted = outcomes(_noted(store, made), store.uri)
    known = read_settled_keys(store, before, OUTCOMES.names)
    keys = pc.unique(pa.array(cells.frame["request_key"]))
    requested = cells.frame.loc[cells.frame["requested"], "request_key"]
    # A smaller limit does not make unseen what was asked for under a larger one.
    asked = is_among(keys, requested) | is_among(keys, known.asked)
    here = is_among(keys, known.settled["request_key"]) | is_among(keys, noted["request_key"])
    rest = keys.filter(pa.array(asked & ~here)).to_pylist()
    read = outcomes(left.watch(Ledger(store).read_many(rest)), store.uri, missing)
    return [known.settled, noted, read]


def _state_of_missing(made: RunPlan, report: Report) -> CellState:
    """What cells are that could be bought and were not; a run that may not buy says nothing."""
    capped = report.over_budget and made.max_images != 0
    return CellState.OVER_BUDGET if capped else CellState.PENDING


def needs_rescue(entry: Entry, run_id: str) -> bool:
    """Whether a run has bought something that is neither here nor given up."""
    unfinished = {State.SUBMITTING, State.ACCEPTED, State.IN_DOUBT}
    return entry.state in unfinished and any(a.run_id == run_id for a in entry.attempts)


def _noted(store: ObjectStore, made: RunPlan) -> Iterator[Entry]:
    for shard in made.shards:
        yield from read_shard_log(store, made.run_id, shard)


@dataclass
class _Left:
    """What entries say, as they go by, of what a run has left behind.

    Attributes:
        abandoned: request keys that somebody has given up.
        needs_rescue: as the function of this name has it, of any of them.
    """

    run_id: str
    abandoned: list[str] = field(default_factory=list)
    needs_rescue: bool = False

    def watch(self, entries: Iterable[Held]) -> Iterator[Entry]:
        for held in entries:
            if held.entry.is_abandoned:
                self.abandoned.append(held.entry.request_key)
            self.needs_rescue = self.needs_rescue or needs_rescue(held.entry, self.run_id)
            yield held.entry


def _refusal(made: RunPlan, changes: Mapping[str, tuple[Any, Any]]) -> str:
    named = ", ".join(f"{name} {old!r} → {new!r}" for name, (old, new) in changes.items())
    cost = "an unknown price" if made.cost is None else cost_text(made.cost)
    return (
        f"{made.prompt_set}, seed {made.seed} was made with other parameters ({named}); going on "
        f"would buy {counted(made.buy, 'request')} for "
        f"{counted(made.buy_images, 'new image')} at {cost}. Leave the parameters out to keep "
        "those in force, or set change_parameters to buy the new ones"
    )
