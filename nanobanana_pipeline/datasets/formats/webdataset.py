"""WebDataset shards: tars with three files a sample, ``<key>.<png|jpg|webp>``, ``.json``, ``.txt``.

Format: https://github.com/webdataset/webdataset. The tars are POSIX ustar, with nothing in them
that depends on when, where or by whom they were made. Names are eleven to fourteen ASCII letters
and no file is near ustar's bound of 8 GiB, so that no extended (PAX) header is ever needed.

An index of each tar lies in another folder: readers take every file beside a tar for one more.
"""

import hashlib
import io
import tarfile
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from nanobanana_pipeline.datasets.formats.base import ReleaseFormat, ShardFiles, Sink
from nanobanana_pipeline.datasets.release_rows import KEY_COLUMN, metadata_json

__all__ = ["WEBDATASET_FORMAT", "TarShard"]

MODE: Final = 0o444
PADDING: Final = bytes(tarfile.RECORDSIZE)
INDEX_SCHEMA: Final = pa.schema(
    [
        pa.field(KEY_COLUMN, pa.string(), nullable=False),
        pa.field("row_id", pa.string(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("sha256", pa.string(), nullable=False),
    ],
    metadata={b"nanobanana.schema": b"1"},
)
"""One row a picture: its bytes are the tar's ``[offset, offset + size)``."""


class TarShard:
    """One tar while it is being written."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._index: list[dict[str, Any]] = []

    def add(self, row: dict[str, Any], image: bytes) -> None:
        """Append a sample."""
        key = row[KEY_COLUMN]
        offset = self._file(f"{key}.{row['format']}", image)
        self._file(f"{key}.json", metadata_json(row))
        self._file(f"{key}.txt", row["prompt"].encode())
        self._index.append(
            {
                KEY_COLUMN: key,
                "row_id": row["row_id"],
                "offset": offset,
                "size": len(image),
                "sha256": hashlib.sha256(image).hexdigest(),
            }
        )

    def finish(self) -> bytes:
        """Write the end mark; gives the index, a row a picture, as `INDEX_SCHEMA` says."""
        self._sink.write(PADDING[: 2 * tarfile.BLOCKSIZE])
        self._sink.write(PADDING[: -self._sink.tell() % tarfile.RECORDSIZE])
        body = io.BytesIO()
        index = pa.Table.from_pylist(self._index, schema=INDEX_SCHEMA)
        pq.write_table(index, body, compression="zstd")
        return body.getvalue()

    def _file(self, name: str, data: bytes) -> int:
        info = tarfile.TarInfo(name)
        info.size, info.mode = len(data), MODE
        self._sink.write(info.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict"))
        offset = self._sink.tell()
        self._sink.write(data)
        self._sink.write(PADDING[: -len(data) % tarfile.BLOCKSIZE])
        return offset


WEBDATASET_FORMAT: Final = ReleaseFormat(
    ShardFiles("tar", "application/x-tar", lambda sink, _: TarShard(sink))
)
