"""Words that people read."""

__all__ = ["counted"]


def counted(count: int, noun: str) -> str:
    """So many of a thing: "1 row", "1,234 rows".

    Args:
        count: 0 or more.
        noun: in the singular, of those whose plural takes an s.
    """
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
