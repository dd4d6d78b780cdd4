"""Delimited text: records of fields, the first one a header, made into chunks of rows."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from nanobanana_pipeline.prompts.readers.base import Chunk, TableScan
from nanobanana_pipeline.prompts.readers.values import text_column

__all__ = ["BrokenRecord", "delimited_chunks"]


class BrokenRecord(NamedTuple):
    """A record whose quotes make no sense."""

    text: str
    reason: str


def delimited_chunks(
    records: Iterator[list[str] | BrokenRecord], scan: TableScan
) -> Iterator[Chunk]:
    """Turn records of text fields, without blank lines, into chunks; the first is the header.

    The scan gets the columns, and a fault for every broken record or one of another width.

    Raises:
        PromptTableError: no usable header.
    """
    header = next(records, None)
    if header is None:
        raise scan.refusal("is empty: its first line must name the columns, one of them 'prompt'")
    if isinstance(header, BrokenRecord):
        raise scan.refusal(f"has an unreadable header: {header.reason}")
    names = [scan.add_column(raw) for raw in header]
    scan.require_prompt()
    numbers: list[int] = []
    rows: list[list[str]] = []
    for number, record in enumerate(records, 1):
        if isinstance(record, BrokenRecord):
            scan.add_fault(number, "", record.text, record.reason)
        elif len(record) != len(names):
            reason = f"has {len(record)} fields, and the header has {len(names)}: "
            reason += "check its separators and quotes"
            scan.add_fault(number, "", "\t".join(record), reason)
        else:
            numbers.append(number)
            rows.append(record)
            if len(rows) == scan.chunk_rows:
                yield _chunk(numbers, names, rows)
                numbers, rows = [], []
    yield _chunk(numbers, names, rows)


def _chunk(numbers: list[int], names: Sequence[str], rows: list[list[str]]) -> Chunk:
    columns: Iterable[Sequence[str]] = zip(*rows, strict=True) if rows else [()] * len(names)
    return Chunk(numbers, dict(zip(names, map(text_column, columns), strict=True)))
