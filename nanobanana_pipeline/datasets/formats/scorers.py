"""Folders as scorers of generated pictures read them; made when they are pulled, never stored."""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from PIL import Image

__all__ = ["PROMPTS_TSV", "ScoredPicture", "ScorerFile", "as_png", "geneval", "partiprompts"]

PROMPTS_TSV: Final = "prompts.tsv"
PARTI: Final = ("Prompt", "Category", "Challenge", "Note")


@dataclass(frozen=True)
class ScoredPicture:
    """A picture of the folder: of a row, and whether it must be a PNG."""

    path: str
    row: dict[str, Any]
    png: bool = False


@dataclass(frozen=True)
class ScorerFile:
    """A small file of the folder."""

    path: str
    body: bytes


def geneval(
    rows: Iterable[dict[str, Any]], attributes: Sequence[str]
) -> Iterator[ScoredPicture | ScorerFile]:
    """``<n:05d>/metadata.jsonl`` with the prompt, and its pictures in ``samples/<k:04d>.png``.

    Format: https://github.com/djghosh13/geneval, whose scorer reads no other name or extension;
    so a picture of another format is made a PNG, pixel by pixel the same.

    Args:
        rows: the release's, in order; a prompt's rows are numbered as they come.
        attributes: columns of the prompt table; lists and mappings in JSON become such again.
    """
    prompts: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        prompts.setdefault((row["prompt_set"], row["prompt_id"]), []).append(row)
    for number, drawn in enumerate(prompts.values()):
        said = {name: _value(drawn[0][name]) for name in attributes if drawn[0][name] is not None}
        line = json.dumps({**said, "prompt": drawn[0]["prompt"]}, ensure_ascii=False)
        yield ScorerFile(f"{number:05d}/metadata.jsonl", f"{line}\n".encode())
        for sample, row in enumerate(drawn):
            yield ScoredPicture(
                f"{number:05d}/samples/{sample:04d}.png", row, png=row["format"] != "png"
            )


def partiprompts(
    rows: Iterable[dict[str, Any]], attributes: Sequence[str]
) -> Iterator[ScoredPicture | ScorerFile]:
    """Pictures ``<n:05d>.<png|jpg|webp>``, and a table of their prompts, a row a picture.

    The table begins with the columns of https://github.com/google-research/parti's
    PartiPrompts.tsv, blank where the prompt table has none; then come the picture's ``file_name``
    and what else there is.

    Args:
        rows: the release's, in order.
        attributes: columns of the prompt table; those of PartiPrompts in any case of letters.
    """
    known = {name.casefold(): name for name in reversed(attributes)}
    parti = [known.get(name.casefold()) for name in PARTI[1:]]
    others = [name for name in attributes if name not in parti]
    table = io.StringIO()
    writer = csv.writer(table, delimiter="\t", lineterminator="\n")
    writer.writerow([*PARTI, "file_name", *others, "prompt_id", "seed", "sample"])
    for number, row in enumerate(rows):
        path = f"{number:05d}.{row['format']}"
        first = [row["prompt"], *(name and row[name] for name in parti)]
        rest = [row[name] for name in (*others, "prompt_id", "seed", "sample")]
        writer.writerow([*first, path, *rest])
        yield ScoredPicture(path, row)
    yield ScorerFile(PROMPTS_TSV, table.getvalue().encode())


def as_png(image: bytes) -> bytes:
    """The same pixels as a PNG."""
    body = io.BytesIO()
    with Image.open(io.BytesIO(image)) as opened:
        opened.save(body, "PNG")
    return body.getvalue()


def _value(value: object) -> object:
    if isinstance(value, str) and value[:1] in {"[", "{"}:
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value
