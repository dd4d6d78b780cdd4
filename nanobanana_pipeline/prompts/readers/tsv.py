"""TSV as IANA has it, and as Excel and pandas write it.

Fields are literal, quotes and all, except one that is wrapped in quotes from tab to tab and has its
inner quotes doubled: Excel and pandas write tabs, line breaks and quotes so.
"""

import re
from collections.abc import Iterator
from typing import IO, Final, TextIO

from nanobanana_pipeline.prompts.readers.base import Chunk, Reader, TableScan
from nanobanana_pipeline.prompts.readers.delimited import delimited_chunks
from nanobanana_pipeline.prompts.readers.text import utf8_text

__all__ = ["TSV"]

BLOCK_CHARACTERS: Final = 1 << 20

_NEWLINE = re.compile(r"\r\n|\n|\r")
_FIELD_END = re.compile(r"\t|\r\n|\n|\r")
_QUOTED = re.compile(r'(?:[^"]|"")*+')


def _read(file: IO[bytes], scan: TableScan) -> Iterator[Chunk]:
    with utf8_text(file, scan, newline="") as text:
        yield from delimited_chunks(_Scanner(text).records(), scan)


class _Scanner:
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


TSV = Reader("TSV", (".tsv",), _read)
