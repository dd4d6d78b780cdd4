"""Reading a prompt table, local or on S3, whatever its format, into text cells."""

import codecs
import gzip
import io
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any, Final, TextIO

import pyarrow as pa

from nanobanana_pipeline.errors import PromptTableError, StorageError, StorageUnavailable
from nanobanana_pipeline.prompts.delimited import read_csv, read_tsv
from nanobanana_pipeline.prompts.intake import TEXT, Chunk, Intake, RowFault
from nanobanana_pipeline.prompts.typed import read_jsonl, read_parquet

if TYPE_CHECKING:
    from nanobanana_pipeline.storage import ObjectStore

__all__ = ["PromptTable", "read_prompt_table"]

TEXT_FORMATS: Final[dict[str, tuple[Callable[[TextIO, Intake], Iterator[Chunk]], str]]] = {
    ".csv": (read_csv, ""),
    ".tsv": (read_tsv, ""),
    ".jsonl": (read_jsonl, "\n"),
    ".ndjson": (read_jsonl, "\n"),
}
"""Suffix to reader and to the `newline` its text is opened with."""
PARQUET: Final = ".parquet"
SCAN_BYTES: Final = 1 << 20


@dataclass(frozen=True)
class PromptTable:
    """A table as its file has it.

    Attributes:
        source: path or URL.
        rows: a `pyarrow.Table` of ``large_string`` columns under normalised names, in the file's
            order; null where nothing stands. Typed values are text here, as CSV would hold them.
        numbers: ``int64`` array: the data-row number of each of `rows`, counted from 1 without
            header and blank lines.
        broken: rows that could not be taken apart (column "", absent from `rows`), and cells that
            could not be used (null in `rows`).
    """

    source: str
    rows: Any
    numbers: Any
    broken: tuple[RowFault, ...]


def read_prompt_table(source: str | Path, store: "ObjectStore | None" = None) -> PromptTable:
    """Read a CSV, TSV, JSONL or Parquet file; all but Parquet may be gzipped.

    Args:
        source: a path, or an ``s3://bucket/key`` URL.
        store: reads the URL with its own credentials.

    Raises:
        PromptTableError: the table as a whole cannot be used; says what, where and how to mend it.
        StorageUnavailable: S3 gave no answer.
    """
    name = str(source)
    intake = Intake(name)
    # Only the last suffix but .gz counts: `prompts.v2.csv` is CSV.
    bare = name.lower().removesuffix(".gz")
    suffix = PurePosixPath(bare).suffix
    gzipped = bare != name.lower()
    if suffix not in TEXT_FORMATS and (gzipped or suffix != PARQUET):
        raise intake.refusal(
            "is of no known format: name it .csv, .tsv, .jsonl, .ndjson or .parquet "
            "(all but Parquet may end in .gz)"
        )
    with _opened(name, store, intake) as file:
        try:
            with gzip.open(file) if gzipped else file as plain:
                return _gathered(_chunks(plain, suffix, intake), intake)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise intake.refusal(f"cannot be unpacked ({error}): compress it again") from error
        except OSError as error:
            raise intake.refusal(f"cannot be read ({error.strerror or error})") from error


def _opened(name: str, store: "ObjectStore | None", intake: Intake) -> IO[bytes]:
    if name.startswith("s3://"):
        if store is None:
            raise intake.refusal("lies on S3, and no bucket is configured: set NANOBANANA_BUCKET")
        try:
            return io.BytesIO(store.open_url(name))
        except StorageUnavailable:
            raise
        except StorageError as error:
            raise intake.refusal(f"cannot be read: {error}") from error
    try:
        return Path(name).open("rb")
    except FileNotFoundError as error:
        raise intake.refusal("does not exist: check the path") from error
    except OSError as error:
        raise intake.refusal(f"cannot be opened ({error.strerror})") from error


def _chunks(file: IO[bytes] | gzip.GzipFile, suffix: str, intake: Intake) -> Iterator[Chunk]:
    if suffix == PARQUET:
        yield from read_parquet(file, intake)
        return
    read, newline = TEXT_FORMATS[suffix]
    text = io.TextIOWrapper(file, encoding="utf-8-sig", newline=newline)
    try:
        yield from read(text, intake)
    except UnicodeDecodeError:
        raise _not_utf8(file, intake) from None
    finally:
        text.detach()  # the file is its opener's to close


def _not_utf8(file: IO[bytes] | gzip.GzipFile, intake: Intake) -> PromptTableError:
    """Say where a file stops being UTF-8, which the error of a buffered reader does not know."""
    file.seek(0)
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset, lines, kept = 0, 1, b""
    while True:
        block = file.read(SCAN_BYTES)
        pending = kept + block
        try:
            decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            bad = pending[error.start]
            line = lines + pending[: error.start].count(b"\n")
            looks = "is UTF-16" if (offset, bad) in {(0, 0xFF), (0, 0xFE)} else "is not UTF-8"
            return intake.refusal(
                f"{looks} (byte 0x{bad:02X} at offset {offset + error.start:,}, line {line:,}): "
                "save it as UTF-8"
            )
        kept = decoder.getstate()[0]
        done = pending[: len(pending) - len(kept)]
        offset += len(done)
        lines += done.count(b"\n")


def _gathered(chunks: Iterator[Chunk], intake: Intake) -> PromptTable:
    numbers, tables = [], []
    for chunk in chunks:
        numbers.append(pa.array(chunk.numbers, pa.int64()))
        # A table without columns would forget how many rows it has (JSON objects may be empty).
        columns = chunk.columns or {"prompt": pa.nulls(len(chunk.numbers), TEXT)}
        tables.append(pa.table(columns))
    # The schema first: later rows of a JSONL file may bring new columns.
    schema = pa.schema([(name, TEXT) for name in intake.columns])
    rows = pa.concat_tables([schema.empty_table(), *tables], promote_options="default")
    if rows.num_rows == 0 and not intake.faults:
        raise intake.refusal("has no rows: put one prompt a line under its header")
    all_numbers = pa.chunked_array(numbers, pa.int64())
    return PromptTable(intake.source, rows, all_numbers, tuple(intake.faults))
