"""`nanobanana status`: every partition's cells by state."""

import json
from dataclasses import asdict
from typing import Annotated

import typer

from nanobanana_pipeline.cli.show import make_console, partitions_table
from nanobanana_pipeline.generation.manifest import CellState, CurrentManifest, read_all_current
from nanobanana_pipeline.layout import check_bucket, claim_bucket
from nanobanana_pipeline.settings import Settings
from nanobanana_pipeline.storage import ObjectStore, s3_client

__all__ = ["all_settled", "open_bucket", "status"]

NOT_SETTLED = 1


def status(
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead.")] = False,
) -> None:
    """Show what is settled, and what is not, in every partition of the bucket."""
    settings = Settings.load()
    store = ObjectStore(s3_client(), str(settings.bucket), settings.prefix)
    check_bucket(store, str(settings.realm))
    manifests = list(read_all_current(store))
    if as_json:
        typer.echo(json.dumps([asdict(current) for current in manifests], indent=1))
    elif manifests:
        make_console().print(partitions_table(manifests, store))
    else:
        make_console().print(f"no partition has a manifest yet in {store.uri('')}")
    if not all_settled(manifests):
        raise typer.Exit(NOT_SETTLED)


def open_bucket(settings: Settings) -> ObjectStore:
    """The bucket of these settings, once it is sure that it is fit and of the right realm."""
    store = ObjectStore(s3_client(), str(settings.bucket), settings.prefix)
    claim_bucket(store, str(settings.realm))
    return store


def all_settled(manifests: list[CurrentManifest]) -> bool:
    """Whether every cell that was asked for is there."""
    fine = {CellState.SETTLED, CellState.NOT_REQUESTED}
    return all(set(current.cells) <= fine for current in manifests)
