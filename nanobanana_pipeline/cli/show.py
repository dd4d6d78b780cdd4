"""Tables on the terminal."""

from collections.abc import Iterable

import pandas as pd
from rich import box
from rich.markup import escape
from rich.table import Table

from nanobanana_pipeline.generation.manifest import CurrentManifest

__all__ = ["partitions_table", "size_text", "table_of"]


def table_of(frame: pd.DataFrame, title: str) -> Table:
    """Any small table; text from outside is shown to the letter."""
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    for name in frame.columns:
        table.add_column(str(name), overflow="fold")
    for row in frame.itertuples(index=False):
        table.add_row(*(escape("" if pd.isna(value) else str(value)) for value in row))
    return table


def partitions_table(manifests: Iterable[CurrentManifest], base_uri: str) -> Table:
    """What was made: a row a partition."""
    table = Table(title=f"in {base_uri}", box=box.SIMPLE_HEAD, title_justify="left")
    for name in ("prompt set", "seed", "cells", "images", "size", "cost", "manifest"):
        table.add_column(name, justify="right" if name in {"seed", "images", "size"} else "left")
    for current in manifests:
        table.add_row(
            current.prompt_set,
            str(current.seed),
            ", ".join(f"{n:,} {state}" for state, n in current.cells.items()),
            f"{current.images:,}",
            size_text(current.size),
            "unknown",
            current.manifest,
        )
    return table


def size_text(size: int) -> str:
    """Bytes for people."""
    return f"{size / 1e6:,.1f} MB"
