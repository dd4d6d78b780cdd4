import io
import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from nanobanana_pipeline.datasets.formats.parquet import ParquetShard, shard_schema
from tests.datasets.conftest import Published
from tests.datasets.release_readers import PARQUET

ROW = pa.schema([("key", pa.string()), ("format", pa.string()), ("seed", pa.int64())])


def groups(count: int, size: int) -> list[int]:
    sink = io.BytesIO()
    shard = ParquetShard(sink, shard_schema(ROW))
    for number in range(count):
        key = f"{number:09d}"
        shard.add({"key": key, "format": "png", "seed": number}, bytes([number % 256]) * size)
    shard.finish()
    file = pq.ParquetFile(io.BytesIO(sink.getvalue()))
    rows = file.read().to_pylist()
    assert [row["image"]["path"] for row in rows] == [f"{n:09d}.png" for n in range(count)]
    assert all(row["image"]["bytes"] == bytes([n % 256]) * size for n, row in enumerate(rows))
    return [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)]


def test_a_row_group_has_a_hundred_rows_or_what_fits_into_memory() -> None:
    assert groups(250, 10) == [100, 100, 50]
    assert groups(100, 10) == [100]
    assert groups(7, 9 * 2**20) == [3, 3, 1]
    assert groups(2, 40 * 2**20) == [1, 1]


def test_the_schema_is_hugging_faces_own(published: Published) -> None:
    for path in published.shards(PARQUET):
        schema = pq.read_schema(path)
        assert schema.field("image").type == pa.struct(
            [("bytes", pa.binary()), ("path", pa.string())]
        )
        said = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        features = datasets.Features.from_dict(said)
        assert features.arrow_schema.equals(schema.remove_metadata())
        assert said == features.to_dict()


def test_all_shards_have_one_schema_whatever_is_missing_in_some(published: Published) -> None:
    schemas = [pq.read_schema(path) for path in published.shards(PARQUET)]
    assert len(schemas) > 4
    assert all(schema.equals(schemas[0], check_metadata=True) for schema in schemas)


def test_pictures_are_stored_as_they_are_and_texts_compressed(published: Published) -> None:
    group = pq.ParquetFile(published.shards(PARQUET)[0]).metadata.row_group(0)
    codecs = {
        column.path_in_schema: column.compression
        for column in map(group.column, range(group.num_columns))
    }
    assert codecs.pop("image.bytes") == codecs.pop("image.path") == "UNCOMPRESSED"
    assert set(codecs.values()) == {"ZSTD"}
