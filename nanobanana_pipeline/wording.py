"""Words that people read."""

from typing import Final

__all__ = ["counted", "shortened"]


PLURAL: Final = {"is": "are", "was": "were", "has": "have"}


def counted(count: int, noun: str, verb: str = "") -> str:
    """So many of a thing, and what it does: "1 row", "1,234 rows", "1 row is", "2 rows are".

    Args:
        count: 0 or more.
        noun: in the singular, of those whose plural takes an s.
        verb: "is", "was" or "has"; "" for none.
    """
    if count == 1:
        return f"{count:,} {noun} {verb}".rstrip()
    return f"{count:,} {noun}s {PLURAL[verb] if verb else ''}".rstrip()


def shortened(text: str, most: int = 60) -> str:
    """The beginning of a text, in one line.

    Args:
        text: anything; each stretch of white space becomes one space.
        most: letters.
    """
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 1]}…"
