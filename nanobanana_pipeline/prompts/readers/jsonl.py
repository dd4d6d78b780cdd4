"""JSONL: one JSON object a line; objects need not have the same keys."""

import json
from collections.abc import Iterator
from typing import IO, Any

import pyarrow as pa

from nanobanana_pipeline.prompts.readers.base import TEXT, Chunk, Reader, TableScan
from nanobanana_pipeline.prompts.readers.text import utf8_text
from nanobanana_pipeline.prompts.readers.values import TEXT_FIELDS, empty_is_missing, value_text

__all__ = ["JSONL"]


def _read(file: IO[bytes], scan: TableScan) -> Iterator[Chunk]:
    number = 0
    objects = _Objects(scan)
    # JSON strings may hold other line separators than \n.
    with utf8_text(file, scan, newline="\n") as lines:
        for line in lines:
            if not line.strip():
                continue
            number += 1
            try:
                objects.add(number, _json_object(line))
            except (ValueError, RecursionError) as error:
                scan.add_fault(number, "", line.rstrip("\r\n"), _why_not_json(error))
            if len(objects.numbers) >= scan.chunk_rows:
                yield objects.chunk()
    if number == 0:
        raise scan.refusal("is empty: it must hold one JSON object a line, each with a 'prompt'")
    scan.require_prompt()
    yield objects.chunk()


class _Objects:
    """JSON objects, turned into columns as they come."""

    def __init__(self, scan: TableScan) -> None:
        self.numbers: list[int] = []
        self._scan = scan
        self._names: dict[str, str] = {}
        self._cells: dict[str, list[object]] = {}

    def add(self, number: int, record: dict[str, object]) -> None:
        for raw in record:
            if raw not in self._names:
                raw.encode()
                self._names[raw] = self._scan.add_column(raw)
            if raw not in self._cells:
                self._cells[raw] = [None] * len(self.numbers)
        self.numbers.append(number)
        for raw, cells in self._cells.items():
            cells.append(record.get(raw))

    def chunk(self) -> Chunk:
        """Hand over what has come since the last time."""
        cells = {self._names[raw]: values for raw, values in self._cells.items()}
        columns = {name: self._texts(name, values) for name, values in cells.items()}
        chunk = Chunk(self.numbers, columns)
        self.numbers, self._cells = [], {}
        return chunk

    def _texts(self, column: str, values: list[object]) -> Any:  # noqa: ANN401 - pyarrow is untyped
        try:
            texts = pa.array(values, TEXT)
        # Something that is no text, or text that UTF-8 cannot hold: look at each value.
        except (pa.ArrowTypeError, pa.ArrowInvalid, UnicodeEncodeError):
            cells = zip(self.numbers, values, strict=True)
            texts = pa.array(
                [_checked_text(self._scan, number, column, value) for number, value in cells], TEXT
            )
        return empty_is_missing(texts)


def _checked_text(scan: TableScan, number: int, column: str, value: object) -> str | None:
    """A cell's text; None where nothing stands, or what stands there is a fault."""
    text = value_text(value)
    if text is None:
        return None
    if column in TEXT_FIELDS and not isinstance(value, str):
        scan.add_fault(number, column, text, "is not text: put it in quotes")
        return None
    try:
        text.encode()
    except UnicodeEncodeError as error:
        reason = f"has a lone surrogate at character {error.start + 1}"
        scan.add_fault(number, column, text, reason)
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


JSONL = Reader("JSONL", (".jsonl", ".ndjson"), _read)
