"""The gallery: one HTML file in which a release can be looked at, wherever it lies.

The file holds all it needs, thumbnails too, and its Content-Security-Policy lets it ask nobody for
anything. What comes from outside, such as prompts, stands in a block of JSON and reaches the page
as text alone. The same rows, thumbnails and sources give the same bytes.
"""

import base64
import hashlib
import html
import json
from collections.abc import Iterable, Mapping
from importlib.resources import files
from string import Template
from typing import Any, Final

import pyarrow as pa

from nanobanana_pipeline.datasets.release import Release
from nanobanana_pipeline.datasets.release_rows import attributes, rows_of

__all__ = ["GALLERY", "gallery", "shown_places"]

GALLERY: Final = "gallery.html"
MOST_ROWS: Final = 5_000
LONGEST_TEXT: Final = 4_000
EXACT_IN_BROWSERS: Final = 2**53
"""Whole numbers above it lose digits in JavaScript, and some providers' seeds are above."""
OUT_OF_SCRIPT: Final = str.maketrans(
    {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
)


def shown_places(table: pa.Table, most: int = MOST_ROWS) -> list[int]:
    """Which rows the page shows: all, or `most` of them, as many of each split as it has.

    Gives places in the table, in its order; always the same for the same rows.
    """
    if len(table) <= most:
        return list(range(len(table)))
    # A row_id begins with a request key, which is a hash: its order is as good as any draw.
    rows = table.select(["row_id", "split"]).to_pandas().sort_values("row_id")
    rank = rows.groupby("split").cumcount()
    drawn = rank.sort_values(kind="stable").index[:most]
    return sorted(int(place) for place in drawn)


def gallery(
    release: Release,
    shown: pa.Table,
    thumbnails: Mapping[str, bytes],
    sources: Iterable[Mapping[str, Any]],
    uri: str,
) -> bytes:
    """Write the page: HTML in UTF-8.

    Args:
        release: what is shown.
        shown: its rows with their keys, at most `MOST_ROWS`.
        thumbnails: a WebP by the SHA-256 of its picture; one that is missing is shown as such.
        sources: of each partition that rows come from: prompt_set, seed, fingerprint, manifest
            and parameters.
        uri: of the bucket's keys: ends with a slash.
    """
    style, script = _part("gallery.css"), _part("gallery.js")
    recipe = release.recipe
    about = {
        "uri": uri,
        "attributes": attributes(shown.column_names),
        "sources": list(sources),
        "columns": shown.column_names,
    }
    page = Template(_part("gallery.html")).substitute(
        title=html.escape(f"{release.name} {release.version}"),
        name=html.escape(release.name),
        version=html.escape(release.version),
        description=html.escape(str(recipe["description"])),
        licence=html.escape(str(recipe["licence"])),
        fingerprint=html.escape(release.fingerprint),
        code_version=html.escape(release.code_version),
        follows=html.escape(f" · continues {release.parent}" if release.parent else ""),
        pictures=f"{release.rows:,}",
        notice=_notice(release.rows, len(shown)),
        style=style,
        script=script,
        style_hash=_csp_hash(style),
        script_hash=_csp_hash(script),
        about=_json(about),
        rows=",\n".join(_json(list(map(_bounded, row.values()))) for row in rows_of(shown)),
        thumbnails=",\n".join(
            f"{_json(sha256)}:{_json(base64.b64encode(webp).decode())}"
            for sha256, webp in sorted(thumbnails.items())
        ),
    )
    return page.encode()


def _part(name: str) -> str:
    return (files(__package__) / name).read_text("utf-8")


def _csp_hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _notice(rows: int, shown: int) -> str:
    if shown == rows:
        return ""
    return (
        f'<p class="notice">This page shows {shown:,} of {rows:,} pictures, chosen by hash, as '
        "many of each split as there are. The manifest lists all.</p>"
    )


def _bounded(value: Any) -> Any:  # noqa: ANN401 - any cell
    if isinstance(value, int) and abs(value) > EXACT_IN_BROWSERS:
        return str(value)
    if isinstance(value, str) and len(value) > LONGEST_TEXT:
        return f"{value[:LONGEST_TEXT]}…"
    return value


def _json(value: Any) -> str:  # noqa: ANN401 - any JSON
    """JSON that nothing in it can break out of: not its element, nor a comment."""
    said = json.dumps(
        value, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=str
    )
    return said.translate(OUT_OF_SCRIPT)
