"""Words that people read."""

from typing import Final

__all__ = ["counted", "shortened", "size_text", "time_text"]

PLURAL: Final = {"is": "are", "was": "were", "has": "have"}


def counted(count: int, noun: str, verb: str = "") -> str:
    """So many of a thing, and what it does: "1 row", "1,234 rows", "1 row is", "2 rows are".

    The noun is in the singular, and takes an s in the plural; the verb is "is", "was", "has" or "".
    """
    if count == 1:
        return f"{count:,} {noun} {verb}".rstrip()
    return f"{count:,} {noun}s {PLURAL[verb] if verb else ''}".rstrip()


def shortened(text: str, most: int = 60) -> str:
    """The beginning of a text, at most so many letters, in one line with single spaces."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


def size_text(size: float) -> str:
    """Bytes for people: "1,234.5 MB"."""
    return f"{size / 1e6:,.1f} MB"


def time_text(seconds: float) -> str:
    """A duration for people: "45 s", "90 min", "5 h 12 min", "72 h"."""
    hours, minutes = divmod(int(seconds // 60), 60)
    if seconds < 2 * 60:
        return f"{seconds:.0f} s"
    if hours < 2:  # noqa: PLR2004 - two of each unit are told in the smaller one
        return f"{60 * hours + minutes} min"
    return f"{hours} h {minutes} min" if hours < 2 * 24 else f"{hours:,} h"
