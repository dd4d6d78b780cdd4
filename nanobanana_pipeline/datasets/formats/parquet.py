"""Parquet shards with their pictures in them, as Hugging Face's `datasets` reads and writes them.

The column ``image`` is ``struct<bytes: binary, path: string>``, and the schema's metadata tell its
meaning: https://huggingface.co/docs/datasets/image_load and `datasets.Features`.
"""

import json
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nanobanana_pipeline.datasets.formats.base import (
    PARQUET_MEDIA_TYPE,
    ReleaseFormat,
    ShardFiles,
    Sink,
)
from nanobanana_pipeline.datasets.release_rows import KEY_COLUMN

__all__ = ["DTYPES", "IMAGE", "PARQUET_FORMAT"]

IMAGE: Final = "image"
GROUP_ROWS: Final = 100
GROUP_BYTES: Final = 32 * 2**20
"""A row group is held in memory while it is written; pictures above 300 kB make it shorter."""

DTYPES: Final = {"float": "float32", "double": "float64", "halffloat": "float16"}
"""Hugging Face's names of Arrow types that differ from Arrow's own."""


def huggingface_features(schema: pa.Schema) -> dict[str, dict[str, str]]:
    """What Hugging Face's `datasets` calls these columns: its ``Features.to_dict()``."""
    found: dict[str, dict[str, str]] = {}
    for field in schema:
        kind = str(field.type)
        found[field.name] = {"dtype": DTYPES.get(kind, kind), "_type": "Value"}
    if IMAGE in found:
        found[IMAGE] = {"_type": "Image"}
    return found


def shard_schema(table: pa.Schema) -> pa.Schema:
    """The columns of a shard: the picture first, then those of the release's rows."""
    image = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])
    schema = pa.schema([pa.field(IMAGE, image), *table])
    said = {"info": {"features": huggingface_features(schema)}}
    return schema.with_metadata({b"huggingface": json.dumps(said).encode()})


class ParquetShard:
    """One Parquet file while it is being written, with the columns of a `shard_schema`."""

    def __init__(self, sink: Sink, schema: pa.Schema) -> None:
        self._schema = schema
        texts = [field.name for field in schema if field.name != IMAGE]
        leaves = [f"{IMAGE}.bytes", f"{IMAGE}.path"]
        self._writer = pq.ParquetWriter(
            pa.PythonFile(sink, mode="w"),
            schema,
            # Pictures are compressed already.
            compression={**dict.fromkeys(texts, "zstd"), **dict.fromkeys(leaves, "none")},
            use_dictionary=texts,
            write_statistics=texts,
        )
        self._rows: list[dict[str, Any]] = []
        self._images: list[bytes] = []
        self._held = 0

    def add(self, row: dict[str, Any], image: bytes) -> None:
        """Append a row with its image."""
        if self._rows and self._held + len(image) > GROUP_BYTES:
            self._write()
        self._rows.append(row)
        self._images.append(image)
        self._held += len(image)
        if len(self._rows) == GROUP_ROWS:
            self._write()

    def finish(self) -> None:
        """Write the footer; nothing can be added any more."""
        if self._rows:
            self._write()
        self._writer.close()

    def _write(self) -> None:
        texts = pa.Table.from_pylist(self._rows, schema=self._schema.remove(0))
        paths = [f"{row[KEY_COLUMN]}.{row['format']}" for row in self._rows]
        images = pa.StructArray.from_arrays(
            [_joined(self._images), pa.array(paths, pa.string())],
            fields=list(self._schema.field(0).type),
        )
        self._rows, self._images, self._held = [], [], 0
        self._writer.write_table(texts.add_column(0, self._schema.field(0), images))


def _joined(images: list[bytes]) -> pa.Array:
    """The pictures as one column, copied once: Arrow's own way takes twice the room."""
    ends = np.cumsum([0, *map(len, images)], dtype=np.int32)
    buffers = [None, pa.py_buffer(ends), pa.py_buffer(b"".join(images))]
    return pa.BinaryArray.from_buffers(pa.binary(), len(images), buffers)


PARQUET_FORMAT: Final = ReleaseFormat(
    ShardFiles(
        "parquet", PARQUET_MEDIA_TYPE, lambda sink, schema: ParquetShard(sink, shard_schema(schema))
    )
)
