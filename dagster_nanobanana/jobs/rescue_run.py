"""The job that brings what an expired run has bought. It buys nothing."""

from functools import partial

import dagster as dg
from pydantic import Field

from dagster_nanobanana.failures import plain_failures
from dagster_nanobanana.jobs.partition_events import run_ids, show_settled
from dagster_nanobanana.resources import NanobananaResource
from dagster_nanobanana.step_lineage import recorded_step
from nanobanana_pipeline.generation.recovery.rescue import rescue
from nanobanana_pipeline.lineage.openlineage.recorder import record_expired_run
from nanobanana_pipeline.lineage.openlineage.run_facts import RelaunchReason, relaunch_complete
from nanobanana_pipeline.wording import counted

__all__ = ["rescue_run"]


class RescueConfig(dg.Config):
    """Which run died."""

    run_id: str = Field(
        description="A run that never came to its end: a folder of runs/ without done.json."
    )


@dg.op(
    description=(
        "Brings what an expired run has bought and not stored, looks for evidence of what is in "
        "doubt, and publishes its partition's manifest. **Costs nothing: buys nothing.**"
    )
)
def rescue_one_run(
    context: dg.OpExecutionContext, config: RescueConfig, nanobanana: NanobananaResource
) -> None:
    """Settle what an expired run has left."""
    with plain_failures():
        store, account = nanobanana.store(), nanobanana.account()
        names = run_ids(context.run_id, "rescue")
        price = account.budget.price
        record_expired_run(store, "generated_images", config.run_id)
        with recorded_step(context, store, "rescue_run") as recording:
            settled = rescue(store, account, config.run_id, new_run_id=names)
            show_settled(context, store, settled, price)
            recording.set_facts(
                partial(relaunch_complete, store, [settled], price, reason=RelaunchReason.RESCUE)
            )
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
        "Bring what an expired run has bought, before the provider deletes it after 24 hours. The "
        "sensor `rescue` launches it by itself. Buys nothing."
    )
)
def rescue_run() -> None:
    """One op: the run has one partition."""
    rescue_one_run()
