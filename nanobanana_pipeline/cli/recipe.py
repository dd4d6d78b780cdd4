"""`nanobanana recipe`: whether a recipe is sound, and what it would select."""

from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

from nanobanana_pipeline.cli.show import make_console, table_of
from nanobanana_pipeline.datasets.recipe import Recipe, load_recipes, read_recipe
from nanobanana_pipeline.datasets.release import read_latest
from nanobanana_pipeline.datasets.selection import Selection, released_rows, select
from nanobanana_pipeline.errors import RecipeError
from nanobanana_pipeline.layout import check_bucket
from nanobanana_pipeline.settings import Settings
from nanobanana_pipeline.storage import ObjectStore, s3_client

__all__ = ["recipe_commands"]

SHOWN = 10

recipe_commands = typer.Typer(no_args_is_help=True, help="Look at recipes of datasets.")


@recipe_commands.command("check")
def check(
    path: Annotated[Path, typer.Argument(help="A recipe, or a folder of them.")],
) -> None:
    """Say whether recipes are sound; names every fault with file, line and field.

    Needs no settings and asks no bucket: whether their prompt sets and columns exist, `preview`
    says.
    """
    recipes = load_recipes(path) if path.is_dir() else [read_recipe(path)]
    if not recipes:
        raise RecipeError(f"{path} holds no recipe: no file ends in .yaml or .yml")
    frame = pd.DataFrame(
        [(recipe.name, recipe.licence, recipe.fingerprint) for recipe in recipes],
        columns=["recipe", "licence", "fingerprint"],
    )
    make_console().print(table_of(frame, f"{len(recipes):,} sound"))


@recipe_commands.command("preview")
def preview(
    file: Annotated[Path, typer.Argument(help="A recipe.")],
) -> None:
    """Say what a recipe would select now, and what it would leave out and why. Writes nothing."""
    recipe = read_recipe(file)
    settings = Settings.load_without_key()
    store = ObjectStore(s3_client(), str(settings.bucket), settings.prefix)
    check_bucket(store, str(settings.realm))
    latest, _ = read_latest(store, recipe.name)
    selection = select(store, recipe, released_rows(store, latest))
    console = make_console()
    for title, frame in _summary(recipe, selection):
        console.print(table_of(frame.head(SHOWN), title))
        if len(frame) > SHOWN:
            console.print(f"… and {len(frame) - SHOWN:,} more")
    after = f"; the latest is {latest.version}" if latest else ""
    console.print(f"{len(selection.rows):,} pictures would be released{after}", highlight=False)


def _summary(recipe: Recipe, selection: Selection) -> list[tuple[str, pd.DataFrame]]:
    """Small tables with their titles; those that would be empty are left out."""
    rows, rejected = selection.rows, selection.rejected
    splits = pd.DataFrame(
        {
            "pictures": rows.groupby("split").size(),
            "prompts": rows.groupby("split")["prompt"].nunique(),
            "groups": rows.groupby("split")["group"].nunique(),
            "bytes": rows.groupby("split")["bytes"].sum(),
        }
    )
    reasons = rejected.groupby("step", sort=False).agg(
        pictures=("row_id", "size"), reason=("reason", "first")
    )
    sample = rows[["split", "prompt_set", "prompt_id", "seed", "sample", "prompt"]]
    tables = [
        (f"{recipe.name}, step by step", selection.steps),
        ("by split", splits.reset_index()),
        ("left out, with the reason of the first", reasons.reset_index()),
        ("too few pictures", selection.shortfall.drop(columns=["prompt", "wanted"])),
        ("some of the rows", sample),
    ]
    return [(title, frame) for title, frame in tables if len(frame)]
