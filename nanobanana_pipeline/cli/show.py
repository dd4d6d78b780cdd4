"""What the terminal shows."""

import difflib
from collections.abc import Iterable, Mapping, Sequence

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table

from nanobanana_pipeline.cli.terminal import print_plain
from nanobanana_pipeline.generation.budget.counters import partition_scope
from nanobanana_pipeline.generation.manifest.manifest import CurrentManifest
from nanobanana_pipeline.money import Budget
from nanobanana_pipeline.prompts.checked_prompts import (
    REFERENCE,
    CheckedPrompts,
    attributes_of,
    long_prompts_warning,
)
from nanobanana_pipeline.provider.account import PROVIDER
from nanobanana_pipeline.storage import ObjectStore
from nanobanana_pipeline.wording import size_text

__all__ = ["partitions_table", "print_carried", "print_long", "table_of"]


def print_carried(console: Console, checked: CheckedPrompts) -> None:
    """Name the columns that are not sent: a misspelt field costs money where nobody sees it."""
    sent = (*PROVIDER.request_model.table_fields(), REFERENCE)
    for name in attributes_of(checked.prompts.columns):
        near = difflib.get_close_matches(name, sent, n=1, cutoff=0.8)
        hint = f"; did you mean {near[0]}?" if near else ""
        console.print(f"column {name} is carried along, not sent{hint}")


def print_long(console: Console, checked: CheckedPrompts) -> None:
    """Name prompts of which nobody knows whether the provider reads them to their end."""
    if told := long_prompts_warning(checked.prompts):
        print_plain(console, told, style="yellow")


def table_of(rows: pd.DataFrame | Sequence[Mapping[str, object]], title: str) -> Table:
    """Any small table, from a frame or from rows by column."""
    frame = pd.DataFrame(rows)
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    for name in frame.columns:
        table.add_column(str(name), overflow="fold")
    for row in frame.itertuples(index=False):
        table.add_row(*("" if pd.isna(value) else str(value) for value in row))
    return table


def partitions_table(manifests: Iterable[CurrentManifest], store: ObjectStore) -> Table:
    """What was made: a row a partition, with what was ever counted as spent on it."""
    table = Table(title=f"in {store.uri('')}", box=box.SIMPLE_HEAD, title_justify="left")
    for name in ("prompt set", "seed", "cells", "images", "size", "cost"):
        figures = name in {"seed", "images", "size"}
        table.add_column(name, justify="right" if figures else "left", overflow="fold")
    for current in manifests:
        spent = partition_scope(store, Budget(), current.prompt_set, current.seed).read()
        table.add_row(
            current.prompt_set,
            str(current.seed),
            ", ".join(f"{n:,} {state}" for state, n in current.cells.items()),
            f"{current.images:,}",
            size_text(current.size),
            spent.cost_text,
        )
    return table
