"""Typed values as the text that a CSV file would hold."""

import json
import math
from collections.abc import Sequence
from datetime import date, time
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from nanobanana_pipeline.prompts.readers.base import TEXT

__all__ = ["TEXT_FIELDS", "empty_is_missing", "text_column", "value_text"]

TEXT_FIELDS: Final = frozenset({"prompt", "negative_prompt", "webhook", "track_id"})
"""Request fields of which a number would be refused, however well it reads as text."""


def value_text(value: object) -> str | None:
    """A value as CSV would hold it: ``5``, ``5.0``, ``true``, ISO dates, sorted compact JSON.

    None and NaN, which is how pandas writes a missing number, give None.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    match value:
        case bool():
            text = "true" if value else "false"
        case date() | time():
            text = value.isoformat()
        case bytes():
            text = value.decode("utf-8", "backslashreplace")
        case dict() | list():
            text = json.dumps(
                value, ensure_ascii=False, sort_keys=True, separators=(",", ":"), default=value_text
            )
        case _:
            text = str(value)
    return text


def empty_is_missing(texts: Any) -> Any:  # noqa: ANN401 - pyarrow is untyped
    """A `TEXT` array with null for every empty cell: CSV cannot tell the two apart."""
    return pc.if_else(pc.equal(texts, ""), pa.scalar(None, TEXT), texts)


def text_column(values: Sequence[str | None]) -> Any:  # noqa: ANN401 - pyarrow is untyped
    """A column of a `Chunk`; empty cells are null."""
    return empty_is_missing(pa.array(values, TEXT))
