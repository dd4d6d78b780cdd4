"""The pictures of one prompt set under one seed: plan → shards → collect.

A cell that is missing and may still come fails the partition *after* its manifest is written, by
an observation and a failed check: a materialization would count as done in backfills, and let
downstream assets run. Pictures that can never be drawn only warn.
"""

from collections.abc import Callable, Iterator
from decimal import Decimal
from functools import partial
from typing import Any

import dagster as dg
import pandas as pd
from pydantic import TypeAdapter

from dagster_nanobanana.checks.evaluate_in_step import cells_check, evaluate_planned
from dagster_nanobanana.failures import plain_failures
from dagster_nanobanana.launch_config import GenerationConfig, launch_of
from dagster_nanobanana.partitions import IMAGES, grid, read_partition_key
from dagster_nanobanana.presentation.columns import IMAGES_METADATA
from dagster_nanobanana.presentation.failure_summary import failure_summary, termination_summary
from dagster_nanobanana.presentation.pictures_and_plots import STRIP_PICTURES, shown_picture
from dagster_nanobanana.presentation.tables import SAMPLE_ROWS, named_pictures, sample_table
from dagster_nanobanana.resources import NanobananaResource
from dagster_nanobanana.run_watch import RunOver, RunWatch
from dagster_nanobanana.step_lineage import recorded_step
from nanobanana_pipeline.errors import NanobananaError, StorageError
from nanobanana_pipeline.generation import launch_steps
from nanobanana_pipeline.generation.engine.engine import Progress, Report
from nanobanana_pipeline.generation.engine.timing import Timing
from nanobanana_pipeline.generation.manifest.manifest import CellState, CurrentManifest
from nanobanana_pipeline.generation.manifest.preview import (
    read_sample_rows,
    sample_pictures,
    write_preview,
)
from nanobanana_pipeline.generation.planning.run_files import RunPlan
from nanobanana_pipeline.generation.quote import Estimate, estimate
from nanobanana_pipeline.generation.wallet import bill_note, is_short, read_balance, wallet_note
from nanobanana_pipeline.lineage.openlineage.run_facts import (
    launch_complete,
    launch_running,
    launch_start,
)
from nanobanana_pipeline.money import cost_of, cost_text
from nanobanana_pipeline.provider.account import Account
from nanobanana_pipeline.provider.protocol import Balance
from nanobanana_pipeline.settings import Settings
from nanobanana_pipeline.storage import ObjectStore
from nanobanana_pipeline.wording import counted

__all__ = ["generated_images", "progress_log"]

CODE_VERSION = "1"
PROGRESS_SECONDS = 2.0
PROGRESS_GROWTH = 1.5
SHOWN_COLUMNS = ["prompt", "state", "reason", "image_uri", "bytes", "seed_reported"]
PAGE_COLUMNS = ["prompt_id", "image_sha256", "format", *SHOWN_COLUMNS]
"""Of the manifest: what the partition's page shows, or is made from."""

WALLET = "wallet"

_PLAN = TypeAdapter(RunPlan)
_BALANCE: TypeAdapter[Balance | None] = TypeAdapter(Balance | None)
_REPORT = TypeAdapter(Report)


@dg.op(
    name="plan",
    ins={"prompts": dg.In(dg.Nothing)},
    out={"shards": dg.DynamicOut(dict), "made": dg.Out(dict)},
    description="Finds the cells that are missing and says what they will cost. Buys nothing.",
)
def plan_op(
    context: dg.OpExecutionContext, config: GenerationConfig, nanobanana: NanobananaResource
) -> Iterator[Any]:
    """Write run files for what is missing."""
    with plain_failures():
        name, seed = read_partition_key(context.partition_key)
        account, store = nanobanana.account(), nanobanana.store()
        begin = partial(launch_start, store, name, seed)
        with recorded_step(context, store, "generated_images", begin, ends=False) as recording:
            asked = launch_of(config, name, seed, context.run_id)
            made = launch_steps.plan(store, account, asked)
            recording.emit_running(partial(launch_running, store, made))
        balance = read_balance(account)
    context.log.info(f"{made}; {counted(made.cells, 'cell')}: {made.states}")
    for shard in made.shards:
        key = shard.replace("-", "_")
        yield dg.DynamicOutput(
            {"run_id": made.run_id, "shard": shard}, output_name="shards", mapping_key=key
        )
    if balance is not None and is_short(balance, made.cost):
        context.log.warning(wallet_note(balance, made.cost))
    yield dg.Output(
        _PLAN.dump_python(made, mode="json") | {WALLET: _BALANCE.dump_python(balance, mode="json")},
        output_name="made",
        metadata=_quoted(made, estimate(store, made, config.slots or account.slots))
        | ({WALLET: wallet_note(balance, made.cost)} if balance else {}),
    )


@dg.op(
    name="generate",
    description=(
        "Buys and stores the pictures of one shard, each request at most once. What cannot be "
        "settled is left in the ledger with its reason."
    ),
    # No retry policy: Dagster takes Terminate for a failure to be retried where there is one, and
    # buys on.
)
def generate_op(
    context: dg.OpExecutionContext,
    config: GenerationConfig,
    nanobanana: NanobananaResource,
    shard: dict[str, str],
) -> dict[str, Any]:
    """Settle one run file."""
    log = progress_log(context)

    def on_progress(progress: Progress) -> None:
        watch.look()
        log(progress.seconds, f"{shard['shard']}: {progress}")

    try:
        watch = RunWatch(context)
        store = nanobanana.store()
        begin = partial(launch_start, store, *read_partition_key(context.partition_key))
        steps = {"starts": False, "ends": False, "passes": (NanobananaError,)}
        with recorded_step(
            context, store, "generated_images", begin, run_id=shard["run_id"], **steps
        ):
            report = launch_steps.settle_shard(
                store,
                nanobanana.account(),
                shard["run_id"],
                shard["shard"],
                slots=config.slots,
                on_progress=on_progress,
                timing=Timing(progress_seconds=PROGRESS_SECONDS),
            )
    except dg.DagsterExecutionInterruptedError:
        context.log.warning(termination_summary(nanobanana.store(), shard["run_id"]))
        raise
    except RunOver as over:
        ended = termination_summary(nanobanana.store(), shard["run_id"])
        raise dg.Failure(f"{over}. {ended}", allow_retries=False) from None
    except NanobananaError as error:
        context.log.error(f"{shard['shard']} stopped: {error}")
        report = Report(halted=str(error))
    summary: dict[str, Any] = _REPORT.dump_python(report, mode="json")
    states = ", ".join(f"{n:,} {state}" for state, n in report.states.items())
    context.log.info(
        f"{shard['shard']}: {states}; {report.bought:,} bought, "
        f"{counted(report.images, 'image')} stored in {report.seconds:.1f} s"
    )
    return summary


@dg.op(
    name="collect",
    out={"result": dg.Out(dg.Nothing, is_required=False), "cells": dg.Out(dg.Nothing)},
    description="Publishes the manifest: every cell with its state. Fails where cells are missing.",
)
def collect_op(
    context: dg.OpExecutionContext,
    nanobanana: NanobananaResource,
    made: dict[str, Any],
    summaries: list[dict[str, Any]],
) -> Iterator[Any]:
    """Account for every cell of the partition."""
    report = Report()
    for summary in summaries:
        report += _REPORT.validate_python(summary)
    with plain_failures():
        store = nanobanana.store()
        balance = _BALANCE.validate_python(made.get(WALLET))
        plan_made = _PLAN.validate_python(made)
        begin = partial(launch_start, store, plan_made.prompt_set, plan_made.seed)
        with recorded_step(
            context, store, "generated_images", begin, run_id=plan_made.run_id, starts=False
        ) as recording:
            account = nanobanana.account()
            current = launch_steps.collect(store, account, plan_made, report)
            recording.set_facts(partial(launch_complete, store, plan_made, current, report))
        rows = read_sample_rows(store, current, PAGE_COLUMNS)
        metadata = _metadata(store, nanobanana.settings(), current, rows, report, plan_made.price)
        metadata |= _billed(account, balance, cost_of(report.spent, plan_made.price))
    check = cells_check(current, metadata)
    if current.gaps:
        yield dg.AssetObservation(IMAGES, partition=context.partition_key, metadata=metadata)
        yield check
        yield from evaluate_planned(context, nanobanana)
        raise dg.Failure(
            failure_summary(current, rows, report), metadata=metadata, allow_retries=False
        )
    version = dg.DataVersion(current.content)
    yield dg.MaterializeResult(IMAGES, metadata, data_version=version)
    yield check


@dg.config_mapping
def generation_config(config: GenerationConfig) -> dict[str, Any]:
    """One block in the launchpad for both ops that read it."""
    blocks = dg.RunConfig(ops={"plan": config, "generate": config}).to_config_dict()  # type: ignore[no-untyped-call]
    ops: dict[str, Any] = blocks["ops"]
    return ops


@dg.graph_asset(
    partitions_def=grid,
    ins={"prompts": dg.AssetIn("prompt_set")},
    config=generation_config,
    check_specs=[
        dg.AssetCheckSpec(
            "cells",
            asset="generated_images",
            description="Every cell that was asked for is settled. Buys nothing.",
            partitions_def=grid,
        )
    ],
    group_name="images",
    kinds={"requests", "s3", "parquet"},
    owners=["team:data"],
    tags={"cost": "paid"},
    metadata=IMAGES_METADATA,
    code_version=CODE_VERSION,
    description=(
        "Every prompt of a set drawn under one seed. Missing pictures are bought from the "
        "provider, each request at most once however often this is launched; all are stored "
        "unchanged under their SHA-256, and the manifest lists every cell with its state. "
        "**Costs money: one request a missing cell.** With nothing missing it buys nothing."
    ),
)
def generated_images(prompts: Any) -> dict[str, Any]:  # noqa: ANN401 - a graph passes handles
    """Plan, fan out over shards, account."""
    shards, made = plan_op(prompts)
    finished = collect_op(made, shards.map(generate_op).collect())
    return {"result": finished.result, "generated_images_cells": finished.cells}


def _quoted(made: RunPlan, expected: Estimate) -> dict[str, Any]:
    """What the launch is about to buy, for the run's page."""
    hours = None if expected.seconds is None else round(expected.seconds / 3600, 2)
    return {
        "requests to buy": made.buy,
        "images to buy": made.buy_images,
        "cost": cost_text(made.cost),
        "requests to resume": made.resume,
        "in doubt or lost, looked into": made.look,
        "storage in bytes": "unknown" if expected.size is None else expected.size,
        "expected hours": "unknown" if hours is None else hours,
        "states": dg.MetadataValue.json(dict(made.states)),
    }


def _billed(account: Account, before: Balance | None, cost: Decimal | None) -> dict[str, Any]:
    """Whether the bill agrees, where the wallet can be read."""
    after = read_balance(account) if before is not None else None
    return {WALLET: bill_note(before, after, cost)} if before and after else {}


def progress_log(
    context: dg.OpExecutionContext | dg.AssetExecutionContext,
) -> Callable[[float, str], None]:
    """Write progress, told with its seconds, ever more rarely: the event log is kept for ever."""
    due = PROGRESS_SECONDS

    def write(seconds: float, text: str) -> None:
        nonlocal due
        if seconds >= due:
            due = seconds * PROGRESS_GROWTH
            context.log.info(text)

    return write


def _metadata(
    store: ObjectStore,
    settings: Settings,
    current: CurrentManifest,
    rows: pd.DataFrame,
    report: Report,
    price: Decimal | None,
) -> dict[str, Any]:
    asked = rows.loc[rows["state"] != CellState.NOT_REQUESTED, SHOWN_COLUMNS]
    settled = asked["state"] == CellState.SETTLED
    first = pd.concat([asked[~settled].head(SAMPLE_ROWS), asked[settled].head(SAMPLE_ROWS)])
    rows_shown, addresses = named_pictures(first.head(SAMPLE_ROWS))
    cells = pd.DataFrame(current.cells.items(), columns=["state", "cells"])
    return {
        "contact sheet": _contact_sheet(store, settings, current, rows),
        "cells": sample_table(cells),
        "images": current.images,
        "bytes": current.size,
        "bought in this run": report.bought,
        "images stored in this run": report.images,
        "seconds": round(report.seconds, 1),
        "images/s": round(report.images / report.seconds, 2) if report.seconds else 0.0,
        "rate limited": report.rate_limited,
        "cost of this run": cost_text(cost_of(report.spent, price)),
        "dagster/uri": store.uri(current.manifest),
        "dagster/row_count": current.rows,
        "dagster/column_schema": IMAGES_METADATA["dagster/column_schema"],
        "rows": sample_table(rows_shown),
        "addresses": addresses,
        "fingerprint": current.fingerprint,
        "parameters": dg.MetadataValue.json(dict(current.parameters)),
    } | ({"stopped": report.halted} if report.halted else {})


def _contact_sheet(
    store: ObjectStore, settings: Settings, current: CurrentManifest, rows: pd.DataFrame
) -> dg.MetadataValue | str:
    try:
        key = write_preview(store, current, rows)
        return shown_picture(
            "some of the pictures",
            settings.preview_of(key) if key else None,
            lambda: [small for small, _ in sample_pictures(store, rows, STRIP_PICTURES)],
        )
    except StorageError as error:
        # All is accounted for by now: the partition does not fail for want of a sheet.
        return f"could not be drawn: {error}"
