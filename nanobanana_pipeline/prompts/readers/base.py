"""What every reader of prompt tables works with: `Reader`, `TableScan`, `Chunk` and `RowFault`."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any, Final, NamedTuple

import pyarrow as pa

from nanobanana_pipeline.errors import PromptTableError
from nanobanana_pipeline.prompts.checked_prompts import REFERENCE_HASHES

__all__ = ["CHUNK_ROWS", "TEXT", "Chunk", "Reader", "RowFault", "TableScan", "bounded_value"]

CHUNK_ROWS: Final = 65_536
CHUNK_CELLS: Final = 1 << 20
MAX_COLUMNS: Final = 1_000
MAX_VALUE: Final = 200
TEXT: Final = pa.large_string()
"""64-bit offsets: a million long prompts do not fit the 2 GiB of a plain Arrow string column."""

_SPACES_AND_HYPHENS = re.compile(r"[\s-]")


class RowFault(NamedTuple):
    """One thing that is wrong with one row.

    Attributes:
        row: data row, counted from 1 without the header and without blank lines.
        column: the normalised column name; "" for the row as a whole.
        value: what stands there, bounded_value.
        reason: what a person should mend.
    """

    row: int
    column: str
    value: str
    reason: str


class Chunk(NamedTuple):
    """Some rows of a table as text.

    Attributes:
        numbers: the row numbers.
        columns: normalised name to a `TEXT` array as long as `numbers`; null where nothing stands.
    """

    numbers: Sequence[int]
    columns: dict[str, Any]


def bounded_value(value: str) -> str:
    """At most about 200 characters of `value`, fit for UTF-8."""
    text = value if len(value) <= MAX_VALUE else value[:MAX_VALUE] + "…"
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


class TableScan:
    """The columns and faults of one table while a reader goes through it.

    Attributes:
        source: the file's path or URL, for messages.
        columns: normalised names, each with the name as the file has it, in the file's order.
        faults: what is wrong so far.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self.columns: dict[str, str] = {}
        self.faults: list[RowFault] = []

    def refusal(self, problem: str) -> PromptTableError:
        """The error that says that this table cannot be used at all."""
        return PromptTableError(f"{self.source} {problem}")

    def add_fault(self, row: int, column: str, value: str, reason: str) -> None:
        """Record a fault of a row."""
        self.faults.append(RowFault(row, column, bounded_value(value), reason))

    @property
    def chunk_rows(self) -> int:
        """How many rows to take at a time, so that wide tables need no more memory than others."""
        return min(CHUNK_ROWS, CHUNK_CELLS // max(1, len(self.columns)))

    def add_column(self, raw: str) -> str:
        """Register a column; returns its normalised name, ``column_<n>`` if it has none.

        Raises:
            PromptTableError: another column means the same, the name is taken, or there are too
                many.
        """
        if "\0" in raw:
            raise self.refusal(
                "has NUL bytes in its header: it may be UTF-16 or no text at all; save it as UTF-8"
            )
        name = _SPACES_AND_HYPHENS.sub("_", raw.strip().casefold())
        name = name or f"column_{len(self.columns) + 1}"
        if name in self.columns:
            raise self.refusal(
                "has two columns that mean the same, "
                f"{bounded_value(self.columns[name])!r} and {bounded_value(raw)!r}: "
                "rename or remove one of them"
            )
        if name == REFERENCE_HASHES:
            raise self.refusal(
                f"has a column {bounded_value(raw)!r}, which is where the hashes of its reference "
                "pictures will stand: rename or remove it, and name the pictures in 'ref_image'"
            )
        if len(self.columns) >= MAX_COLUMNS:
            raise self.refusal(
                f"has more than {MAX_COLUMNS} columns: remove those that do not help"
            )
        self.columns[name] = raw
        return name

    def require_prompt(self) -> None:
        """Refuse a table without a prompt column."""
        if "prompt" in self.columns:
            return
        names = ", ".join(repr(bounded_value(raw)) for raw in list(self.columns.values())[:10])
        described = f"its columns are {names}" if names else "it has no columns"
        if self.faults:
            described += f"; row {self.faults[0].row}: {self.faults[0].reason}"
        raise self.refusal(
            f"has no prompt column ({described}): name the column that holds the prompts 'prompt'"
        )


@dataclass(frozen=True)
class Reader:
    """One format of prompt tables.

    Attributes:
        name: the format, for messages.
        suffixes: of its files, in lower case, each with its dot.
        read: takes an open file and a `TableScan`; yields the rows in `Chunk` s of at most
            `TableScan.chunk_rows`, and records in the scan every column, and every row or cell that
            it cannot use. It raises `TableScan.refusal` where the table as a whole is unusable.
        may_be_gzipped: whether the files may end in ``.gz`` too; `read` gets plain bytes then.
    """

    name: str
    suffixes: tuple[str, ...]
    read: Callable[[IO[bytes], TableScan], Iterator[Chunk]]
    may_be_gzipped: bool = True
