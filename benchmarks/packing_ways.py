"""The ways of `benchmarks.packing` that are Python, each run in a process of its own.

What people write with the library webdataset: threads fetch ahead, shards are written one after
another and taken to the bucket when they are full.
"""

# Each way pays for its own imports.
# ruff: noqa: PLC0415

import functools
import hashlib
import io
import json
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import pandas as pd

from nanobanana_pipeline import local
from nanobanana_pipeline.storage import ObjectStore, s3_client

SHARD_BYTES: Final = 100_000_000
THREADS: Final = 24
AHEAD: Final = 64


def main(way: str, data: Path) -> None:
    """Pack the pictures that ``rows.parquet`` names."""
    rows = pd.read_parquet(data / "rows.parquet")
    ways: dict[str, Callable[[pd.DataFrame], None]] = {
        "ours": functools.partial(_ours, formats=("webdataset",)),
        # Small shards, so that as many are packed at once however few pictures there are.
        "ours_twice": functools.partial(
            _ours, formats=("webdataset", "parquet"), shard_bytes=SHARD_BYTES // 12
        ),
        "shard_writer": _shard_writer,
        "tar_writer": _tar_writer,
    }
    ways[way](rows)


def _ours(rows: pd.DataFrame, formats: tuple[str, ...], shard_bytes: int = SHARD_BYTES) -> None:
    import pyarrow as pa

    from nanobanana_pipeline.datasets.formats import FORMATS
    from nanobanana_pipeline.datasets.recipe import ShardSize
    from nanobanana_pipeline.datasets.release_rows import KEY_COLUMN, as_table, row_digests
    from nanobanana_pipeline.datasets.shard_builder import build_shards
    from nanobanana_pipeline.datasets.shard_layout import assign_shards

    table = as_table(rows)
    layout = assign_shards(
        table, row_digests(table), ShardSize(bytes=shard_bytes, images=1_000_000)
    )
    kinds = {name: each.shards for name, each in FORMATS.items() if name in formats and each.shards}
    keyed = table.add_column(0, KEY_COLUMN, pa.array(layout.keys))
    store = ObjectStore(s3_client(), local.BUCKET)
    build_shards(store, ("bench", "v1"), keyed, layout.shards, kinds)


def _shard_writer(rows: pd.DataFrame) -> None:
    import webdataset

    client = s3_client()
    with tempfile.TemporaryDirectory() as folder:

        def take_over(path: str) -> None:
            client.upload_file(path, local.BUCKET, f"sw/{Path(path).name}")
            Path(path).unlink()

        with webdataset.ShardWriter(
            f"{folder}/%06d.tar", maxsize=SHARD_BYTES, maxcount=1_000_000, verbose=0, post=take_over
        ) as writer:
            for number, (row, image) in enumerate(_fetched(rows)):
                writer.write(_sample(number, row, image))


def _tar_writer(rows: pd.DataFrame) -> None:
    import webdataset

    client = s3_client()
    body, number = io.BytesIO(), 0
    writer = webdataset.TarWriter(body)
    with ThreadPoolExecutor(1) as carrier:
        under_way: Future[Any] | None = None

        def full() -> None:
            nonlocal body, number, writer, under_way
            writer.close()
            if under_way is not None:
                under_way.result()
            key = f"tw/{number:06d}.tar"
            body.seek(0)
            under_way = carrier.submit(client.upload_fileobj, body, local.BUCKET, key)
            body, number = io.BytesIO(), number + 1
            writer = webdataset.TarWriter(body)

        for place, (row, image) in enumerate(_fetched(rows)):
            writer.write(_sample(place, row, image))
            if body.tell() > SHARD_BYTES:
                full()
        full()
        if under_way is not None:
            under_way.result()


def _sample(number: int, row: dict[str, Any], image: bytes) -> dict[str, Any]:
    if hashlib.sha256(image).hexdigest() != row["image_sha256"]:
        raise ValueError(row["image_key"])
    return {
        "__key__": f"{number:09d}",
        "png": image,
        "json": json.dumps(row).encode(),
        "txt": row["prompt"].encode(),
    }


def _fetched(rows: pd.DataFrame) -> Iterator[tuple[dict[str, Any], bytes]]:
    client = s3_client()

    def fetch(key: str) -> bytes:
        return client.get_object(Bucket=local.BUCKET, Key=key)["Body"].read()

    ahead: deque[tuple[dict[Any, Any], Future[bytes]]] = deque()
    with ThreadPoolExecutor(THREADS) as pool:
        for row in rows.to_dict("records"):
            ahead.append((row, pool.submit(fetch, row["image_key"])))
            if len(ahead) > AHEAD:
                first, image = ahead.popleft()
                yield first, image.result()
        for first, image in ahead:
            yield first, image.result()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
