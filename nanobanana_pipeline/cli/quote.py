"""`nanobanana quote`: what a launch would buy and cost. Buys and writes nothing."""

from pathlib import PurePosixPath
from typing import Annotated

import typer
from rich.console import Console

from nanobanana_pipeline.cli.generate import (
    Limit,
    Param,
    Seeds,
    SetNameOption,
    TableFile,
    parse_seeds,
    read_launch_parameters,
)
from nanobanana_pipeline.cli.show import table_of
from nanobanana_pipeline.cli.terminal import make_console
from nanobanana_pipeline.generation.budget.counters import Counter
from nanobanana_pipeline.generation.planning.planner import Launch
from nanobanana_pipeline.generation.quote import Quote, quote, room_today
from nanobanana_pipeline.generation.wallet import is_short, read_balance, wallet_note
from nanobanana_pipeline.money import Budget, cost_of, cost_text
from nanobanana_pipeline.prompts.prompt_set import valid_name
from nanobanana_pipeline.prompts.references import References
from nanobanana_pipeline.prompts.table import read_prompt_table
from nanobanana_pipeline.prompts.validation import check_prompts
from nanobanana_pipeline.provider.account import Account
from nanobanana_pipeline.settings import Settings
from nanobanana_pipeline.storage import ObjectStore
from nanobanana_pipeline.storage.bucket import open_bucket
from nanobanana_pipeline.wording import counted, size_text, time_text

__all__ = ["quote_command"]


def quote_command(
    file: TableFile,
    seeds: Seeds,
    *,
    name: SetNameOption = None,
    limit: Limit = None,
    param: Param = None,
    rebuy: Annotated[
        bool,
        typer.Option("--rebuy", help="Count what is in doubt or lost among what would be bought."),
    ] = False,
) -> None:
    """Say what `generate` would buy, cost, store and last. Buys and writes nothing."""
    parameters, delivery = read_launch_parameters(param or [])
    settings = Settings.load()
    account = Account.open(settings)
    store = open_bucket(settings, claim=False)
    set_name = valid_name(name or PurePosixPath(file).name.partition(".")[0])
    references = References(account.downloader, store, keep=False)
    checked = check_prompts(read_prompt_table(file, store), references)
    console = make_console()
    quotes = [
        quote(
            store,
            account,
            Launch(set_name, seed, "quote", parameters, delivery, limit=limit, rebuy=rebuy),
            checked.prompts,
            slots=account.slots,
        )
        for seed in parse_seeds(seeds)
    ]
    rows = [_row(str(one.plan.seed), [one]) for one in quotes]
    if len(quotes) > 1:
        rows.append(_row("all", quotes))
    title = f"{set_name}: {counted(len(checked.prompts), 'row')}"
    console.print(table_of(rows, title))
    if any(q.changes for q in quotes):
        console.print(
            "parameters differ from those some partitions were made with: generate needs "
            "--change-parameters"
        )
    images = sum(q.plan.buy_images for q in quotes)
    _print_budget(console, store, account.budget, images)
    balance = read_balance(account)
    if balance is not None:
        cost = cost_of(images, account.budget.price)
        style = "yellow" if is_short(balance, cost) else ""
        console.print(wallet_note(balance, cost), style=style)


def _row(label: str, quotes: list[Quote]) -> dict[str, str]:
    images = sum(q.plan.buy_images for q in quotes)
    sizes = [q.estimate.size for q in quotes if q.estimate.size is not None]
    times = [q.estimate.seconds for q in quotes if q.estimate.seconds is not None]
    return {
        "seed": label,
        "cells": f"{sum(q.plan.cells for q in quotes):,}",
        "to buy": f"{sum(q.plan.buy for q in quotes):,}",
        "images": f"{images:,}",
        "cost": cost_text(cost_of(images, quotes[0].plan.price)),
        "to resume": f"{sum(q.plan.resume + q.plan.look for q in quotes):,}",
        "storage": size_text(sum(sizes)) if len(sizes) == len(quotes) else "unknown",
        "time": time_text(sum(times)) if len(times) == len(quotes) else "unknown",
    }


def _spent_text(spent: Counter) -> str:
    """How many images for how much; those without a price are told apart, and do not cost 0."""
    images, unpriced = spent.images_counted, spent.unpriced_counted
    if not images:
        return "no image"
    if unpriced == images:
        return f"{counted(images, 'image')} at an unknown price"
    cost = cost_text(spent.cost_counted)
    if not unpriced:
        return f"{counted(images, 'image')} for {cost}"
    told = f"{images - unpriced:,} for {cost} and {unpriced:,} at an unknown price"
    return f"{counted(images, 'image')} ({told})"


def _print_budget(console: Console, store: ObjectStore, budget: Budget, images: int) -> None:
    if images and budget.price is None:
        console.print(
            f"{counted(images, 'image')} to buy at an unknown price: set "
            "NANOBANANA_PRICE_PER_IMAGE to see the cost"
        )
    spent, room = room_today(store, budget)
    console.print(
        f"today (UTC) {_spent_text(spent)} bought or reserved; the day's cap: {budget.day}"
    )
    if room is not None and room < images:
        console.print(
            f"{images - room:,} of {counted(images, 'image')} would be over today's budget: marked "
            "over_budget, and bought by a later launch",
            style="yellow",
        )
