"""Words that people read."""

__all__ = ["counted", "shortened"]


def counted(count: int, noun: str) -> str:
    """So many of a thing: "1 row", "1,234 rows".

    Args:
        count: 0 or more.
        noun: in the singular, of those whose plural takes an s.
    """
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def shortened(text: str, most: int = 60) -> str:
    """The beginning of a text, in one line.

    Args:
        text: anything; each stretch of white space becomes one space.
        most: letters.
    """
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 1]}…"
