"""Validated prompts (`CheckedPrompts`) and the fingerprint of their content.

Light to import: pandas is loaded where a table is made of them, and not before.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from nanobanana_pipeline.provider.account import PROVIDER
from nanobanana_pipeline.wording import counted

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "REFERENCE",
    "REFERENCE_HASHES",
    "CheckedPrompts",
    "attributes_of",
    "fingerprint",
    "long_prompts_warning",
    "prompts_frame",
    "stable_json",
]

REFERENCE: Final = "ref_image"
"""The column that names reference pictures."""
REFERENCE_HASHES: Final = "ref_sha256"
"""The column that names their hashes, joined by one space."""
FINGERPRINT_SCHEMA: Final = 1
FINGERPRINT_ROWS: Final = 65_536
"""Rows hashed at a time. Part of the fingerprint's definition: never change it alone."""
LONG: Final = 4_000
"""Characters of a prompt that are many in any table: the provider names no limit."""
LONG_HERE: Final = 1_000
"""Characters that are many where half of the table's prompts have at most a tenth of them."""
TIMES_THE_REST: Final = 10
LONG_NAMED: Final = 5
_LOGICAL_TYPES: Final = {"Int64": "int64", "Float64": "float64", "boolean": "bool", "str": "string"}


@dataclass(frozen=True)
class CheckedPrompts:
    """A validated prompt table: its good rows and the faults of the others.

    Attributes:
        source: path or URL of the table.
        prompts: the good rows in the order of their ids: ``prompt_id`` and ``prompt`` (str), the
            request fields that some row gives (Int64, Float64 or str; missing where the default
            holds), ``ref_image`` as written and ``ref_sha256`` (str: the hashes of the reference
            pictures, joined by one space) if some row has references, then the attributes by name
            (Int64, Float64, boolean or str).
        quarantine: what is wrong with the others, one row a fault: ``row`` (int64, counted from 1),
            ``column`` ("" for the row as a whole), ``value`` (shortened), ``reason`` (str).
    """

    source: str
    prompts: "pd.DataFrame"
    quarantine: "pd.DataFrame"


def attributes_of(columns: Iterable[str]) -> list[str]:
    """The columns that are kept and not sent; a misspelt field is among them."""
    known = {"prompt_id", *PROVIDER.request_model.table_fields(), REFERENCE, REFERENCE_HASHES}
    return [str(name) for name in columns if name not in known]


def long_prompts_warning(prompts: "pd.DataFrame") -> str | None:
    """A warning of prompts that are far longer than usual or than the others; None if none is.

    Args:
        prompts: as `check_prompts` gives it.
    """
    length = prompts["prompt"].str.len()
    many = min(LONG, max(LONG_HERE, TIMES_THE_REST * float(length.median() if len(length) else 0)))
    long = prompts[["prompt_id"]].assign(length=length)[length > many]
    long = long.sort_values("length", ascending=False, kind="stable")
    if long.empty:
        return None
    rows = zip(long["prompt_id"].head(LONG_NAMED), long["length"].head(LONG_NAMED), strict=True)
    named = ", ".join(f"{prompt_id} ({size:,} characters)" for prompt_id, size in rows)
    return (
        f"{counted(len(long), 'prompt', 'is')} very long: {named}"
        f"{', …' if len(long) > LONG_NAMED else ''}. The provider names no limit, and may refuse "
        "them or not read them to their end: try one first"
    )


def fingerprint(prompts: "pd.DataFrame") -> str:
    """SHA-256, in hexadecimal, of the names, types and values of checked prompts.

    It hashes JSON, not file bytes, so no version of pandas or pyarrow changes it.

    Args:
        prompts: as `check_prompts` or `prompt_set.load` gives it.
    """
    types = [[name, _LOGICAL_TYPES[str(prompts[name].dtype)]] for name in prompts.columns]
    digest = hashlib.sha256(stable_json({"schema": FINGERPRINT_SCHEMA, "columns": types}))
    for start in range(0, len(prompts), FINGERPRINT_ROWS):
        batch = prompts.iloc[start : start + FINGERPRINT_ROWS]
        values = [pa.array(batch[name]).to_pylist() for name in batch.columns]
        digest.update(stable_json(values))
    return digest.hexdigest()


def prompts_frame(table: Any) -> "pd.DataFrame":  # noqa: ANN401 - pyarrow is untyped
    """A `pyarrow.Table` as pandas, with nullable types, so that integers stay integers."""
    # Takes longer to import than many commands take that make no table.
    import numpy as np  # noqa: PLC0415
    import pandas as pd  # noqa: PLC0415

    text = pd.StringDtype(na_value=np.nan)
    nullable: dict[Any, Any] = {
        pa.int64(): pd.Int64Dtype(),
        pa.float64(): pd.Float64Dtype(),
        pa.bool_(): pd.BooleanDtype(),
        pa.string(): text,
        pa.large_string(): text,
    }
    frame: pd.DataFrame = table.to_pandas(types_mapper=nullable.get, ignore_metadata=True)
    return frame


def stable_json(value: object) -> bytes:
    """Equal values as equal bytes."""
    return json.dumps(
        value, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False
    ).encode()
