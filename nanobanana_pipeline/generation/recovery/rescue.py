"""Runs that died before their end: found, and what they had bought brought to its end.

The provider deletes its pictures after 24 hours, so this must not wait for somebody who launches
the partition again. It buys nothing.
"""

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from nanobanana_pipeline.bucket_keys import Folder, run_done_key, run_plan_key, run_prefix
from nanobanana_pipeline.errors import EntryDamaged, PlanError
from nanobanana_pipeline.generation.budget.reclaim import EXPIRED_SECONDS, reclaim_partition
from nanobanana_pipeline.generation.engine.engine import Progress, Report
from nanobanana_pipeline.generation.launch_steps import (
    Settled,
    collect,
    needs_rescue,
    plan,
    settle_shard,
)
from nanobanana_pipeline.generation.manifest.manifest import (
    CellState,
    CurrentManifest,
    read_current,
)
from nanobanana_pipeline.generation.planning.run_files import (
    PlannedRequest,
    RunPlan,
    forget_unfinished,
    list_unfinished,
    mark_done,
    read_plan,
    read_request_keys,
    read_shard,
    write_plan,
    write_shards,
)
from nanobanana_pipeline.generation.recovery.relaunch_partitions import relaunch
from nanobanana_pipeline.ledger import COSTING, Held, Ledger, State
from nanobanana_pipeline.provider.account import PROVIDER, Account
from nanobanana_pipeline.storage import ListedObject, ObjectStore

__all__ = ["Run", "UnfinishedRun", "expired_runs", "list_runs", "rescue", "unfinished_runs"]

log = logging.getLogger(__name__)

ROUND_SECONDS: Final = 4 * 3600
LAST_ROUND: Final = PROVIDER.kept_seconds // ROUND_SECONDS
"""The rounds in which the provider still keeps pictures; after them it tells no more."""
RUNS_NAMED: Final = 10


@dataclass(frozen=True)
class Run:
    """A run as its files tell of it.

    Attributes:
        planned: when its plan was written, by S3's clock.
        quiet_seconds: since anything of it was written, by the same.
        has_shards_alive: some shard of it has said lately that it lives.
        done_seconds: since it came to its end; None if it has not.
    """

    run_id: str
    planned: datetime
    quiet_seconds: float
    has_shards_alive: bool
    done_seconds: float | None

    @property
    def round(self) -> int:
        """Which try to rescue it is due, 0 to 6: at once, then every four hours for a day."""
        return min(int(self.quiet_seconds // ROUND_SECONDS), LAST_ROUND)

    @property
    def is_dead(self) -> bool:
        """It has no heartbeat: nothing of it goes on by itself."""
        return not self.has_shards_alive and self.quiet_seconds > EXPIRED_SECONDS


@dataclass(frozen=True)
class UnfinishedRun:
    """A run that no manifest accounts for yet.

    Attributes:
        buy: requests that it set out to buy.
        quiet_seconds: since its last heartbeat, which comes every minute while it buys.
        is_dead: it will not go on by itself: it was silent for 15 minutes.
    """

    run_id: str
    prompt_set: str
    seed: int
    buy: int
    quiet_seconds: float
    is_dead: bool


def list_runs(store: ObjectStore) -> Iterator[Run]:
    """All runs that have written a plan."""
    for run_id, files in itertools.groupby(
        store.listing(Folder.RUNS.prefix), key=lambda found: found.key.split("/")[1]
    ):
        run = _read_run(run_id, files)
        if run is not None:
            yield run


def expired_runs(store: ObjectStore, run_ids: Iterable[str]) -> list[Run]:
    """Those of these runs that have no heartbeat, the longest silent first.

    One LIST a run of `list_unfinished`; nothing is read. One that is done after all is as good as
    expired: to rescue it brings nothing, and takes it off that list.

    Raises:
        StorageError: S3 refuses.
    """
    found = (_read_run(run_id, store.listing(run_prefix(run_id))) for run_id in run_ids)
    expired = [run for run in found if run is not None and run.is_dead]
    return sorted(expired, key=lambda run: (-run.quiet_seconds, run.run_id))


def unfinished_runs(
    store: ObjectStore, manifests: Iterable[CurrentManifest]
) -> list[UnfinishedRun]:
    """Runs that are under way, or died before their manifest: those silent longest first.

    What a run left behind that did publish one stands in its manifest's cells. Needs every
    partition's current manifest.

    Raises:
        StorageError: S3 refuses, or a plan is damaged.
    """
    published = {
        (current.prompt_set, current.seed): datetime.fromisoformat(current.created)
        for current in manifests
    }
    found = []
    for run in list_runs(store):
        if run.done_seconds is not None:
            continue
        made = read_plan(store, run.run_id)
        accounted = published.get((made.prompt_set, made.seed))
        if not made.shards or (accounted is not None and accounted >= run.planned):
            continue
        found.append(
            UnfinishedRun(
                run.run_id, made.prompt_set, made.seed, made.buy, run.quiet_seconds, run.is_dead
            )
        )
    return sorted(found, key=lambda run: (-run.quiet_seconds, run.run_id))


def rescue(
    store: ObjectStore,
    account: Account,
    run_id: str,
    *,
    new_run_id: Callable[[], str],
    on_progress: Callable[[Progress], None] | None = None,
) -> Settled:
    """Bring what an expired run has bought, and publish its partition's manifest. Buys nothing.

    What it bought is brought even where the prompt table or the pilot's limit is another by now,
    and nobody asks for those cells any more. Where nothing is left to rescue the run is marked as
    done, and a manifest that has everything already stays as it is. A run that was silent for the
    provider's 24 hours is not looked for again by itself, whatever is left of it.

    `new_run_id` names the runs of this rescue; `on_progress` is called now and then from this
    thread.

    Raises:
        PlanError: there is no such run, and the text names those that have not ended; or the prompt
            set is gone, so that no manifest can be published.
        StorageError: S3 refuses or holds damaged objects.
    """
    if store.head(run_plan_key(run_id)) is None:
        raise PlanError(_no_such_run(store, run_id))
    expired = read_plan(store, run_id)
    seen = _read_run(run_id, store.listing(run_prefix(run_id)))
    own = list(read_request_keys(store, expired))
    ledger = Ledger(store)
    kept, unsettled = account.provider.kept_seconds, {State.ACCEPTED, State.SUBMITTING}
    left = {
        held.entry.request_key
        for held in ledger.read_many(own)
        # Of an entry that cannot be read nothing can be brought.
        if isinstance(held, Held)
        and (held.entry.state in unsettled or held.entry.can_reconcile(kept))
    }
    owed = [
        replace(planned, buy=False)
        for shard in expired.shards
        for planned in read_shard(store, run_id, shard, account.provider.request_model)
        if planned.request_key in left
    ]
    report = Report()
    if owed:
        report = _bring(store, account, expired, new_run_id(), owed, on_progress)
    current, _ = read_current(store, expired.prompt_set, expired.seed)
    if current is None or owed or not _has_all(current, expired):
        launch = relaunch(store, expired.prompt_set, expired.seed, new_run_id(), last=expired)
        # Of the partition as a whole only the manifest is made: the rest is for who launches it.
        settle_nothing = replace(launch, max_images=0, only=frozenset())
        made = plan(store, account, settle_nothing)
        current = collect(store, account, made, report)
    # After the manifest: what was brought by then is known to be all that the run has spent.
    reclaim_partition(store, expired.prompt_set, expired.seed)
    bought, is_done = 0, True
    for held in ledger.read_many(own):
        if isinstance(held, EntryDamaged):
            log.warning("run %s may have left something to rescue: %s", run_id, held)
            is_done = False
            continue
        bought += sum(a.run_id == run_id and a.outcome in COSTING for a in held.entry.attempts)
        is_done = is_done and not needs_rescue(held.entry, run_id)
    if is_done:
        mark_done(store, run_id, bought)
    elif seen is not None and seen.round == LAST_ROUND:
        forget_unfinished(store, run_id)
    return Settled(current, report)


def _no_such_run(store: ObjectStore, run_id: str) -> str:
    left = list_unfinished(store)
    more = f" and {len(left) - RUNS_NAMED:,} more" if len(left) > RUNS_NAMED else ""
    named = f"those that have not ended are {', '.join(left[:RUNS_NAMED])}{more}"
    return (
        f"there is no run {run_id!r} in {store.uri(Folder.RUNS.prefix)}; "
        f"{named if left else 'none is left that has not ended'}"
    )


def _bring(
    store: ObjectStore,
    account: Account,
    expired: RunPlan,
    run_id: str,
    owed: list[PlannedRequest],
    on_progress: Callable[[Progress], None] | None,
) -> Report:
    """Settle these requests of an expired run under a run of their own, which may buy nothing."""
    shards = write_shards(store, run_id, owed, len(owed), None)
    made = replace(
        expired,
        run_id=run_id,
        shards=shards,
        buy=0,
        buy_images=0,
        resume=len(owed),
        look=0,
        rebuy=False,
        max_images=0,
        max_cost=None,
    )
    write_plan(store, made)
    report = Report()
    for shard in shards:
        report += settle_shard(store, account, run_id, shard, on_progress=on_progress)
    mark_done(store, run_id, 0)
    return report


def _has_all(current: CurrentManifest, expired: RunPlan) -> bool:
    """Whether a manifest has all pictures that an expired run set out for."""
    told = (current.fingerprint, current.parameters, current.limit)
    is_same = told == (expired.fingerprint, expired.parameters, expired.limit)
    return is_same and set(current.cells) <= {CellState.SETTLED, CellState.NOT_REQUESTED}


def _read_run(run_id: str, files: Iterator[ListedObject]) -> Run | None:
    planned: datetime | None = None
    done: float | None = None
    quiet, alive = float("inf"), False
    for found in files:
        quiet = min(quiet, found.age_seconds)
        if found.key == run_plan_key(run_id):
            planned = found.last_modified
        elif found.key == run_done_key(run_id):
            done = found.age_seconds
        elif found.key.endswith(".alive"):
            alive = alive or found.age_seconds <= EXPIRED_SECONDS
    return None if planned is None else Run(run_id, planned, quiet, alive, done)
