"""Jobs beside the assets."""

from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal

import dagster as dg
import pandas as pd
from pydantic import Field

from dagster_project.failures import plain_failures
from dagster_project.metadata import sample_table
from dagster_project.partitions import cell_key
from dagster_project.resources import NanobananaResource
from nanobanana_pipeline.generation.doubts import Action, Filter, find_doubts, settle_doubts

__all__ = ["resolve_doubts"]


class DoubtsConfig(dg.Config):
    """Which doubts are meant, and what is done about them."""

    action: Action = Field(
        default=Action.LOOK,
        description=(
            "LOOK asks for evidence and brings what turns out to be bought: it buys nothing. REBUY "
            "buys again where there is no evidence: what was paid for already is paid for twice. "
            "ABANDON gives up: missed no more, and never bought."
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
    description=(
        "Settles requests in doubt or lost, and publishes the manifests of their partitions. "
        "**Costs nothing unless the action is REBUY.**"
    )
)
def settle_all_doubts(
    context: dg.OpExecutionContext, config: DoubtsConfig, nanobanana: NanobananaResource
) -> None:
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
        for settled in settle_doubts(
            store, account, chosen, config.action, run_id=_run_ids(context.run_id)
        ):
            current = settled.current
            # As the asset itself does: what has gaps is seen, and not made.
            event = dg.AssetObservation if current.gaps else dg.AssetMaterialization
            context.log_event(
                event(
                    "generated_images",
                    partition=cell_key(current.prompt_set, current.seed),
                    metadata={
                        "cells": dg.MetadataValue.json(dict(current.cells)),
                        "images stored in this run": settled.report.images,
                        "dagster/uri": store.uri(current.manifest),
                    },
                    tags={"dagster/data_version": current.content},
                )
            )
        keys = {doubt.request_key for doubt in chosen}
        left = [doubt for doubt in find_doubts(store, price) if doubt.request_key in keys]
    rows = pd.DataFrame([vars(doubt) for doubt in left]).astype("str")
    context.add_output_metadata(
        {
            "chosen": len(chosen),
            "settled": len(chosen) - len(left),
            "left": sample_table(rows) if left else "none",
        }
    )


@dg.job(description="Settle what may have been paid for and is not here.")
def resolve_doubts() -> None:
    """One op: there is one bucket."""
    settle_all_doubts()


def _run_ids(run_id: str) -> Callable[[], str]:
    """A run of its own for each partition, named after Dagster's."""
    count = 0

    def name() -> str:
        nonlocal count
        count += 1
        return f"{run_id}-doubts-{count}"

    return name
