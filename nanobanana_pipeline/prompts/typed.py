"""JSONL and Parquet: typed values, brought to the same text that a CSV file would hold."""

import json
import math
from collections.abc import Iterator
from datetime import date, time
from gzip import GzipFile
from typing import IO, Any, Final, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from nanobanana_pipeline.prompts.intake import TEXT, Chunk, Intake, empty_is_missing

__all__ = ["read_jsonl", "read_parquet"]

TEXT_FIELDS: Final = frozenset({"prompt", "negative_prompt", "webhook", "track_id"})
"""Request fields of which a number would be refused, however well it reads as text."""


def text_of(value: object) -> str | None:
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
                value, ensure_ascii=False, sort_keys=True, separators=(",", ":"), default=text_of
            )
        case _:
            text = str(value)
    return text


def read_jsonl(file: TextIO, intake: Intake) -> Iterator[Chunk]:
    r"""Read one JSON object a line; objects need not have the same keys.

    Args:
        file: opened with ``newline="\n"``, since JSON strings may hold other line separators.
        intake: gets the columns, and a fault for every line and cell that cannot be used.

    Raises:
        PromptTableError: no object has a prompt, or two keys mean the same.
    """
    number = 0
    objects = _Objects(intake)
    for line in file:
        if not line.strip():
            continue
        number += 1
        try:
            objects.add(number, _json_object(line))
        except (ValueError, RecursionError) as error:
            intake.fault(number, "", line.rstrip("\r\n"), _why_not_json(error))
        if len(objects.numbers) >= intake.chunk_rows:
            yield objects.chunk()
    if number == 0:
        raise intake.refusal("is empty: it must hold one JSON object a line, each with a 'prompt'")
    intake.require_prompt()
    yield objects.chunk()


class _Objects:
    """JSON objects, turned into columns as they come."""

    def __init__(self, intake: Intake) -> None:
        self.numbers: list[int] = []
        self._intake = intake
        self._names: dict[str, str] = {}
        self._cells: dict[str, list[object]] = {}

    def add(self, number: int, record: dict[str, object]) -> None:
        for raw in record:
            if raw not in self._names:
                raw.encode()
                self._names[raw] = self._intake.column(raw)
            if raw not in self._cells:
                self._cells[raw] = [None] * len(self.numbers)
        self.numbers.append(number)
        for raw, cells in self._cells.items():
            cells.append(record.get(raw))

    def chunk(self) -> Chunk:
        """Hand over what has come since the last time."""
        chunk = Chunk(
            self.numbers,
            {
                self._names[raw]: self._texts(self._names[raw], values)
                for raw, values in self._cells.items()
            },
        )
        self.numbers, self._cells = [], {}
        return chunk

    def _texts(self, column: str, values: list[object]) -> Any:  # noqa: ANN401 - pyarrow is untyped
        try:
            texts = pa.array(values, TEXT)
        # Something that is no text, or text that UTF-8 cannot hold: look at each value.
        except (pa.ArrowTypeError, pa.ArrowInvalid, UnicodeEncodeError):
            cells = zip(self.numbers, values, strict=True)
            texts = pa.array(
                [_cell_text(self._intake, number, column, value) for number, value in cells], TEXT
            )
        return empty_is_missing(texts)


def _cell_text(intake: Intake, number: int, column: str, value: object) -> str | None:
    """A cell's text; None where nothing stands, or what stands there is a fault."""
    text = text_of(value)
    if text is None:
        return None
    if column in TEXT_FIELDS and not isinstance(value, str):
        intake.fault(number, column, text, "is not text: put it in quotes")
        return None
    try:
        text.encode()
    except UnicodeEncodeError as error:
        reason = f"has a lone surrogate at character {error.start + 1}"
        intake.fault(number, column, text, reason)
        return None
    return text


def _json_object(line: str) -> dict[str, Any]:
    record = json.loads(line, object_pairs_hook=_distinct, parse_constant=_no_constant)
    if not isinstance(record, dict):
        raise ValueError("is not a JSON object")  # noqa: TRY004 - a fault of the row, like the others
    return record


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) != len(pairs):
        raise ValueError("gives a key twice")
    return record


def _no_constant(name: str) -> float:
    raise ValueError(f"holds {name}, which is not JSON: write null")


def _why_not_json(error: ValueError | RecursionError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"is not JSON: {error.msg} at character {error.colno}"
    if isinstance(error, UnicodeEncodeError):
        return "has a key with a lone surrogate"
    if isinstance(error, RecursionError):
        return "is nested too deeply"
    return str(error)


def read_parquet(file: IO[bytes] | GzipFile, intake: Intake) -> Iterator[Chunk]:
    """Read a Parquet file, some rows at a time.

    Raises:
        PromptTableError: not Parquet, damaged, no prompt column, or a column that cannot be text.
    """
    try:
        parquet = pq.ParquetFile(file)
        fields = list(parquet.schema_arrow)
        names = [intake.column(field.name) for field in fields]
        intake.require_prompt()
        start = 1
        for batch in parquet.iter_batches(intake.chunk_rows):
            columns = {
                name: _parquet_texts(name, column, intake)
                for name, column in zip(names, batch.columns, strict=True)
            }
            yield Chunk(range(start, start + batch.num_rows), columns)
            start += batch.num_rows
    except (pa.ArrowException, OSError) as error:  # pyarrow raises OSError for damaged pages
        raise intake.refusal(
            f"cannot be read as Parquet ({str(error).splitlines()[0]}): write it again"
        ) from error


def _parquet_texts(name: str, column: Any, intake: Intake) -> Any:  # noqa: ANN401 - pyarrow is untyped
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    if isinstance(column, pa.DictionaryArray):
        column = column.dictionary_decode()
    kind = column.type
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    is_text = is_text or pa.types.is_string_view(kind)
    if name in TEXT_FIELDS and not is_text and not pa.types.is_null(kind):
        raise intake.refusal(f"holds {kind} in its column {name!r}: write it as text")
    if is_text:
        # Parquet does not promise that text is UTF-8, and Arrow believes it unseen.
        column.validate(full=True)
        texts = column.cast(TEXT)
    elif pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_decimal(kind):
        texts = column.cast(TEXT)
    else:
        if pa.types.is_floating(kind):
            column = column.cast(pa.float64())
        texts = pa.array([text_of(value) for value in column.to_pylist()], TEXT)
    return empty_is_missing(texts)
