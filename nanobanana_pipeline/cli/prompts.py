"""`nanobanana prompts`: what would become of a table."""

from typing import Annotated

import typer

from nanobanana_pipeline.cli.show import make_console, print_carried, table_of
from nanobanana_pipeline.prompts.table import read_table
from nanobanana_pipeline.prompts.validation import check_prompts, fingerprint
from nanobanana_pipeline.storage import ObjectStore, s3_client

__all__ = ["check"]

SHOWN = 50
NOT_ALL_GOOD = 1


def check(
    file: Annotated[str, typer.Argument(help="CSV, TSV, JSONL or Parquet; a path or s3:// URL.")],
) -> None:
    """Say which rows of a table would be quarantined, and why. Touches nothing."""
    store = ObjectStore(s3_client(), "") if file.startswith("s3://") else None
    checked = check_prompts(read_table(file, store))
    console = make_console()
    if len(checked.quarantine):
        bad = checked.quarantine["row"].nunique()
        console.print(table_of(checked.quarantine.head(SHOWN), f"{bad:,} rows in quarantine"))
        if len(checked.quarantine) > SHOWN:
            console.print(f"… and {len(checked.quarantine) - SHOWN:,} more faults")
    console.print(f"{len(checked.prompts):,} good rows in {file}")
    print_carried(console, checked)
    if len(checked.prompts):
        console.print(f"fingerprint {fingerprint(checked.prompts)}", highlight=False)
    if len(checked.quarantine):
        raise typer.Exit(NOT_ALL_GOOD)
