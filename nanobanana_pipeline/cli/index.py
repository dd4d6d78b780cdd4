"""`nanobanana index`: what makes tracing fast."""

from typing import Annotated

import typer
from rich.console import Console

from nanobanana_pipeline.cli.terminal import make_console
from nanobanana_pipeline.lineage.trace.index_writer import refresh_index
from nanobanana_pipeline.settings import Settings
from nanobanana_pipeline.storage.bucket import open_bucket
from nanobanana_pipeline.wording import counted

__all__ = ["index_commands"]

index_commands = typer.Typer(no_args_is_help=True, help="Look after the index that trace uses.")


@index_commands.command("refresh")
def refresh_(
    *,
    rebuild: Annotated[
        bool,
        typer.Option("--rebuild", help="Read all manifests and releases again, and make it anew."),
    ] = False,
) -> None:
    """Bring the index up to date with the manifests in force and the releases."""
    store = open_bucket(Settings.load_without_key(), claim=False)
    console = Console(stderr=True)
    with console.status("reading") as status:
        done = refresh_index(
            store,
            rebuild=rebuild,
            on_progress=lambda what, count: status.update(f"{what}: {count:,}"),
        )
    make_console().print(
        f"the index covers {counted(done.partitions, 'partition')} and "
        f"{counted(done.releases, 'release')}, {counted(done.rows, 'row')}; "
        f"read for it: {done.read:,}",
    )
