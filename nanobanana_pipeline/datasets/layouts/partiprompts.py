"""PartiPrompts: images ``<n:05d>.<png|jpg|webp>`` and a table of their prompts, a row an image.

The table begins with the columns of https://github.com/google-research/parti's PartiPrompts.tsv,
blank where the prompt table has none; the image's ``file_name`` and all other columns follow.
"""

import csv
import io
from collections.abc import Iterator
from typing import Final

from nanobanana_pipeline.datasets.layouts.base import ImageFile, LayoutFile, PulledRelease, TextFile

__all__ = ["lay_out_partiprompts"]

PROMPTS_TSV: Final = "prompts.tsv"
PARTI: Final = ("Prompt", "Category", "Challenge", "Note")


def lay_out_partiprompts(pulled: PulledRelease) -> Iterator[LayoutFile]:
    """The images beside one TSV; the prompt table may spell Parti's columns in any case."""
    known = {name.casefold(): name for name in reversed(pulled.attributes)}
    parti = [known.get(name.casefold()) for name in PARTI[1:]]
    others = [name for name in pulled.attributes if name not in parti]
    table = io.StringIO()
    writer = csv.writer(table, delimiter="\t", lineterminator="\n")
    writer.writerow([*PARTI, "file_name", *others, "prompt_id", "seed", "sample"])
    for number, row in enumerate(pulled.rows()):
        path = f"{number:05d}.{row['format']}"
        first = [row["prompt"], *(name and row[name] for name in parti)]
        rest = [row[name] for name in (*others, "prompt_id", "seed", "sample")]
        writer.writerow([*first, path, *rest])
        yield ImageFile(path, row)
    yield TextFile(PROMPTS_TSV, table.getvalue().encode())
