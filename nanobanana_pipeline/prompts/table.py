"""Reading a prompt table, local or on S3, whatever its format, into text cells."""

import gzip
import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa

from nanobanana_pipeline.errors import StorageError, StorageUnavailable
from nanobanana_pipeline.prompts.readers import READERS, known_suffixes, match_reader
from nanobanana_pipeline.prompts.readers.base import TEXT, Chunk, RowFault, TableScan
from nanobanana_pipeline.storage import ObjectStore

__all__ = ["PromptTable", "read_prompt_table"]


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


def read_prompt_table(source: str | Path, store: ObjectStore | None = None) -> PromptTable:
    """Read a CSV, TSV, JSONL or Parquet file; all but Parquet may be gzipped.

    The store reads an ``s3://bucket/key`` URL with its own credentials.

    Raises:
        PromptTableError: the table as a whole cannot be used; says what, where and how to mend it.
        StorageUnavailable: S3 gave no answer.
    """
    name = str(source)
    scan = TableScan(name)
    match = match_reader(name)
    if match is None:
        plain = " and ".join(reader.name for reader in READERS if not reader.may_be_gzipped)
        raise scan.refusal(
            f"is of no known format: name it {known_suffixes()} (all but {plain} may end in .gz)"
        )
    with _opened(name, store, scan) as file:
        try:
            with gzip.open(file) if match.gzipped else file as plain_file:
                chunks = match.reader.read(cast("IO[bytes]", plain_file), scan)
                return _collected(chunks, scan)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise scan.refusal(f"cannot be unpacked ({error}): compress it again") from error
        except OSError as error:
            raise scan.refusal(f"cannot be read ({error.strerror or error})") from error


def _opened(name: str, store: ObjectStore | None, scan: TableScan) -> IO[bytes]:
    if name.startswith("s3://"):
        if store is None:
            raise scan.refusal("lies on S3, and no bucket is configured: set NANOBANANA_BUCKET")
        try:
            return io.BytesIO(store.open_url(name))
        except StorageUnavailable:
            raise
        except StorageError as error:
            raise scan.refusal(f"cannot be read: {error}") from error
    try:
        return Path(name).open("rb")
    except FileNotFoundError as error:
        raise scan.refusal("does not exist: check the path") from error
    except OSError as error:
        raise scan.refusal(f"cannot be opened ({error.strerror})") from error


def _collected(chunks: Iterator[Chunk], scan: TableScan) -> PromptTable:
    numbers, tables = [], []
    for chunk in chunks:
        numbers.append(pa.array(chunk.numbers, pa.int64()))
        # A table without columns would forget how many rows it has (JSON objects may be empty).
        columns = chunk.columns or {"prompt": pa.nulls(len(chunk.numbers), TEXT)}
        tables.append(pa.table(columns))
    # The schema first: later rows of a JSONL file may bring new columns.
    schema = pa.schema([(name, TEXT) for name in scan.columns])
    rows = pa.concat_tables([schema.empty_table(), *tables], promote_options="default")
    if rows.num_rows == 0 and not scan.faults:
        raise scan.refusal("has no rows: put one prompt a line under its header")
    all_numbers = pa.chunked_array(numbers, pa.int64())
    return PromptTable(scan.source, rows, all_numbers, tuple(scan.faults))
