"""Sensors that buy nothing: they take in tables, bring what was bought, and tell what became of it.

Those that keep what was paid for ship running; those that only spare somebody a click ship stopped.
"""

import hashlib
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import dagster as dg
from dagster._core.storage.tags import RUN_KEY_TAG, SENSOR_NAME_TAG

from dagster_nanobanana.assets.prompt_set import TABLES_FOLDER, prompt_set
from dagster_nanobanana.partitions import IMAGES, prompt_sets
from dagster_nanobanana.resources import NanobananaResource
from nanobanana_pipeline.errors import SettingsError
from nanobanana_pipeline.generation.planning.run_files import list_unfinished
from nanobanana_pipeline.generation.recovery.doubts import find_mail, fresh_doubts
from nanobanana_pipeline.generation.recovery.rescue import expired_runs
from nanobanana_pipeline.generation.recovery.run_outcome import run_outcome
from nanobanana_pipeline.ledger import State
from nanobanana_pipeline.money import cost_text
from nanobanana_pipeline.prompts.table_files import ListedTable, list_tables
from nanobanana_pipeline.wording import counted, time_text

__all__ = ["new_prompt_tables", "rescue_sensor", "run_summary", "unset", "webhook_inbox"]

MAX_TABLES = 10_000
TABLES_A_TICK = 50
FAULTS_A_TICK = 20
RUNS_A_TICK = 100
RESCUES_A_TICK = 10
DOUBTFUL_RUNS_A_TICK = 20
DOUBTS_A_TICK = 200
LATELY: Final = timedelta(days=1)


def unset(nanobanana: NanobananaResource) -> dg.SkipReason | None:
    """Why there is nothing to look at: settings are missing. None if they are there."""
    try:
        nanobanana.settings()
    except SettingsError as error:
        return dg.SkipReason(str(error))
    return None


@dg.sensor(
    target=prompt_set,
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.STOPPED,
    description=(
        "Makes a prompt set of every new or changed table in the folder prompts/ of this code "
        "location and below prompts/ of the bucket's prefix: animals.csv becomes animals. "
        f"At most {TABLES_A_TICK} tables a tick, of at most {MAX_TABLES:,}. What is wrong with a "
        "file's name is said once, in the tick's log. Once started it makes every table that is "
        "there, also those that were made by hand: the same content makes the same prompt set. A "
        "run that died before its first step is launched once more. Costs nothing; it launches no "
        "pictures. Ships stopped, since not every table is meant to be one: start it here."
    ),
)
def new_prompt_tables(
    context: dg.SensorEvaluationContext, nanobanana: NanobananaResource
) -> dg.SkipReason | dg.SensorResult:
    """Ask for each table once, until it changes."""
    if (reason := unset(nanobanana)) is not None:
        return reason
    found = list_tables(Path(TABLES_FOLDER), nanobanana.store())
    if len(found) > MAX_TABLES:
        left = len(found) - MAX_TABLES
        context.log.warning(
            f"{counted(left, 'file')} beyond the first {MAX_TABLES:,} are not looked at"
        )
    known: dict[str, str] = json.loads(context.cursor or "{}")
    stamps = {_place(table): _stamp(table) for table in found[:MAX_TABLES]}
    changed = [t for t in found[:MAX_TABLES] if known.get(_place(t)) != stamps[_place(t)]]
    faults = [t for t in changed if t.fault is not None][:FAULTS_A_TICK]
    for table in faults:
        context.log.warning(str(table.fault))
    tables = [t for t in changed if t.fault is None][:TABLES_A_TICK]
    again = _never_begun(context.instance, [t for t in found if t.fault is None])
    told = {_place(table) for table in [*faults, *tables]}
    seen = {p: s for p, s in stamps.items() if p in told or known.get(p) == s}
    return dg.SensorResult(
        run_requests=[
            *(_made_of(table, _run_key(table)) for table in tables),
            # Dagster launches a key once: so this is no endless try.
            *(_made_of(table, f"{_run_key(table)}:again") for table in again),
        ],
        dynamic_partitions_requests=[prompt_sets.build_add_request([t.name for t in tables])]
        if tables
        else None,
        skip_reason=None
        if tables or again
        else f"no new table among {counted(len(found), 'file')}",
        cursor=json.dumps(seen, separators=(",", ":")),
    )


@dg.sensor(
    job_name="resolve_doubts",
    minimum_interval_seconds=300,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description=(
        "Settles what is in doubt as soon as a webhook tells of it: pictures whose run ended "
        "without an answer, within the last day. Launches resolve_doubts with LOOK for these "
        f"requests. Looks at {DOUBTFUL_RUNS_A_TICK} runs and {DOUBTS_A_TICK} doubts a tick, in "
        "turn. Ships running, since it buys nothing; without webhooks it does nothing."
    ),
)
def webhook_inbox(
    context: dg.SensorEvaluationContext, nanobanana: NanobananaResource
) -> dg.SkipReason | dg.SensorResult:
    """Look whether there is mail for what is in doubt."""
    if (reason := unset(nanobanana)) is not None:
        return reason
    if not nanobanana.settings().webhook_url:
        return dg.SkipReason("no webhooks: NANOBANANA_WEBHOOK_URL is not set")
    store = nanobanana.store()
    run_id, _, key = (context.cursor or "").partition("/")
    doubts, end = fresh_doubts(store, (run_id, key), runs=DOUBTFUL_RUNS_A_TICK, most=DOUBTS_A_TICK)
    cursor = "/".join(end)
    mail = find_mail(store, doubts)
    if not mail:
        text = f"no mail for {counted(len(doubts), 'request')} in doubt or lost"
        return dg.SensorResult(skip_reason=text, cursor=cursor)
    context.log.info(f"mail for {counted(len(mail), 'request')} in doubt or lost")
    # The same mail is looked at once: who wrote it may have written nonsense.
    letters = json.dumps(mail, sort_keys=True).encode()
    request = dg.RunRequest(
        run_key=f"mail:{hashlib.sha256(letters).hexdigest()}",
        run_config={
            "ops": {"settle_all_doubts": {"config": {"action": "LOOK", "keys": sorted(mail)}}}
        },
    )
    return dg.SensorResult(run_requests=[request], cursor=cursor)


@dg.sensor(
    name="rescue",
    job_name="rescue_run",
    minimum_interval_seconds=300,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description=(
        "Finds runs that died (no end, and no sign of life for 15 minutes by S3's clock) and "
        "launches rescue_run for each: it brings what was bought long before the provider's 24 "
        "hours end. What stays open is tried again every four hours, for a day. Looks at "
        f"{RUNS_A_TICK} unfinished runs a tick, in turn, and launches {RESCUES_A_TICK} rescues at "
        "most, of those silent longest. Ships running, since it buys nothing."
    ),
)
def rescue_sensor(
    context: dg.SensorEvaluationContext, nanobanana: NanobananaResource
) -> dg.SkipReason | dg.SensorResult:
    """Launch each try of each rescue once."""
    if (reason := unset(nanobanana)) is not None:
        return reason
    told = json.loads(context.cursor or "{}")
    known: dict[str, int] = told.get("tried", {})
    store, after = nanobanana.store(), told.get("after", "")
    unfinished = list_unfinished(store)
    turn = ([name for name in unfinished if name > after] or unfinished)[:RUNS_A_TICK]
    expired = expired_runs(store, turn)
    waiting = [run for run in expired if known.get(run.run_id) != run.round]
    due = waiting[:RESCUES_A_TICK]
    if len(due) == len(waiting):  # else these runs are looked at once more
        after = turn[-1] if len(turn) == RUNS_A_TICK else ""
    for run in due:
        context.log.info(
            f"run {run.run_id} has not been heard of for {time_text(run.quiet_seconds)}: what "
            f"it bought is brought (try {run.round + 1} of 7)"
        )
    # Runs that came to their end are forgotten, so that this stays small.
    seen = {name: known[name] for name in unfinished if name in known}
    seen |= {run.run_id: run.round for run in due}
    return dg.SensorResult(
        run_requests=[
            dg.RunRequest(
                run_key=f"{run.run_id}:{run.round}",
                run_config={"ops": {"rescue_one_run": {"config": {"run_id": run.run_id}}}},
                tags={"nanobanana/rescues": run.run_id},
            )
            for run in due
        ],
        skip_reason=None if due else f"no run needs rescue; {len(expired):,} were tried already",
        cursor=json.dumps({"after": after, "tried": seen}, separators=(",", ":")),
    )


@dg.run_failure_sensor(
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description=(
        "Says of each failed run that bought pictures what is settled, what it cost and what is "
        "in doubt: in the run's tags, and as an observation on the partition's page. Ships "
        "running, since it buys nothing."
    ),
)
def run_summary(
    context: dg.RunFailureSensorContext, nanobanana: NanobananaResource
) -> dg.SkipReason | None:
    """Account for one failed run."""
    if (reason := unset(nanobanana)) is not None:
        return reason
    run = context.dagster_run
    left = run_outcome(nanobanana.store(), run.run_id)
    if left is None:
        return dg.SkipReason(f"run {run.run_id} has planned no requests")
    unsure = left.states.get(State.IN_DOUBT, 0) + left.states.get(State.SUBMITTING, 0)
    tags = {
        "nanobanana/settled": f"{left.states.get(State.SETTLED, 0)} of {left.counted}",
        "nanobanana/in_doubt": str(unsure),
        "nanobanana/lost": str(left.states.get(State.LOST, 0)),
        "nanobanana/not_here_yet": str(left.states.get(State.ACCEPTED, 0)),
        "nanobanana/cost": cost_text(left.cost),
    }
    context.instance.add_run_tags(run.run_id, tags)
    states = {state.value: count for state, count in left.states.items()}
    observation = dg.AssetObservation(
        IMAGES,
        partition=f"{left.made.prompt_set}|{left.made.seed}",
        description=f"run {run.run_id} failed: {left}",
        metadata={
            "failed run": dg.MetadataValue.dagster_run(run.run_id),
            "summary": str(left),
            "requests by state": dg.MetadataValue.json(states),
            "images bought": left.spent,
            "cost": cost_text(left.cost),
        },
    )
    context.instance.report_runless_asset_event(observation)
    context.log.info(f"run {run.run_id} failed: {left}")
    return None


def _made_of(table: ListedTable, run_key: str) -> dg.RunRequest:
    config = {"ops": {"prompt_set": {"config": {"table": table.source}}}}
    return dg.RunRequest(run_key=run_key, partition_key=table.name, run_config=config)


def _never_begun(instance: dg.DagsterInstance, found: list[ListedTable]) -> list[ListedTable]:
    """Tables, as they are now, whose run failed of late before it began: on a busy machine."""
    failed = dg.RunsFilter(
        tags={SENSOR_NAME_TAG: "new_prompt_tables"},
        statuses=[dg.DagsterRunStatus.FAILURE],
        created_after=datetime.now(UTC) - LATELY,
    )
    records = instance.get_run_records(failed, limit=RUNS_A_TICK)
    keys = {r.dagster_run.tags.get(RUN_KEY_TAG) for r in records if r.start_time is None}
    return [table for table in found if _run_key(table) in keys]


def _run_key(table: ListedTable) -> str:
    return f"{_place(table)}:{table.stamp}"


def _place(table: ListedTable) -> str:
    """A short name of a file in the cursor."""
    here = "s3" if table.source.startswith("s3://") else "folder"
    return f"{here}/{table.source.rpartition('/')[2]}"


def _stamp(table: ListedTable) -> str:
    """Another one whenever a file or what is wrong with it changes."""
    text = f"{table.stamp} {table.fault or ''}"
    return hashlib.sha256(text.encode()).hexdigest()[:12]
