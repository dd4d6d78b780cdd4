"""The job that launches partitions again for their missing cells, within a budget."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import dagster as dg
import pandas as pd
from pydantic import Field

from dagster_nanobanana.failures import plain_failures
from dagster_nanobanana.jobs.partition_events import run_ids, show_settled
from dagster_nanobanana.launch_config import amount_of
from dagster_nanobanana.partitions import read_partition_key
from dagster_nanobanana.presentation.tables import TABLE_ROWS, sample_table
from dagster_nanobanana.resources import NanobananaResource
from dagster_nanobanana.run_watch import RunWatch
from dagster_nanobanana.step_lineage import recorded_step
from nanobanana_pipeline.errors import PlanError
from nanobanana_pipeline.generation.launch_steps import Settled
from nanobanana_pipeline.generation.partition_backlog import find_backlog
from nanobanana_pipeline.generation.recovery.relaunch_partitions import retry
from nanobanana_pipeline.lineage.openlineage.run_facts import RelaunchReason, relaunch_complete
from nanobanana_pipeline.money import Cap, cost_of, cost_text
from nanobanana_pipeline.wording import counted

__all__ = ["retry_failed"]


class RetryConfig(dg.Config):
    """How much a second try may cost, and of which partitions."""

    max_images: int = Field(
        description="The budget: buy at most so many images, over all partitions together."
    )
    max_cost: str | None = Field(
        None,
        description="Spend at most so much, in the currency of NANOBANANA_PRICE_PER_IMAGE.",
    )
    partitions: list[str] = Field(
        [], description="Keys such as animals|1. Left out: all that lack cells."
    )


@dg.op(
    out=dg.Out(dg.Nothing),
    description=(
        "Launches partitions again that lack cells which may still come: first those that lack "
        "fewest. Each goes on as it was launched the last time. **Costs money: one request a "
        "missing cell, up to max_images.** What is in doubt or lost is looked into, and not bought."
    ),
)
def retry_partitions(
    context: dg.OpExecutionContext, config: RetryConfig, nanobanana: NanobananaResource
) -> Iterator[Any]:
    """Buy what is missing of partitions that were launched before."""
    with plain_failures():
        if config.max_images < 1:
            raise PlanError(f"max_images {config.max_images} is out of range: use 1 or more")
        cap = Cap(config.max_images, amount_of(config.max_cost))
        store, account = nanobanana.store(), nanobanana.account()
        only = {read_partition_key(key) for key in config.partitions}
        wanted = [(each.prompt_set, each.seed) for each in find_backlog(store)]
        chosen = [partition for partition in wanted if not only or partition in only]
        names = run_ids(context.run_id, "retry")
        price = account.budget.price
        done = list[Settled]()
        with recorded_step(context, store, "retry_failed") as recording:
            watch = RunWatch(context).look
            for settled in retry(store, account, chosen, cap, run_id=names, on_progress=watch):
                current, report = settled.current, settled.report
                show_settled(context, store, settled, price)
                yield from context.consume_events()
                context.log.info(
                    f"{current.prompt_set}, seed {current.seed}: "
                    f"{counted(report.bought, 'request')} bought, "
                    f"{counted(current.gaps, 'cell')} still missing"
                )
                if report.halted:
                    context.log.warning(f"stopped early: {report.halted}")
                done.append(settled)
            recording.set_facts(
                partial(relaunch_complete, store, done, price, reason=RelaunchReason.RETRY)
            )
    columns = ["prompt set", "seed", "requests bought", "images bought", "still missing"]
    rows = pd.DataFrame(
        [
            (s.current.prompt_set, s.current.seed, s.report.bought, s.report.spent, s.current.gaps)
            for s in done
        ],
        columns=columns,
    )
    images = int(rows["images bought"].sum())
    yield dg.Output(
        None,
        metadata={
            "partitions that lack cells": len(chosen),
            "launched": len(done),
            "images bought": images,
            "cost": cost_text(cost_of(images, price)),
            "partitions": sample_table(rows, TABLE_ROWS) if done else "none",
        },
    )


@dg.job(
    description=(
        "Launch partitions again for what is missing, within a budget you name. Costs money, up "
        "to that budget. Nothing starts it by itself: launch it from the launchpad."
    )
)
def retry_failed() -> None:
    """One op: partitions share its budget."""
    retry_partitions()
