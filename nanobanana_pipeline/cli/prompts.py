"""`nanobanana prompts`: what would become of a table."""

import os
from typing import Annotated, cast

import typer

from nanobanana_pipeline.cli.show import print_carried, print_long, table_of
from nanobanana_pipeline.cli.terminal import INCOMPLETE, make_console, print_plain
from nanobanana_pipeline.prompts.checked_prompts import REFERENCE, fingerprint
from nanobanana_pipeline.prompts.references import References
from nanobanana_pipeline.prompts.table import read_prompt_table
from nanobanana_pipeline.prompts.table_files import fault_of_name
from nanobanana_pipeline.prompts.validation import check_prompts
from nanobanana_pipeline.provider.downloads import Downloader
from nanobanana_pipeline.settings import split_names
from nanobanana_pipeline.storage import ObjectStore, s3_client
from nanobanana_pipeline.wording import counted

__all__ = ["prompt_commands"]

FAULTS_SHOWN = 50

prompt_commands = typer.Typer(
    no_args_is_help=True, help="Look at prompt tables before they are bought for."
)


@prompt_commands.command("check")
def check_table(
    file: Annotated[
        str,
        typer.Argument(help="The prompt table: CSV, TSV, JSONL or Parquet; a path or s3:// URL."),
    ],
) -> None:
    """Say which rows of a table would be quarantined, and why. Writes nothing.

    Exits with 1 if any would, or if the file's name can be no prompt set's.

    Reference pictures are read too: files, https URLs (and what NANOBANANA_ALLOWED_HOSTS allows),
    and s3:// URLs with AWS's own variables. No other setting is needed.
    """
    store = ObjectStore(s3_client(), "") if file.startswith("s3://") else None
    table = read_prompt_table(file, store)
    references = None
    if REFERENCE in table.rows.column_names:
        hosts = cast("tuple[str, ...]", split_names(os.environ.get("NANOBANANA_ALLOWED_HOSTS", "")))
        store = store or ObjectStore(s3_client(), "")
        references = References(Downloader(hosts), store, keep=False)
    checked = check_prompts(table, references)
    console = make_console()
    if len(checked.quarantine):
        bad = checked.quarantine["row"].nunique()
        console.print(
            table_of(checked.quarantine.head(FAULTS_SHOWN), f"{counted(bad, 'row')} in quarantine")
        )
        if len(checked.quarantine) > FAULTS_SHOWN:
            console.print(f"… and {counted(len(checked.quarantine) - FAULTS_SHOWN, 'more fault')}")
    console.print(f"{counted(len(checked.prompts), 'good row')} in {file}")
    print_carried(console, checked)
    print_long(console, checked)
    if len(checked.prompts):
        console.print(f"fingerprint {fingerprint(checked.prompts)}")
    fault = fault_of_name(file)
    if fault:
        print_plain(console, f"{fault}. Rename the file, or give generate --name", style="yellow")
    if len(checked.quarantine) or fault:
        raise typer.Exit(INCOMPLETE)
