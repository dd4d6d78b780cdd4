"""CSV after RFC 4180."""

import csv
from collections.abc import Iterator
from typing import IO, TextIO

from nanobanana_pipeline.prompts.readers.base import Chunk, Reader, TableScan
from nanobanana_pipeline.prompts.readers.delimited import BrokenRecord, delimited_chunks
from nanobanana_pipeline.prompts.readers.text import utf8_text

__all__ = ["CSV"]


def _read(file: IO[bytes], scan: TableScan) -> Iterator[Chunk]:
    with utf8_text(file, scan, newline="") as text:
        yield from delimited_chunks(_records(text, scan), scan)


def _records(file: TextIO, scan: TableScan) -> Iterator[list[str] | BrokenRecord]:
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
                raise scan.refusal(
                    f"has a quote in or after line {first} that is not closed (or a field of more "
                    f"than {csv.field_size_limit():,} characters): close it, and double quotes "
                    "inside quoted fields"
                ) from None
            yield BrokenRecord(latest, f"{where}: {error}; double the quotes inside quoted fields")
            continue
        if record:
            yield record


CSV = Reader("CSV", (".csv",), _read)
