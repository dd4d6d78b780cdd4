"""GenEval's folder: ``<n:05d>/metadata.jsonl`` and the prompt's images ``samples/<k:04d>.png``.

Format: https://github.com/djghosh13/geneval, whose scorer reads no other name or extension; so an
image of another format is made a PNG.
"""

import json
from collections.abc import Iterator
from typing import Any

from nanobanana_pipeline.datasets.layouts.base import ImageFile, LayoutFile, PulledRelease, TextFile

__all__ = ["lay_out_geneval"]


def lay_out_geneval(pulled: PulledRelease) -> Iterator[LayoutFile]:
    """A folder a prompt; its metadata hold the attributes, of which JSON is parsed again."""
    prompts: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in pulled.rows():
        prompts.setdefault((row["prompt_set"], row["prompt_id"]), []).append(row)
    for number, rows in enumerate(prompts.values()):
        first = rows[0]
        given = [name for name in pulled.attributes if first[name] is not None]
        metadata = {name: _value(first[name]) for name in given} | {"prompt": first["prompt"]}
        line = json.dumps(metadata, ensure_ascii=False)
        yield TextFile(f"{number:05d}/metadata.jsonl", f"{line}\n".encode())
        for sample, row in enumerate(rows):
            path = f"{number:05d}/samples/{sample:04d}.png"
            yield ImageFile(path, row, as_png=row["format"] != "png")


def _value(value: object) -> object:
    if isinstance(value, str) and value[:1] in {"[", "{"}:
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value
