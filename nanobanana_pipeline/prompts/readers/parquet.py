"""Parquet, read some rows at a time."""

from collections.abc import Iterator
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from nanobanana_pipeline.prompts.readers.base import TEXT, Chunk, Reader, TableScan
from nanobanana_pipeline.prompts.readers.values import TEXT_FIELDS, empty_is_missing, value_text

__all__ = ["PARQUET"]


def _read(file: IO[bytes], scan: TableScan) -> Iterator[Chunk]:
    try:
        parquet = pq.ParquetFile(file)
        fields = list(parquet.schema_arrow)
        names = [scan.add_column(field.name) for field in fields]
        scan.require_prompt()
        start = 1
        for batch in parquet.iter_batches(scan.chunk_rows):
            columns = {
                name: _parquet_texts(name, column, scan)
                for name, column in zip(names, batch.columns, strict=True)
            }
            yield Chunk(range(start, start + batch.num_rows), columns)
            start += batch.num_rows
    except (pa.ArrowException, OSError) as error:  # pyarrow raises OSError for damaged pages
        raise scan.refusal(
            f"cannot be read as Parquet ({str(error).splitlines()[0]}): write it again"
        ) from error


def _parquet_texts(name: str, column: Any, scan: TableScan) -> Any:  # noqa: ANN401 - pyarrow is untyped
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    if isinstance(column, pa.DictionaryArray):
        column = column.dictionary_decode()
    kind = column.type
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    is_text = is_text or pa.types.is_string_view(kind)
    if name in TEXT_FIELDS and not is_text and not pa.types.is_null(kind):
        raise scan.refusal(f"holds {kind} in its column {name!r}: write it as text")
    if is_text:
        # Parquet does not promise that text is UTF-8, and Arrow believes it unseen.
        column.validate(full=True)
        texts = column.cast(TEXT)
    elif pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_decimal(kind):
        texts = column.cast(TEXT)
    else:
        if pa.types.is_floating(kind):
            column = column.cast(pa.float64())
        texts = pa.array([value_text(value) for value in column.to_pylist()], TEXT)
    return empty_is_missing(texts)


PARQUET = Reader("Parquet", (".parquet",), _read, may_be_gzipped=False)
