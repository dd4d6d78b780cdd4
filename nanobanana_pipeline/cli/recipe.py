"""`nanobanana recipe`: whether a recipe is sound, what it would select, and what that lacks."""

import uuid
from decimal import Decimal
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer
from rich.console import Console

from nanobanana_pipeline.cli.generate import print_outcome, read_money
from nanobanana_pipeline.cli.show import table_of
from nanobanana_pipeline.cli.terminal import INCOMPLETE, make_console, print_plain
from nanobanana_pipeline.datasets.recipe import Recipe, load_recipes, read_recipe
from nanobanana_pipeline.datasets.release import read_latest
from nanobanana_pipeline.datasets.selection import Selection, empty_splits, released_rows, select
from nanobanana_pipeline.datasets.top_up import Drawn, Standing, stand, top_up
from nanobanana_pipeline.errors import RecipeError
from nanobanana_pipeline.lineage.openlineage.facts import RunFacts
from nanobanana_pipeline.lineage.openlineage.recorder import record_run
from nanobanana_pipeline.lineage.openlineage.run_facts import RelaunchReason, relaunch_complete
from nanobanana_pipeline.money import Cap, cost_text
from nanobanana_pipeline.provider.account import Account
from nanobanana_pipeline.settings import Settings
from nanobanana_pipeline.storage.bucket import open_bucket
from nanobanana_pipeline.wording import counted, shortened

__all__ = ["recipe_commands"]

ROWS_SHOWN = 10

recipe_commands = typer.Typer(
    no_args_is_help=True,
    help="Check recipes of datasets, see what they would select, and buy what they lack.",
)


@recipe_commands.command("check")
def check_recipe(
    path: Annotated[Path, typer.Argument(help="The recipe's file, or a folder of recipes.")],
) -> None:
    """Say whether recipes are sound; names every fault with file, line and field.

    Needs no settings and asks no bucket: whether their prompt sets and columns exist, `preview`
    says.
    """
    recipes = load_recipes(path) if path.is_dir() else [read_recipe(path)]
    if not recipes:
        raise RecipeError(f"{path} holds no recipe: no file ends in .yaml or .yml")
    rows = [
        {"recipe": each.name, "licence": each.licence, "fingerprint": each.fingerprint}
        for each in recipes
    ]
    make_console().print(table_of(rows, f"{len(recipes):,} sound"))


@recipe_commands.command("preview")
def preview(file: Annotated[Path, typer.Argument(help="The recipe's file.")]) -> None:
    """Say what a recipe would select now, and what it would leave out and why. Writes nothing."""
    recipe = read_recipe(file)
    store = open_bucket(Settings.load_without_key(), claim=False)
    latest = read_latest(store, recipe.name)
    selection = select(store, recipe, released_rows(store, latest))
    console = make_console()
    _print_tables(console, _summary(recipe, selection))
    after = f"; the latest is {latest.version}" if latest else ""
    prompts = len(selection.rows.drop_duplicates(["prompt_set", "prompt_id"]))
    console.print(
        f"{counted(len(selection.rows), 'picture')} would be released, of "
        f"{counted(prompts, 'prompt')} (rows of the prompt tables) with "
        f"{counted(selection.rows['prompt'].nunique(), 'different text')}{after}",
        soft_wrap=True,
    )
    for warning in empty_splits(recipe, selection.rows):
        print_plain(console, warning, style="yellow")
    if len(selection.shortfall):
        console.print(f"nanobanana recipe top-up {file} buys what is missing")


@recipe_commands.command("top-up")
def top_up_(
    file: Annotated[Path, typer.Argument(help="The recipe's file; it has to say per_prompt.")],
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what is missing, and what it may cost.")
    ] = False,
    max_images: Annotated[
        int | None, typer.Option(min=1, help="Buy at most so many images.")
    ] = None,
    max_cost: Annotated[
        str | None,
        typer.Option(
            metavar="AMOUNT", help="Spend at most so much money, by NANOBANANA_PRICE_PER_IMAGE."
        ),
    ] = None,
) -> None:
    """Buy further candidates until every prompt has its pictures, or none is left, or the budget.

    Goes on where an earlier call was ended, and buys nothing twice. Exits with 1 if prompts are
    still short.
    """
    recipe = read_recipe(file)
    cap = Cap(max_images, read_money("--max-cost", max_cost))
    settings = Settings.load()
    account, console = Account.open(settings), make_console()
    price = account.budget.price

    def tell(standing: Standing) -> None:
        print_plain(console, _quote(recipe, standing, cap, price))

    if dry_run:
        store = open_bucket(settings, claim=False)
        standing = stand(store, recipe)
        tell(standing)
    else:
        store = open_bucket(settings)
        done: list[Drawn] = []
        steps = top_up(
            *(store, account, recipe, cap),
            on_round=tell,
            on_progress=lambda progress: console.print(str(progress)),
        )
        try:
            with record_run(store, "top_up_dataset", uuid.uuid4().hex, RunFacts) as recording:
                for drawn in steps:
                    _print_drawn(console, drawn)
                    done.append(drawn)
                recording.set_facts(
                    lambda: relaunch_complete(store, done, price, reason=RelaunchReason.TOP_UP)
                )
        except KeyboardInterrupt:
            console.print("stopped; the same command goes on from here", style="yellow")
            raise
        standing = stand(store, recipe)
    _print_standing(console, recipe, standing)
    if len(standing.short) and not dry_run:
        raise typer.Exit(INCOMPLETE)


def _quote(recipe: Recipe, standing: Standing, cap: Cap, price: Decimal | None) -> str:
    short = standing.short
    if short.empty:
        return f"{recipe.name}: no picture is missing of {counted(standing.complete, 'prompt')}"
    told = (
        f"{recipe.name}: {counted(standing.complete, 'prompt', 'has')} all pictures, "
        f"{len(short):,} short by {counted(standing.selection.missing, 'picture')} together; "
        f"at most {counted(standing.most, 'image')} to buy"
    )
    cost = standing.cost(price)
    told += f" for {cost_text(cost)}" if cost is not None else " at an unknown price"
    told += ", less what is bought already under those seeds" if standing.most else ""
    return f"{told}; this call buys at most {cap}" if cap != Cap() else told


def _print_drawn(console: Console, drawn: Drawn) -> None:
    current, report = drawn.current, drawn.report
    console.print(
        f"{current.prompt_set}, seed {current.seed}: {report.bought:,} bought, "
        f"{counted(report.images, 'image')} stored, {drawn.features.measured:,} measured",
    )
    print_outcome(console, current, report)


def _print_standing(console: Console, recipe: Recipe, standing: Standing) -> None:
    short = standing.short.drop(columns=["wanted", "samples", "more"])
    excluded = len(standing.selection.excluded)
    rejected = standing.rejected[["prompt_set", "prompt_id", "prompt", "seed", "reason"]]
    by_step = standing.rejected.groupby("step", sort=False).size().rename("pictures").reset_index()
    tables = {"rejected, by step": by_step, "rejected": rejected, "too few pictures": short}
    _print_tables(console, tables)
    if excluded:
        console.print(f"{counted(excluded, 'prompt')} left out by what the prompt table says")
    console.print(
        f"{recipe.name}: {counted(standing.complete, 'prompt')} accepted, {len(short):,} short by "
        f"{counted(standing.selection.missing, 'picture')}, "
        f"{counted(len(rejected), 'picture')} rejected",
    )


def _print_tables(console: Console, tables: dict[str, pd.DataFrame]) -> None:
    """The first rows of each table that has any, under its title; prompts in one line each."""
    for title, frame in tables.items():
        if len(frame):
            shown = frame.head(ROWS_SHOWN)
            if "prompt" in shown:
                shown = shown.assign(prompt=shown["prompt"].map(shortened))
            console.print(table_of(shown, title))
        if len(frame) > ROWS_SHOWN:
            console.print(f"… and {len(frame) - ROWS_SHOWN:,} more")


def _summary(recipe: Recipe, selection: Selection) -> dict[str, pd.DataFrame]:
    """Small tables by their titles."""
    rows, rejected = selection.rows, selection.rejected
    distinct = rows.drop_duplicates(["split", "prompt_set", "prompt_id"])
    splits = pd.DataFrame(
        {
            "pictures": rows.groupby("split").size(),
            "prompts": distinct.groupby("split").size(),
            "different texts": rows.groupby("split")["prompt"].nunique(),
            "groups": rows.groupby("split")["group"].nunique(),
            "bytes": rows.groupby("split")["bytes"].sum(),
        }
    )
    reasons = rejected.groupby("step", sort=False).agg(
        pictures=("row_id", "size"), reason=("reason", "first")
    )
    sample = rows[["split", "prompt_set", "prompt_id", "seed", "sample", "prompt"]]
    return {
        f"{recipe.name}, step by step": selection.steps,
        "by split": splits.reset_index(),
        "left out, with the reason of the first": reasons.reset_index(),
        "too few pictures": selection.shortfall.drop(columns=["prompt", "wanted"]),
        "some of the rows": sample,
    }
