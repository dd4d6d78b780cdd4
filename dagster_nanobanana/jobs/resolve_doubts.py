"""The job that settles what may have been paid for and is not in the bucket."""

from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal
from functools import partial
from typing import Any

import dagster as dg
import pandas as pd
from pydantic import Field

from dagster_nanobanana.failures import plain_failures
from dagster_nanobanana.jobs.partition_events import run_ids, show_settled
from dagster_nanobanana.presentation.tables import sample_table
from dagster_nanobanana.resources import NanobananaResource
from dagster_nanobanana.run_watch import RunWatch
from dagster_nanobanana.step_lineage import recorded_step
from nanobanana_pipeline.audit.vendor_books import BookMatches, settle_by_books
from nanobanana_pipeline.generation.recovery.doubts import (
    Action,
    DoubtFilter,
    find_doubts,
    settle_doubts,
)
from nanobanana_pipeline.lineage.openlineage.run_facts import RelaunchReason, relaunch_complete

__all__ = ["resolve_doubts"]


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
    keys: list[str] = Field([], description="Request keys, or their first digits. Left out: all.")
    cause: str | None = Field(None, description="A part of the cause.")
    run_id: str | None = Field(None, description="The run that made the attempt.")
    older_hours: float | None = Field(None, description="At least so old.")
    min_cost: float | None = Field(
        None, description="At least so dear; none is while the price is unknown."
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
        wanted = DoubtFilter(
            keys=tuple(config.keys),
            cause=config.cause,
            run_id=config.run_id,
            older=None if config.older_hours is None else timedelta(hours=config.older_hours),
            cost=None if config.min_cost is None else Decimal(str(config.min_cost)),
        )
        price = account.budget.price
        chosen = [doubt for doubt in find_doubts(store, price) if wanted.allows(doubt)]
        names = run_ids(context.run_id, "doubts")
        done, matches = [], BookMatches()
        with recorded_step(context, store, "resolve_doubts") as recording:
            watch = RunWatch(context).look
            if config.action is not Action.ABANDON:
                matches = settle_by_books(store, account, chosen)
            for settled in settle_doubts(
                store, account, chosen, config.action, run_id=names, on_progress=watch
            ):
                show_settled(context, store, settled, price)
                yield from context.consume_events()
                done.append(settled)
            keys = {doubt.request_key for doubt in chosen}
            left = [doubt for doubt in find_doubts(store, price) if doubt.request_key in keys]
            reason, counts = (
                RelaunchReason(config.action),
                {"chosen": len(chosen), "left": len(left)},
            )
            recording.set_facts(
                partial(relaunch_complete, store, done, price, reason=reason, **counts)
            )
    rows = pd.DataFrame([vars(doubt) for doubt in left]).astype("str")
    yield dg.Output(
        None,
        metadata={
            "chosen": len(chosen),
            "settled": len(chosen) - len(left),
            "left": sample_table(rows) if left else "none",
            **_booked(matches),
        },
    )


def _booked(matches: BookMatches) -> dict[str, Any]:
    """What the vendor's books have said, where they were asked."""
    told: dict[str, Any] = {}
    if matches.fault:
        told["vendor's books"] = matches.fault
    if matches.named or matches.unknown:
        told["named by the vendor's books"] = len(matches.named)
        rows = pd.DataFrame(
            [vars(sale) for sale in matches.unknown], columns=["provider_id", "told"]
        )
        told["sales of no known request"] = sample_table(rows) if matches.unknown else "none"
    return told


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
