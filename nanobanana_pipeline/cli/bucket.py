"""`nanobanana bucket`: whether the bucket keeps what the promise rests on."""

from typing import Annotated

import typer
from rich.console import Console

from nanobanana_pipeline.bucket_keys import delivery_key
from nanobanana_pipeline.cli.show import table_of
from nanobanana_pipeline.cli.terminal import INCOMPLETE, make_console, print_plain
from nanobanana_pipeline.settings import Settings
from nanobanana_pipeline.storage import s3_client
from nanobanana_pipeline.storage.bucket import open_bucket
from nanobanana_pipeline.storage.bucket_check import ROUNDS, run_check

__all__ = ["bucket_commands"]

bucket_commands = typer.Typer(
    no_args_is_help=True, help="Check that the bucket keeps what buying nothing twice rests on."
)


@bucket_commands.callback()
def _group() -> None:
    """Have `check` be a command of a group, though it is the only one."""


@bucket_commands.command("check")
def check(
    *,
    races: Annotated[
        int, typer.Option(min=1, help="Rounds of 16 writers that race for one object.")
    ] = ROUNDS,
    endpoint: Annotated[
        list[str] | None,
        typer.Option(
            help="URL of an S3 gateway; may be given several times, and the writers are then "
            "spread over all. AWS's own variables say it if left out."
        ),
    ] = None,
) -> None:
    """Race writers for objects, and try S3's clock and checksums. Needs no API key.

    Exits with 1 if something does not hold. The verdict is kept for 30 days, unless there were
    fewer rounds than by default.
    """
    settings = Settings.load_without_key()
    endpoints: list[str | None] = [*endpoint] if endpoint else [None]
    stores = [
        open_bucket(settings, claim=False, client=s3_client(endpoint_url=each))
        for each in endpoints
    ]
    with Console(stderr=True).status(f"{races:,} races"):
        copies = stores[0].head(delivery_key()) is not None
        verdicts = run_check(stores, races, copies=copies)
    console, verdict = make_console(), verdicts[0]
    rows = [
        {
            "what": each.what,
            "tried": f"{each.tried:,}",
            "held": f"{each.held:,}",
            "verdict": "holds" if not each.fault else "refused" if each.required else "warning",
        }
        for each in verdict.trials
    ]
    through = ", ".join(each.endpoint for each in verdicts)
    title = f"{stores[0].uri('')} through {through}, in {verdict.seconds:.1f} s"
    console.print(table_of(rows, title))
    for text in (*verdict.faults, *verdict.warnings):
        print_plain(console, text, style="yellow")
    if verdict.faults or verdict.warnings:
        raise typer.Exit(INCOMPLETE)
