"""Runs that ended before their end, and what dead shards hold back of a budget."""

from collections import Counter
from collections.abc import Mapping
from datetime import datetime, timedelta

from nanobanana_pipeline.audit.cross_reference import AuditIndex
from nanobanana_pipeline.audit.report import AuditReport, FindingKind
from nanobanana_pipeline.bucket_keys import run_done_key, run_plan_key
from nanobanana_pipeline.errors import StorageError, StorageUnavailable
from nanobanana_pipeline.generation.budget.counters import Scope, counter_keys
from nanobanana_pipeline.generation.budget.reclaim import EXPIRED_SECONDS, is_expired
from nanobanana_pipeline.generation.planning.run_files import RunPlan, read_plan, read_request_keys
from nanobanana_pipeline.generation.recovery.rescue import Run, list_runs
from nanobanana_pipeline.ledger import State
from nanobanana_pipeline.money import Cap
from nanobanana_pipeline.storage import ObjectStore
from nanobanana_pipeline.wording import counted

__all__ = ["check_reservations", "check_runs"]

PartitionId = tuple[str, int]


def check_runs(
    store: ObjectStore,
    index: AuditIndex,
    report: AuditReport,
    changed: Mapping[PartitionId, datetime],
) -> frozenset[PartitionId]:
    """Report what dead runs still owe, once the ledger is in the index.

    `changed` says when each partition's `current.json` was last changed, by S3's clock. Returns the
    partitions that a run is busy with now.
    """
    dead: list[tuple[Run, RunPlan, bool]] = []
    busy: set[PartitionId] = set()
    for run in list_runs(store):
        report.runs += 1
        if run.done_seconds is not None:
            continue
        try:
            made = read_plan(store, run.run_id)
        except StorageUnavailable:
            raise
        except StorageError as error:
            report.add(FindingKind.UNREADABLE, run_plan_key(run.run_id), str(error))
            continue
        partition = (made.prompt_set, made.seed)
        # Whoever publishes after a plan accounts for all that it set out to do.
        accounted = partition in changed and changed[partition] >= run.planned
        if run.has_shards_alive or not (accounted or run.quiet_seconds > EXPIRED_SECONDS):
            busy.add(partition)
        else:
            dead.append((run, made, accounted))
    for run, made, accounted in dead:
        if (made.prompt_set, made.seed) not in busy:
            _check_dead(store, index, report, run, made, accounted=accounted)
    return frozenset(busy)


def check_reservations(store: ObjectStore, report: AuditReport) -> None:
    """Report what expired shards hold back in the counters of spending."""
    for key in counter_keys(store):
        _check_counter(store, report, key)


def _check_dead(
    store: ObjectStore,
    index: AuditIndex,
    report: AuditReport,
    run: Run,
    made: RunPlan,
    *,
    accounted: bool,
) -> None:
    key = run_plan_key(run.run_id)
    try:
        owed = index.owed(run.run_id, read_request_keys(store, made))
    except StorageUnavailable:
        raise
    except (StorageError, ValueError) as error:
        report.add(FindingKind.UNREADABLE, key, f"a run file of it cannot be read: {error}")
        return
    if accounted:
        del owed[State.OPEN]
    if (accounted and not owed) or not made.shards or store.head(run_done_key(run.run_id)):
        return
    owes = _owes(owed, accounted=accounted)
    text = (
        f"run {run.run_id} over {made.prompt_set}, seed {made.seed} ended before its end and owes "
        f"{owes}: launch the partition again, which goes on from there"
    )
    report.add(FindingKind.RUN_UNFINISHED, key, text)


def _owes(owed: Counter[State], *, accounted: bool) -> str:
    words = {
        State.OPEN: "to buy",
        State.SUBMITTING: "that it was sending",
        State.ACCEPTED: "bought and not brought",
    }
    parts = [f"{owed[state]:,} {text}" for state, text in words.items() if owed[state]]
    return ", ".join([*parts, *([] if accounted else ["its manifest"])])


def _check_counter(store: ObjectStore, report: AuditReport, key: str) -> None:
    scope = Scope(store, key, Cap(), key)
    try:
        left, now = scope.read().open, _server_time(store, key)
        expired = [name for name, found in left.items() if is_expired(store, name, found, now)]
        # An incarnation that has ended meanwhile has closed it before its heartbeat was deleted.
        still = scope.read().open if expired else {}
    except StorageUnavailable:
        raise
    except StorageError as error:
        report.add(FindingKind.UNREADABLE, key, str(error))
        return
    for name in expired:
        if name in still:
            text = (
                f"shard {name} has expired and holds {counted(still[name].images, 'image')} back "
                f"since {still[name].opened}: launch its partition again (with max_images 0 it "
                "buys nothing), which counts what it spent and frees the rest"
            )
            report.add(FindingKind.RESERVATION_DEAD, key, text)


def _server_time(store: ObjectStore, key: str) -> datetime:
    """The time by the server's ``Date``: an audit writes nothing that would tell a better one."""
    found = store.get(key)
    if found is None:
        raise StorageError(f"{store.uri(key)} was deleted meanwhile")
    return found.last_modified + timedelta(seconds=found.age_seconds)
