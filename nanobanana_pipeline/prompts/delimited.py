"""CSV after RFC 4180, and TSV as IANA has it and as Excel and pandas write it."""

import csv
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple, TextIO

import pyarrow as pa

from nanobanana_pipeline.prompts.intake import TEXT, Chunk, Intake, empty_is_missing

__all__ = ["read_csv", "read_tsv"]

BLOCK_CHARACTERS: Final = 1 << 20

_NEWLINE = re.compile(r"\r\n|\n|\r")
_FIELD_END = re.compile(r"\t|\r\n|\n|\r")
_QUOTED = re.compile(r'(?:[^"]|"")*+')


class _Torn(NamedTuple):
    """A record whose quotes cannot be understood."""

    text: str
    reason: str


def read_csv(file: TextIO, intake: Intake) -> Iterator[Chunk]:
    """Read comma-separated values.

    Args:
        file: opened with ``newline=""``.
        intake: gets the columns, and a fault for every row that cannot be taken apart.

    Raises:
        PromptTableError: no usable header, or a quote that is never closed.
    """
    return _chunks(_csv_records(file, intake), intake)


def read_tsv(file: TextIO, intake: Intake) -> Iterator[Chunk]:
    """Read tab-separated values.

    Fields are literal, quotes and all, except one that is wrapped in quotes from tab to tab and has
    its inner quotes doubled: that is how Excel and pandas write tabs, line breaks and quotes.

    Args:
        file: opened with ``newline=""``.
        intake: gets the columns, and a fault for every row of another width than the header.

    Raises:
        PromptTableError: no usable header.
    """
    return _chunks(_TsvScanner(file).records(), intake)


def _chunks(records: Iterator[list[str] | _Torn], intake: Intake) -> Iterator[Chunk]:
    header = next(records, None)
    if header is None:
        raise intake.refusal("is empty: its first line must name the columns, one of them 'prompt'")
    if isinstance(header, _Torn):
        raise intake.refusal(f"has an unreadable header: {header.reason}")
    names = [intake.column(raw) for raw in header]
    intake.require_prompt()
    numbers: list[int] = []
    rows: list[list[str]] = []
    for number, record in enumerate(records, 1):
        if isinstance(record, _Torn):
            intake.fault(number, "", record.text, record.reason)
        elif len(record) != len(names):
            intake.fault(
                number,
                "",
                "\t".join(record),
                f"has {len(record)} fields, and the header has {len(names)}: "
                "check its separators and quotes",
            )
        else:
            numbers.append(number)
            rows.append(record)
            if len(rows) == intake.chunk_rows:
                yield _chunk(numbers, names, rows)
                numbers, rows = [], []
    yield _chunk(numbers, names, rows)


def _chunk(numbers: list[int], names: Sequence[str], rows: list[list[str]]) -> Chunk:
    cells: Iterable[Sequence[str]] = zip(*rows, strict=True) if rows else [()] * len(names)
    columns = {
        name: empty_is_missing(pa.array(column, TEXT))
        for name, column in zip(names, cells, strict=True)
    }
    return Chunk(numbers, columns)


def _csv_records(file: TextIO, intake: Intake) -> Iterator[list[str] | _Torn]:
    latest = ""

    def lines() -> Iterator[str]:
        nonlocal latest
        for latest in file:  # noqa: UP028 - `yield from` would not keep the line
            yield latest

    reader = csv.reader(lines(), strict=True)
    while True:
        first = reader.line_num + 1
        try:
            record = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            where = f"line {first}" + f" to {reader.line_num}" * (reader.line_num > first)
            # Both mean that the parser has swallowed rows without end: what follows is not rows.
            if "unexpected end" in str(error) or "field limit" in str(error):
                raise intake.refusal(
                    f"has a quote in or after line {first} that is not closed (or a field of more "
                    f"than {csv.field_size_limit():,} characters): close it, and double quotes "
                    "inside quoted fields"
                ) from None
            yield _Torn(latest, f"{where}: {error}; double the quotes inside quoted fields")
            continue
        if record:
            yield record


class _TsvScanner:
    """Takes records off a text, which it reads in blocks."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._text = ""
        self._at = 0

    def records(self) -> Iterator[list[str]]:
        while self._at < len(self._text) or self._more():
            record = self._record()
            if record != [""]:
                yield record

    def _more(self) -> bool:
        """Read on, so that no block ends between CR and LF; False at the end of the file."""
        block = self._file.read(BLOCK_CHARACTERS)
        while block.endswith("\r") and (following := self._file.read(1)):
            block += following
        self._text = self._text[self._at :] + block
        self._at = 0
        return bool(block)

    def _record(self) -> list[str]:
        end = self._find(_NEWLINE)
        line = self._text[self._at : end.start()] if end else self._text[self._at :]
        if '"' not in line:
            self._at = end.end() if end else len(self._text)
            return line.split("\t")
        record = []
        while True:
            record.append(self._field())
            stop = _FIELD_END.match(self._text, self._at)
            self._at = stop.end() if stop else len(self._text)
            if stop is None or stop[0] != "\t":
                return record

    def _field(self) -> str:
        """Take one field, up to its tab or line break."""
        if self._at == len(self._text):
            self._more()
        if self._text.startswith('"', self._at):
            quoted = self._quoted()
            if quoted is not None:
                return quoted
        end = self._find(_FIELD_END)
        stop = end.start() if end else len(self._text)
        field = self._text[self._at : stop]
        self._at = stop
        return field

    def _quoted(self) -> str | None:
        """Take a field that is wrapped in quotes; None if its quotes belong to its text."""
        length = 1
        while True:
            match = _QUOTED.match(self._text, self._at + length)
            length = (match.end() if match else len(self._text)) - self._at
            closing = self._at + length
            # The quote at the end of what was read may be the first of a doubled one.
            if closing + 1 < len(self._text) or not self._more():
                break
        closing = self._at + length
        after = self._text[closing + 1 : closing + 2]
        if not self._text.startswith('"', closing) or after not in {"", "\t", "\n", "\r"}:
            return None
        field = self._text[self._at + 1 : closing].replace('""', '"')
        self._at = closing + 1
        return field

    def _find(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        """The next match at or after the current place, reading on as far as needed."""
        skip = 0
        while True:
            match = pattern.search(self._text, self._at + skip)
            if match is not None:
                return match
            skip = len(self._text) - self._at
            if not self._more():
                return None
