"""Pictures and plots inside the metadata of Dagster's pages.

Dagster shows a markdown picture at once if the whole markdown has fewer than 1,000 characters, and
else behind a link. It keeps events for ever, so what stands in them must not go stale: an address
is one of a lasting object, never a presigned one.
"""

import base64
import html
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import dagster as dg

from nanobanana_pipeline.images.contact_sheet import strip
from nanobanana_pipeline.wording import shortened

__all__ = ["STRIP_PICTURES", "plot", "shown_picture"]

STRIP_PICTURES: Final = 4
MARKDOWN_CHARACTERS: Final = 999
STRIP_BYTES: Final = 700
"""As base64 in markdown it stays under 1,000 characters."""
WIDTH: Final = 420
BARS_FROM: Final = 190
STEP: Final = 18
LABEL_CHARACTERS: Final = 22


def shown_picture(
    words: str, address: str | None, small: Callable[[], Sequence[bytes]]
) -> dg.MetadataValue:
    """Show a stored picture; without its address, as many encoded small ones as fit in the event.

    `words` are the picture's alternative text.
    """
    if address is not None:
        return _image(words, address)
    webp = strip(small(), STRIP_BYTES)
    if webp is None:
        return dg.MetadataValue.text("none")
    return _image(words, f"data:image/webp;base64,{base64.b64encode(webp).decode()}")


def plot(words: str, counts: Mapping[str, int]) -> dg.MetadataValue:
    """Draw counts as bars, the largest first; the smallest share one bar if they do not fit."""
    sorted_ = Counter(counts).most_common()
    for kept in range(len(sorted_), 0, -1):
        bars = sorted_[:kept]
        if rest := sorted_[kept:]:
            bars = [*bars, (f"{len(rest)} others", sum(count for _, count in rest))]
        drawn = base64.b64encode(_bars(bars).encode()).decode()
        shown = _image(words, f"data:image/svg+xml;base64,{drawn}")
        if len(str(shown.value)) <= MARKDOWN_CHARACTERS:
            return shown
    return dg.MetadataValue.text("none")


def _image(words: str, address: str) -> dg.MarkdownMetadataValue:
    alt = words.replace("\\", "").replace("[", "(").replace("]", ")")
    return dg.MetadataValue.md(f"![{alt}]({address})")


def _bars(bars: Sequence[tuple[str, int]]) -> str:
    """Terse SVG: a path for all bars, then a line of text each. Readable on light and dark."""
    most = max(1, *(count for _, count in bars))
    room = WIDTH - BARS_FROM
    # Something is drawn for one of a million, nothing for none.
    widths = [max(room * count // most, min(count, 1)) for _, count in bars]
    path = "".join(
        f"M{BARS_FROM} {at * STEP + 3}h{width}v12h-{width}" for at, width in enumerate(widths)
    )
    labels = [html.escape(shortened(text, LABEL_CHARACTERS), quote=False) for text, _ in bars]
    lines = "".join(
        f"<text x='{BARS_FROM - 6}' y='{at * STEP + 13}'>{label} {count:,}</text>"
        for at, (label, (_, count)) in enumerate(zip(labels, bars, strict=True))
    )
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' width='{WIDTH}' height='{len(bars) * STEP}' "
        f"fill='#888' font-family='sans-serif' font-size='12' text-anchor='end'>"
        f"<path fill='#c99a1e' d='{path}'/>{lines}</svg>"
    )
