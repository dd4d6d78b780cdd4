"""One launch of one partition, in the three steps that Dagster's graph and the CLI share.

`plan` finds what is missing and writes run files; `settle_shard` buys and stores one shard of it;
`collect` publishes the manifest. They share nothing but S3, so that each may run in a process or on
a machine of its own.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version as installed_version
from itertools import chain
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nanobanana_pipeline.errors import EntryDamaged, PlanError
from nanobanana_pipeline.generation.budget.reclaim import reclaim_partition
from nanobanana_pipeline.generation.budget.reservations import open_shard_budget
from nanobanana_pipeline.generation.engine.engine import Engine, Progress, Report
from nanobanana_pipeline.generation.engine.metrics import open_metrics
from nanobanana_pipeline.generation.engine.timing import DEFAULT_TIMING, Timing
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
    unreadable_outcomes,
)
from nanobanana_pipeline.generation.manifest.shard_log import ShardLog, read_shard_log
from nanobanana_pipeline.generation.planning.cells import Cells, build_cells
from nanobanana_pipeline.generation.planning.partition_plan import PartitionPlan, take_number
from nanobanana_pipeline.generation.planning.planner import Launch, plan_cells
from nanobanana_pipeline.generation.planning.run_files import (
    RunPlan,
    mark_done,
    read_plan,
    read_request_keys,
    read_shard,
    write_plan,
    write_shards,
)
from nanobanana_pipeline.generation.planning.settled_keys import is_among, read_settled_keys
from nanobanana_pipeline.ledger import Entry, Held, Ledger, State, now_iso
from nanobanana_pipeline.money import cost_text
from nanobanana_pipeline.prompts import prompt_set
from nanobanana_pipeline.provider.account import Account
from nanobanana_pipeline.provider.slots import Slots
from nanobanana_pipeline.storage import ObjectStore
from nanobanana_pipeline.storage.cas import contention
from nanobanana_pipeline.storage.versioned import packed
from nanobanana_pipeline.wording import counted

__all__ = ["Settled", "collect", "needs_rescue", "plan", "settle_launch", "settle_shard"]


@dataclass(frozen=True)
class Settled:
    """What came of a launch: the manifest now current, and what its shards did."""

    current: CurrentManifest
    report: Report


def plan(store: ObjectStore, account: Account, launch: Launch) -> RunPlan:
    """Find what is missing, and write run files for it.

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
    launch_plan = plan_cells(store, account, launch, prompts)
    run_plan = replace(launch_plan.run_plan, fingerprint=snapshot.fingerprint)
    if launch_plan.changes and not launch.change_parameters:
        raise _parameters_changed(run_plan, launch_plan.changes)
    is_bound = launch_plan.is_first and not launch.change_parameters
    number = take_number(
        store,
        launch.prompt_set,
        launch.seed,
        PartitionPlan(0, snapshot.fingerprint, run_plan.parameters, launch.limit),
        refuse_change=partial(_parameters_changed, run_plan) if is_bound else None,
    )
    requests, count = launch_plan.requests(launch), len(launch_plan.todo)
    shards = write_shards(store, launch.run_id, requests, count, launch.shard_size)
    code_version = installed_version("nanobanana-pipeline")
    run_plan = replace(run_plan, shards=shards, code_version=code_version, plan_number=number)
    write_plan(store, run_plan)
    return run_plan


def settle_shard(
    store: ObjectStore,
    account: Account,
    run_id: str,
    shard: str,
    *,
    slots: int | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    timing: Timing = DEFAULT_TIMING,
) -> Report:
    """Settle the requests of one run file, `slots` at once at most (the account's if None).

    `on_progress` is called now and then from this thread.

    Raises:
        PlanError: fewer than one slot.
        StorageError: S3 refuses, or the run file is missing.
        BaseException: what interrupted this thread, after requests in flight have had their grace.
    """
    if slots is not None and slots < 1:
        raise PlanError(f"slots {slots} is out of range: use 1 or more, or leave it out")
    run_plan = read_plan(store, run_id)
    requests = read_shard(store, run_id, shard, account.provider.request_model)
    expected = sum(planned.request.samples for planned in requests if planned.buy)
    with (
        open_metrics(run_id, account.budget.price) as metrics,
        open_shard_budget(
            store, account.budget, run_plan, shard, expected, timing.heartbeat
        ) as budget,
    ):
        shard_log = ShardLog()
        engine = Engine(
            store,
            account,
            Slots(slots or account.slots),
            budget,
            rebuy=run_plan.rebuy,
            on_settled=shard_log.add,
            metrics=metrics,
            timing=timing,
        )
        report = engine.settle(requests, len(requests), on_progress)
        shard_log.write(store, run_id, shard)
        return report


def collect(
    store: ObjectStore, account: Account, run_plan: RunPlan, report: Report
) -> CurrentManifest:
    """Publish the manifest of a launched partition, as the ledger is now.

    Where a newer plan was collected already, its prompts, parameters and limit stay in force, and
    only what came of the requests that these ask for is added.

    Raises:
        StorageError: S3 refuses or holds damaged objects.
    """
    cells, asked = _cells(store, account, run_plan), run_plan
    # A run that may not buy meets no cap.
    capped = report.over_budget and run_plan.max_images != 0
    missing = CellState.OVER_BUDGET if capped else CellState.PENDING
    back_off = contention(f"the manifest of {run_plan.prompt_set}, seed {run_plan.seed}")
    while True:
        before, etag = read_current(store, run_plan.prompt_set, run_plan.seed)
        if before is not None and before.plan_number > asked.plan_number:
            asked = _as_in_force(run_plan, before)
            # This run did not ask for all of its cells, so that no cap has held them back.
            cells, missing = _cells(store, account, asked), CellState.PENDING
        scan = _LedgerScan(run_plan.run_id)
        tables = _outcome_tables(store, run_plan, before, cells, scan, missing)
        file = packed(
            manifest_batches(cells.frame, run_plan.prompt_set, run_plan.seed, tables, missing)
        )
        del tables  # as large as all that follows
        # Read back by columns: together they take several times the packed file.
        written = pq.ParquetFile(pa.BufferReader(file))
        images, size = count_images(written.read)
        current = CurrentManifest(
            prompt_set=run_plan.prompt_set,
            seed=run_plan.seed,
            manifest=manifest_key(run_plan.prompt_set, run_plan.seed, run_plan.run_id),
            fingerprint=asked.fingerprint,
            parameters=asked.parameters,
            limit=asked.limit,
            plan_number=asked.plan_number,
            cells=count_cells(written.read),
            request_seconds=report.request_seconds or (before.request_seconds if before else None),
            abandoned=int(is_among(cells.frame["request_key"], scan.abandoned).sum()),
            images=images,
            size=size,
            content=content_hash(written.read),
            rows=written.metadata.num_rows,
            run_id=run_plan.run_id,
            created=now_iso(),
        )
        if publish(store, file, current, etag):
            break
        back_off()
    if not (scan.needs_rescue or _left_elsewhere(store, run_plan, asked, cells, scan)):
        mark_done(store, run_plan.run_id, report.bought)
    reclaim_partition(store, run_plan.prompt_set, run_plan.seed, is_complete=not current.gaps)
    return current


def settle_launch(
    store: ObjectStore,
    account: Account,
    launch: Launch,
    *,
    on_progress: Callable[[Progress], None] | None = None,
) -> Settled:
    """Plan, settle and account for one launch, all in this process.

    Raises:
        PlanError: the launch must not start.
        StorageError: S3 refuses or holds damaged objects.
    """
    made = plan(store, account, launch)
    report = Report()
    for shard in made.shards:
        report += settle_shard(store, account, made.run_id, shard, on_progress=on_progress)
    return Settled(collect(store, account, made, report), report)


def _cells(store: ObjectStore, account: Account, asked: RunPlan) -> Cells:
    return build_cells(
        prompt_set.load(store, asked.prompt_set, asked.fingerprint),
        seed=asked.seed,
        parameters=asked.parameters,
        realm=account.realm,
        limit=asked.limit,
        model=account.provider.request_model,
    )


def _as_in_force(run_plan: RunPlan, current: CurrentManifest) -> RunPlan:
    """A run's plan, asking for what a newer plan's manifest was made for."""
    return replace(
        run_plan,
        fingerprint=current.fingerprint,
        parameters=current.parameters,
        limit=current.limit,
        plan_number=current.plan_number,
    )


def _left_elsewhere(
    store: ObjectStore, run_plan: RunPlan, asked: RunPlan, cells: Cells, scan: "_LedgerScan"
) -> bool:
    """Whether a run may have left something to rescue that its manifest does not show.

    That is behind an entry that cannot be read, or in requests that the plan in force does not ask
    for.
    """
    if asked is run_plan and not scan.damaged:
        return False
    own = pa.array(read_request_keys(store, run_plan), pa.string())
    requested = cells.frame.loc[cells.frame["requested"], "request_key"]
    others = own.filter(pa.array(~is_among(own, requested))).to_pylist()
    if asked is not run_plan:
        for _ in scan.entries(Ledger(store).read_many(others)):
            pass
    return scan.needs_rescue or bool(is_among(own, scan.damaged).any())


def _outcome_tables(
    store: ObjectStore,
    run_plan: RunPlan,
    before: CurrentManifest | None,
    cells: Cells,
    scan: "_LedgerScan",
    missing: CellState,
) -> list[pa.Table]:
    """Outcomes of all requests that were ever asked for.

    From the current manifest, from the run's shard logs, and for the rest from the ledger.
    """
    logs = (read_shard_log(store, run_plan.run_id, shard) for shard in run_plan.shards)
    logged = outcomes(chain.from_iterable(logs), store.uri)
    settled_keys = read_settled_keys(store, before, OUTCOMES.names)
    keys = pc.unique(pa.array(cells.frame["request_key"]))
    requested = cells.frame.loc[cells.frame["requested"], "request_key"]
    # Include what was asked for under a larger limit before.
    asked = is_among(keys, requested) | is_among(keys, settled_keys.asked)
    here = is_among(keys, settled_keys.settled["request_key"]) | is_among(
        keys, logged["request_key"]
    )
    rest = keys.filter(pa.array(asked & ~here)).to_pylist()
    read = outcomes(scan.entries(Ledger(store).read_many(rest)), store.uri, missing)
    # Not before: the entries are read as their outcomes are built.
    rows = is_among(cells.frame["request_key"], scan.damaged)
    samples = cells.frame.loc[rows].set_index("request_key")["samples"].to_dict()
    unread = unreadable_outcomes({k: (samples[k], text) for k, text in scan.damaged.items()})
    return [settled_keys.settled, logged, read, unread]


def needs_rescue(entry: Entry, run_id: str) -> bool:
    """Whether a run has bought something that is neither stored nor given up."""
    unfinished = {State.SUBMITTING, State.ACCEPTED, State.IN_DOUBT}
    return entry.state in unfinished and any(a.run_id == run_id for a in entry.attempts)


@dataclass
class _LedgerScan:
    """Notes, while entries are read, which are abandoned or damaged, and if any needs a rescue.

    Attributes:
        damaged: the error of each entry that cannot be read, by request key.
    """

    run_id: str
    abandoned: list[str] = field(default_factory=list)
    damaged: dict[str, str] = field(default_factory=dict)
    needs_rescue: bool = False

    def entries(self, read: Iterable[Held | EntryDamaged]) -> Iterator[Entry]:
        for held in read:
            if isinstance(held, EntryDamaged):
                self.damaged[held.request_key] = str(held)
                continue
            if held.entry.is_abandoned:
                self.abandoned.append(held.entry.request_key)
            self.needs_rescue = self.needs_rescue or needs_rescue(held.entry, self.run_id)
            yield held.entry


def _parameters_changed(run_plan: RunPlan, changes: Mapping[str, tuple[Any, Any]]) -> PlanError:
    named = ", ".join(f"{name} {old!r} → {new!r}" for name, (old, new) in changes.items())
    cost = "an unknown price" if run_plan.cost is None else cost_text(run_plan.cost)
    return PlanError(
        f"{run_plan.prompt_set}, seed {run_plan.seed} was made with other parameters ({named}); "
        f"going on would buy {counted(run_plan.buy, 'request')} for "
        f"{counted(run_plan.buy_images, 'new image')} at {cost}. Leave the parameters out to keep "
        "those in force, or set change_parameters to buy the new ones"
    )
