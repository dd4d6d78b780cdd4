"""Jobs beside the assets."""

from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal
from functools import partial
from typing import Any

import dagster as dg
import pandas as pd
from pydantic import Field

from dagster_project.failures import plain_failures
from dagster_project.launch_config import amount_of
from dagster_project.metadata import sample_table
from dagster_project.partitions import read_cell_key
from dagster_project.recording import recorded_step
from dagster_project.resources import NanobananaResource
from dagster_project.settling import run_ids, show_settled
from dagster_project.stopping import RunWatch
from nanobanana_pipeline.audit import audit as audit_bucket
from nanobanana_pipeline.errors import PlanError
from nanobanana_pipeline.generation.again import Settled, retry
from nanobanana_pipeline.generation.doubts import Action, Filter, find_doubts, settle_doubts
from nanobanana_pipeline.generation.rescue import rescue
from nanobanana_pipeline.generation.wanted import find_wanted
from nanobanana_pipeline.lineage.events import declare_dead
from nanobanana_pipeline.lineage.events_told import launched_again
from nanobanana_pipeline.lineage.told import Told
from nanobanana_pipeline.money import Cap, cost_of, cost_text
from nanobanana_pipeline.wording import counted

__all__ = ["audit_bucket_job", "rescue_run", "resolve_doubts", "retry_failed"]

SHOWN = 100
LONGEST = 1000


class DoubtsConfig(dg.Config):
    """Which doubts are meant, and what is done about them."""

    action: Action = Field(
        default=Action.LOOK,
        description=(
            "LOOK asks for evidence and brings what turns out to be bought: it buys nothing. REBUY "
            "costs money: it buys again where there is no evidence, and what was paid for already "
            "is paid for twice. ABANDON gives up: missed no more, and never bought."
        ),
    )
    keys: list[str] = Field(
        default=[], description="Request keys, or their first digits. Left out: all."
    )
    cause: str | None = Field(default=None, description="A part of the cause.")
    run_id: str | None = Field(default=None, description="The run that made the attempt.")
    older_hours: float | None = Field(default=None, description="At least so old.")
    min_cost: float | None = Field(
        default=None, description="At least so dear; none is while the price is unknown."
    )


@dg.op(
    out=dg.Out(dg.Nothing),
    description=(
        "Settles requests in doubt or lost, and publishes the manifests of their partitions. "
        "**Costs money where the action is REBUY**, and else nothing."
    ),
)
def settle_all_doubts(
    context: dg.OpExecutionContext, config: DoubtsConfig, nanobanana: NanobananaResource
) -> Iterator[Any]:
    """Do what the config says about every doubt it names."""
    with plain_failures():
        store, account = nanobanana.store(), nanobanana.account()
        wanted = Filter(
            keys=tuple(config.keys),
            cause=config.cause,
            run_id=config.run_id,
            older=None if config.older_hours is None else timedelta(hours=config.older_hours),
            cost=None if config.min_cost is None else Decimal(str(config.min_cost)),
        )
        price = account.budget.price
        chosen = [doubt for doubt in find_doubts(store, price) if wanted.allows(doubt)]
        names = run_ids(context.run_id, "doubts")
        done = []
        with recorded_step(context, store, "resolve_doubts", Told) as recording:
            watch = RunWatch(context).look
            for settled in settle_doubts(
                store, account, chosen, config.action, run_id=names, on_progress=watch
            ):
                show_settled(context, store, settled, price)
                yield from context.consume_events()
                done.append(settled)
            keys = {doubt.request_key for doubt in chosen}
            left = [doubt for doubt in find_doubts(store, price) if doubt.request_key in keys]
            counts = {"chosen": len(chosen), "left": len(left)}
            recording.tell(
                partial(launched_again, store, done, price, action=config.action, **counts)
            )
    rows = pd.DataFrame([vars(doubt) for doubt in left]).astype("str")
    yield dg.Output(
        None,
        metadata={
            "chosen": len(chosen),
            "settled": len(chosen) - len(left),
            "left": sample_table(rows) if left else "none",
        },
    )


@dg.job(
    description=(
        "Settle what may have been paid for and is not here. The actions LOOK and ABANDON buy "
        "nothing. Costs money with REBUY: it buys again whatever no evidence settles, one request "
        "each, up to the caps of NANOBANANA_MAX_…; name keys or a cause to buy less."
    )
)
def resolve_doubts() -> None:
    """One op: there is one bucket."""
    settle_all_doubts()


class RetryConfig(dg.Config):
    """How much a second try may cost, and of which partitions."""

    max_images: int = Field(
        description="The budget: buy at most so many images, over all partitions together."
    )
    max_cost: str | None = Field(
        default=None,
        description="Spend at most so much, in the currency of NANOBANANA_PRICE_PER_IMAGE.",
    )
    partitions: list[str] = Field(
        default=[], description="Keys such as animals|1. Left out: all that lack cells."
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
        cap = _budget_of(config)
        store, account = nanobanana.store(), nanobanana.account()
        only = {read_cell_key(key) for key in config.partitions}
        wanted = [(each.prompt_set, each.seed) for each in find_wanted(store)]
        chosen = [partition for partition in wanted if not only or partition in only]
        done = []
        names = run_ids(context.run_id, "retry")
        price = account.budget.price
        again: list[Settled] = []
        with recorded_step(context, store, "retry_failed", Told) as recording:
            watch = RunWatch(context).look
            for settled in retry(store, account, chosen, cap, run_id=names, on_progress=watch):
                current, report = settled.current, settled.report
                show_settled(context, store, settled, price)
                yield from context.consume_events()
                row = (current.prompt_set, current.seed, report.bought, report.spent, current.gaps)
                context.log.info(
                    f"{current.prompt_set}, seed {current.seed}: "
                    f"{counted(report.bought, 'request')} bought, "
                    f"{counted(current.gaps, 'cell')} still missing"
                )
                if report.halted:
                    context.log.warning(f"stopped early: {report.halted}")
                done.append(row)
                again.append(settled)
            recording.tell(partial(launched_again, store, again, price, action="retry"))
    columns = ["prompt set", "seed", "requests bought", "images bought", "still missing"]
    rows = pd.DataFrame(done, columns=columns)
    images = int(rows["images bought"].sum())
    yield dg.Output(
        None,
        metadata={
            "partitions that lack cells": len(chosen),
            "launched": len(done),
            "images bought": images,
            "cost": cost_text(cost_of(images, account.budget.price)),
            "partitions": sample_table(rows, SHOWN) if done else "none",
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


class RescueConfig(dg.Config):
    """Which run died."""

    run_id: str = Field(
        description="A run that never came to its end: a folder of runs/ without done.json."
    )


@dg.op(
    description=(
        "Brings what a dead run has bought and not stored, looks for evidence of what is in "
        "doubt, and publishes its partition's manifest. **Costs nothing: buys nothing.**"
    )
)
def rescue_one_run(
    context: dg.OpExecutionContext, config: RescueConfig, nanobanana: NanobananaResource
) -> None:
    """Settle what a dead run has left."""
    with plain_failures():
        store, account = nanobanana.store(), nanobanana.account()
        names = run_ids(context.run_id, "rescue")
        price = account.budget.price
        declare_dead(store, "generated_images", config.run_id)
        with recorded_step(context, store, "rescue_run", Told) as recording:
            settled = rescue(store, account, config.run_id, new_run_id=names)
            show_settled(context, store, settled, price)
            recording.tell(partial(launched_again, store, [settled], price, action="rescue"))
    current, report = settled.current, settled.report
    context.log.info(
        f"run {config.run_id} over {current.prompt_set}, seed {current.seed}: "
        f"{counted(report.images, 'image')} brought, "
        f"{counted(current.gaps, 'cell')} of the partition still missing"
    )
    context.add_output_metadata(
        {
            "images brought": report.images,
            "requests by state": dg.MetadataValue.json(
                {s.value: n for s, n in report.states.items()}
            ),
            "cells": dg.MetadataValue.json(dict(current.cells)),
        }
        | ({"stopped early": report.halted} if report.halted else {})
    )


@dg.job(
    description=(
        "Bring what a dead run has bought, before the provider deletes it after 24 hours. The "
        "sensor `rescue` launches it by itself. Buys nothing."
    )
)
def rescue_run() -> None:
    """One op: the run has one partition."""
    rescue_one_run()


class AuditConfig(dg.Config):
    """How closely to look."""

    sample: int = Field(
        default=1000, ge=0, description="How many pictures are read whole and hashed."
    )


@dg.op(
    description=(
        "Looks whether ledger, pictures, manifests, features, runs and budgets agree, and reads a "
        "sample of the pictures. **Buys nothing**; S3 is asked for each entry of the ledger."
    )
)
def audit_whole_bucket(
    context: dg.OpExecutionContext, config: AuditConfig, nanobanana: NanobananaResource
) -> None:
    """Audit everything, and fail where something disagrees."""
    with plain_failures():
        report = audit_bucket(nanobanana.store(), sample=config.sample)
    found = pd.DataFrame(
        [(each.kind.value, each.key, each.text) for each in report.findings],
        columns=["kind", "key", "what is wrong, and what to do"],
    )
    metadata: dict[str, Any] = {
        "findings": sample_table(found, SHOWN, LONGEST),
        "ledger entries": report.states.total(),
        "images": report.images,
        "images read": report.images_read,
    }
    if not report.agrees:
        raise dg.Failure(
            f"{counted(len(found), 'finding')}: see the table; each says what to do",
            metadata=metadata,
            allow_retries=False,
        )
    context.add_output_metadata(metadata)


@dg.job(
    name="audit_bucket",
    description=(
        "Look whether all that lies in the bucket agrees, as `nanobanana audit` does. Buys "
        "nothing; S3 is asked for each entry of the ledger."
    ),
)
def audit_bucket_job() -> None:
    """One op: there is one bucket."""
    audit_whole_bucket()


def _budget_of(config: RetryConfig) -> Cap:
    """What a retry may spend.

    Raises:
        PlanError: it is no amount.
    """
    if config.max_images < 1:
        raise PlanError(f"max_images {config.max_images} is out of range: use 1 or more")
    return Cap(config.max_images, amount_of(config.max_cost))
