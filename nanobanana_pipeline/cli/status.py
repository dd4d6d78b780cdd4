"""`nanobanana status`: every partition's cells by state, and runs that have not ended."""

import json
from dataclasses import asdict
from typing import Annotated

import typer

from nanobanana_pipeline.cli.show import partitions_table, table_of
from nanobanana_pipeline.cli.terminal import INCOMPLETE, make_console
from nanobanana_pipeline.generation.manifest.manifest import (
    CellState,
    CurrentManifest,
    read_all_current,
)
from nanobanana_pipeline.generation.recovery.rescue import UnfinishedRun, unfinished_runs
from nanobanana_pipeline.lineage.openlineage.recorder import was_stopped
from nanobanana_pipeline.settings import Settings
from nanobanana_pipeline.storage import ObjectStore
from nanobanana_pipeline.storage.bucket import open_bucket
from nanobanana_pipeline.wording import time_text

__all__ = ["all_settled", "status"]


def status(
    *, as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead.")] = False
) -> None:
    """Show what is settled, and what is not, in every partition; and runs that have not ended.

    A partition is a prompt set under one seed. Exits with 1 if cells are not settled.
    """
    store = open_bucket(Settings.load(), claim=False)
    manifests = list(read_all_current(store))
    unfinished = unfinished_runs(store, manifests)
    if as_json:
        said = {
            "partitions": [asdict(current) for current in manifests],
            "unfinished_runs": [asdict(run) for run in unfinished],
        }
        typer.echo(json.dumps(said, indent=1))
    else:
        _show(manifests, unfinished, store)
    if unfinished or not all_settled(manifests):
        raise typer.Exit(INCOMPLETE)


def _show(
    manifests: list[CurrentManifest], unfinished: list[UnfinishedRun], store: ObjectStore
) -> None:
    console = make_console()
    if manifests:
        console.print(partitions_table(manifests, store))
    else:
        console.print(f"no partition has a manifest yet in {store.uri('')}")
    rows = [
        {
            "run": run.run_id,
            "prompt set": run.prompt_set,
            "seed": run.seed,
            "to buy": f"{run.buy:,}",
            "last sign of life": f"{time_text(run.quiet_seconds)} ago",
            "": _how_it_stands(store, run),
        }
        for run in unfinished
    ]
    if rows:
        console.print(table_of(rows, "runs that have not ended"))


def _how_it_stands(store: ObjectStore, run: UnfinishedRun) -> str:
    if was_stopped(store, "generated_images", run.run_id):
        return "stopped as asked: launch it again, which goes on from there"
    if run.is_dead:
        return "died: launch it again, which goes on from there"
    return "under way, or died in the last 15 minutes"


def all_settled(manifests: list[CurrentManifest]) -> bool:
    """Whether every cell that was asked for is there."""
    fine = {CellState.SETTLED, CellState.NOT_REQUESTED}
    return all(set(current.cells) <= fine for current in manifests)
