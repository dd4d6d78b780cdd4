"""Giving attribute columns their types back, the same whatever format they came from."""

import math
import re
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["typed_attribute"]

INTEGER: Final = r"^(0|-?[1-9][0-9]{0,18})$"
FLOAT = re.compile(r"-?[0-9]+(\.[0-9]+)?(e[+-][0-9]+)?")


def typed_attribute(texts: Any) -> Any:  # noqa: ANN401 - pyarrow is untyped
    """Type a column by what stands in it, if no cell would read differently afterwards.

    Returns:
        ``bool`` if all cells are true or false in any case, ``int64`` or ``double`` if all are
        numbers written as Python writes them, else `texts` (so ``007`` and ``1.10`` stay text).
    """
    lowered = pc.utf8_lower(texts)
    if _all(pc.is_in(lowered, pa.array(["true", "false"], texts.type)), texts):
        return pc.equal(lowered, "true")
    if _all(pc.match_substring_regex(texts, INTEGER), texts):
        try:
            return texts.cast(pa.int64())
        except pa.ArrowInvalid:  # beyond 64 bits
            return texts
    chunks = []
    for chunk in texts.chunks:
        numbers = []
        for text in chunk.to_pylist():
            number = None if text is None else _float(text)
            if text is not None and number is None:
                return texts
            numbers.append(number)
        chunks.append(pa.array(numbers, pa.float64()))
    return pa.chunked_array(chunks, pa.float64())


def _all(matches: Any, texts: Any) -> bool:  # noqa: ANN401
    # Null cells match nothing and are no objection.
    return bool(pc.all(pc.or_(pc.fill_null(matches, False), pc.is_null(texts))).as_py())  # noqa: FBT003 - pyarrow's signature


def _float(text: str) -> float | None:
    if not FLOAT.fullmatch(text):
        return None
    number = float(text)
    return number if math.isfinite(number) and repr(number) == text else None
