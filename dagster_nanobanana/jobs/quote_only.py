"""The job that says what a launch would buy. It buys and writes nothing."""

from typing import Any, Final

import dagster as dg
import pandas as pd
from pydantic import Field

from dagster_nanobanana.failures import plain_failures
from dagster_nanobanana.launch_config import GenerationConfig, launch_of
from dagster_nanobanana.presentation.tables import TABLE_ROWS, sample_table
from dagster_nanobanana.resources import NanobananaResource
from nanobanana_pipeline.errors import PlanError
from nanobanana_pipeline.generation.planning.cells import read_seeds
from nanobanana_pipeline.generation.quote import quote, room_today
from nanobanana_pipeline.generation.wallet import read_balance, wallet_note
from nanobanana_pipeline.money import cost_of, cost_text
from nanobanana_pipeline.prompts import prompt_set
from nanobanana_pipeline.wording import counted, size_text, time_text

__all__ = ["quote_only"]

UNKNOWN: Final = "unknown"


class QuoteConfig(GenerationConfig):
    """What would be launched: all that a launch may say, for several seeds at once."""

    prompt_set: str = Field(description="Its name; it must be materialized.")
    seeds: str = Field(description="Seeds: 1-4, or 1,7,9-12.")


@dg.op(
    out={
        "quote": dg.Out(
            dg.Nothing, description="Images, cost, bytes and time, together and for each seed."
        )
    },
    description=(
        "Says what launching a prompt set under these seeds would buy, cost, store and last. "
        "**Costs nothing: buys nothing and writes nothing.**"
    ),
)
def quote_launches(
    context: dg.OpExecutionContext, config: QuoteConfig, nanobanana: NanobananaResource
) -> None:
    """Plan without launching."""
    with plain_failures():
        store, account = nanobanana.store(), nanobanana.account()
        kept = prompt_set.current(store, config.prompt_set)
        if kept is None:
            raise PlanError(
                f"there is no prompt set {config.prompt_set!r}: materialize prompt_set first"
            )
        prompts = prompt_set.load(store, kept.name, kept.fingerprint)
        slots = config.slots or account.slots
        try:
            seeds = read_seeds(config.seeds)
        except ValueError as error:
            raise PlanError(f"seeds {error}") from None
        rows: list[dict[str, Any]] = []
        for seed in seeds:
            launch = launch_of(config, kept.name, seed, "quote")
            one = quote(store, account, launch, prompts, slots=slots)
            expected = one.estimate
            rows.append(
                {
                    "seed": seed,
                    "requests": one.plan.buy,
                    "images": one.plan.buy_images,
                    "cost": cost_text(one.plan.cost),
                    "bytes": UNKNOWN if expected.size is None else expected.size,
                    "seconds": UNKNOWN if expected.seconds is None else round(expected.seconds, 1),
                    "to resume": one.plan.resume + one.plan.look,
                    "needs change_parameters": one.changes,
                }
            )
        _, room = room_today(store, account.budget)
        balance = read_balance(account)
    images = sum(row["images"] for row in rows)
    price = cost_of(images, account.budget.price)
    cost = cost_text(price)
    size, seconds = _sum_of(rows, "bytes"), _sum_of(rows, "seconds")
    stored = "size unknown" if isinstance(size, str) else size_text(size)
    lasts = "time unknown" if isinstance(seconds, str) else f"about {time_text(seconds)}"
    context.log.info(
        f"{counted(images, 'image')}, cost: {cost}, {stored}, {lasts}; "
        f"under {counted(len(rows), 'seed')} of {config.prompt_set}"
    )
    context.add_output_metadata(
        {
            "images": images,
            "cost": cost,
            "bytes": size,
            "seconds": seconds,
            "time": lasts,
            "room today, in images": "no cap" if room is None else room,
            "seeds": sample_table(pd.DataFrame(rows), TABLE_ROWS),
        }
        | ({"wallet": wallet_note(balance, price)} if balance else {})
    )


@dg.job(
    description=(
        "Say what a launch would buy, cost, store and last. Costs nothing: buys and writes nothing."
    )
)
def quote_only() -> None:
    """One op: nothing is made."""
    quote_launches()


def _sum_of(rows: list[dict[str, Any]], name: str) -> float | str:
    values = [row[name] for row in rows]
    return UNKNOWN if UNKNOWN in values else round(sum(values), 1)
