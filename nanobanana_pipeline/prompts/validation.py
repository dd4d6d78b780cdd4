"""Validates prompt tables: separates good rows from faulty ones, and gives every row an id.

Every distinct value of a chunk is validated once by the request model's own field, so a table is
refused exactly where a request would be.
"""

import hashlib
import math
import re
import typing
from collections.abc import Callable, Iterable
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import TypeAdapter, ValidationError

from nanobanana_pipeline.prompts.checked_prompts import (
    REFERENCE,
    REFERENCE_HASHES,
    CheckedPrompts,
    stable_json,
)
from nanobanana_pipeline.prompts.readers.base import CHUNK_ROWS, TEXT, RowFault, bounded_value
from nanobanana_pipeline.prompts.references import References, without_secrets
from nanobanana_pipeline.prompts.table import PromptTable
from nanobanana_pipeline.provider.account import PROVIDER
from nanobanana_pipeline.storage.versioned import as_frame

__all__ = ["check_prompts"]

ID_MAX: Final = 200
ID_DIGITS: Final = 16
INTEGER: Final = r"^(0|-?[1-9][0-9]{0,18})$"

_REQUEST: Final = PROVIDER.request_model
_FIELD_TYPES: Final = {
    name: TypeAdapter[Any](hint)
    for name, hint in typing.get_type_hints(_REQUEST, include_extras=True).items()
    if name in _REQUEST.table_fields()
}
_NUMBERS: Final[dict[Any, Any]] = {int: pa.int64(), float: pa.float64()}
FLOAT = re.compile(r"-?[0-9]+(\.[0-9]+)?(e[+-][0-9]+)?")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")

RowNumbers = npt.NDArray[np.int64]
_Column: TypeAlias = "pa.ChunkedArray"


def check_prompts(table: PromptTable, references: References | None = None) -> CheckedPrompts:
    """Validate a prompt table, normalise its values and give every row an id.

    A row with several faults has an entry for each. Of rows with the same id the first stays. A row
    with references that names no size gets that of its first one, as near as the provider allows.

    Raises:
        ValueError: the table has references, and `references` is None.
    """
    rows = table.rows
    numbers: RowNumbers = table.numbers.to_numpy()
    faults = _Faults(table.broken)
    id_column = next((name for name in ("prompt_id", "id") if name in rows.column_names), None)
    fields = [name for name in _REQUEST.table_fields() if name in rows.column_names]

    columns = {name: _validated_column(name, rows[name], numbers, faults) for name in fields}
    if REFERENCE in rows.column_names:
        if references is None:
            raise ValueError(f"{table.source} names references: pass References to read them")
        columns |= _reference_columns(table, references, columns, faults)
    if id_column:
        columns["prompt_id"] = _validated_column(id_column, rows[id_column], numbers, faults)
        ids = columns["prompt_id"]
        faults.add_repeats(id_column, ids, ids, numbers, "duplicate of row {}")
    else:
        # A reference counts by its bytes, whatever it is called.
        deciding = {name: column for name, column in columns.items() if name != REFERENCE}
        ids = _content_ids(pa.table(deciding), faults.spared(numbers))
        repeat = "same prompt and parameters as row {}; add an id column to keep both"
        faults.add_repeats("prompt", columns["prompt"], ids, numbers, repeat)
        columns["prompt_id"] = ids
    good = np.flatnonzero(faults.spared(numbers))
    ordered = good[pc.sort_indices(columns["prompt_id"].take(good)).to_numpy()]
    attributes = {
        name: rows[name]
        for name in sorted(set(rows.column_names) - {id_column, REFERENCE, *fields})
    }
    return CheckedPrompts(table.source, _selected(columns, attributes, ordered), faults.frame())


class _Faults:
    """The faults of rows; the first fault of a cell counts."""

    def __init__(self, broken: Iterable[RowFault]) -> None:
        known = pd.DataFrame(list(broken), columns=list(RowFault._fields))
        self._parts = [known.astype({"row": np.int64})]

    def add(self, column: str, rows: RowNumbers, values: Any, reasons: Iterable[str]) -> None:  # noqa: ANN401
        """Add a fault for each of `rows`; `values` is an Arrow array of their values."""
        if len(rows):
            texts = [bounded_value(value or "") for value in values.to_pylist()]
            part = {"row": rows, "column": column, "value": texts, "reason": list(reasons)}
            self._parts.append(pd.DataFrame(part))

    def add_repeats(
        self, column: str, values: _Column, ids: _Column, numbers: RowNumbers, reason: str
    ) -> None:
        """Add a fault for all rows but the first of those with equal ids; null equals nothing."""
        encoded = ids.combine_chunks().dictionary_encode()
        codes = encoded.indices.fill_null(-1).to_numpy()
        known = codes >= 0
        first_of = np.empty(len(encoded.dictionary), np.int64)
        # Of several values for one place numpy keeps the last one assigned: here, the first row.
        first_of[codes[known][::-1]] = numbers[known][::-1]
        first = numbers.copy()
        first[known] = first_of[codes[known]]
        later = np.flatnonzero(first != numbers)
        reasons = (reason.format(row) for row in first[later].tolist())
        self.add(column, numbers[later], values.take(later), reasons)

    def spared(self, numbers: RowNumbers) -> npt.NDArray[np.bool_]:
        """Which of these rows no fault names."""
        return ~np.isin(numbers, np.concatenate([part["row"].to_numpy() for part in self._parts]))

    def frame(self) -> pd.DataFrame:
        """All faults in the order of their rows, typed as `CheckedPrompts.quarantine` says."""
        parts = [part for part in self._parts if len(part)] or self._parts
        types = {"row": "int64", "column": "str", "value": "str", "reason": "str"}
        faults = pd.concat(parts, ignore_index=True).astype(types)
        faults = faults.drop_duplicates(["row", "column"])
        return faults.sort_values("row", kind="stable", ignore_index=True)


def _validated_column(name: str, column: Any, numbers: RowNumbers, faults: _Faults) -> Any:  # noqa: ANN401
    """A column as a request would hold it; null where nothing stands or a fault was found."""
    info = _REQUEST.model_fields.get(name)
    kind = _NUMBERS.get(info.annotation, TEXT) if info else TEXT
    required = name in {"prompt", "prompt_id", "id"}
    judge = _validator(name)
    parts, start = [], 0
    for chunk in column.chunks:
        encoded = (chunk.fill_null("") if required else chunk).dictionary_encode()
        texts = encoded.dictionary.to_pylist()
        values, reasons = [], []
        for text in texts:
            try:
                value, reason = judge(text), None
            except ValueError as error:
                value, reason = None, _reason(error)
            values.append(value)
            reasons.append(reason)
        # Text that passes stays as it is, and is not copied.
        same = kind == TEXT and values == texts
        parts.append(chunk if same else pa.array(values, kind).take(encoded.indices))
        why = pa.array(reasons, TEXT).take(encoded.indices)
        bad = np.flatnonzero(why.is_valid())
        faults.add(name, numbers[start + bad], chunk.take(bad), why.take(bad).to_pylist())
        start += len(chunk)
    return pa.chunked_array(parts, kind)


def _reference_columns(
    table: PromptTable, references: References, columns: dict[str, Any], faults: _Faults
) -> dict[str, Any]:
    """The columns that references decide: names, hashes, and sizes where none is given."""
    cells = table.rows[REFERENCE].combine_chunks()
    encoded = cells.dictionary_encode()
    texts = encoded.dictionary.to_pylist()
    resolved = references.resolve(table.source, texts)

    def spread(values: Iterable[object], kind: Any) -> Any:  # noqa: ANN401 - pyarrow is untyped
        return pa.array(list(values), kind).take(encoded.indices)

    why = spread((each.fault for each in resolved), TEXT)
    bad = np.flatnonzero(why.is_valid())
    shown = spread(map(without_secrets, texts), TEXT)
    faults.add(REFERENCE, table.numbers.to_numpy()[bad], shown.take(bad), why.take(bad).to_pylist())
    hashes = spread((each.sha256 for each in resolved), TEXT)
    sizes = [
        _REQUEST.fitted_size(each.width, each.height)
        if each.width and each.height
        else (None, None)
        for each in resolved
    ]
    none = pa.nulls(len(cells), pa.int64())
    own = {side: columns.get(side, none) for side in ("width", "height")}
    unsized = pc.and_(pc.is_null(own["width"]), pc.is_null(own["height"]))
    return {
        side: pc.if_else(unsized, spread(lent, pa.int64()), own[side])
        for side, lent in zip(own, zip(*sizes, strict=True), strict=False)
    } | {REFERENCE: pc.if_else(hashes.is_valid(), cells, None), REFERENCE_HASHES: hashes}


def _validator(name: str) -> Callable[[str], Any]:
    """The function that gives a cell's value, or raises ValueError with the reason."""
    if name == "seed":
        return _valid_seed
    return _FIELD_TYPES[name].validate_python if name in _FIELD_TYPES else _valid_id


def _valid_seed(text: str) -> int:
    seed: int = _FIELD_TYPES["seed"].validate_python(text)
    if seed == 0:
        raise ValueError("0 asks the provider for a random seed: give 1 or more, or leave it empty")
    return seed


def _valid_id(text: str) -> str:
    if not text.strip():
        raise ValueError("blank")
    if len(text) > ID_MAX:
        raise ValueError(f"is {len(text)} characters long, and an id has at most {ID_MAX}")
    if _CONTROL.search(text):
        raise ValueError("has a control character")
    return text


def _reason(error: ValueError) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    fault = error.errors()[0]
    said = str(fault["ctx"]["error"]) if fault["type"] == "value_error" else fault["msg"]
    return said.replace("Input should be", "must be")


def _content_ids(rows: Any, good: npt.NDArray[np.bool_]) -> Any:  # noqa: ANN401
    """Ids from content alone, so that format and order change none; null for bad rows."""
    parts, start = [], 0
    for batch in rows.to_batches(max_chunksize=CHUNK_ROWS):
        usable = good[start : start + len(batch)].tolist()
        ids = [
            _content_id(row) if is_good else None
            for row, is_good in zip(batch.to_pylist(), usable, strict=True)
        ]
        parts.append(pa.array(ids, TEXT))
        start += len(batch)
    return pa.chunked_array(parts, TEXT)


def _content_id(row: dict[str, Any]) -> str:
    given = {name: value for name, value in row.items() if value is not None}
    return hashlib.sha256(stable_json(given)).hexdigest()[:ID_DIGITS]


def _selected(
    columns: dict[str, Any], attributes: dict[str, Any], order: RowNumbers
) -> pd.DataFrame:
    """These rows in this order, without optional columns that are empty."""
    names = ("prompt_id", *_REQUEST.table_fields(), REFERENCE, REFERENCE_HASHES)
    taken = {name: columns[name].take(order) for name in names if name in columns}
    taken |= {name: _typed_attribute(column.take(order)) for name, column in attributes.items()}
    kept = {
        name: column
        for name, column in taken.items()
        if name in {"prompt_id", "prompt"} or column.null_count < len(column)
    }
    return as_frame(pa.table(kept))


def _typed_attribute(texts: Any) -> Any:  # noqa: ANN401 - pyarrow is untyped
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
