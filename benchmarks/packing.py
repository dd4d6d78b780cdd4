"""Pictures in a bucket to shards in a bucket: beside webdataset, img2dataset and s5cmd.

``uv run python -m benchmarks.packing [--rounds 3] [--large 400] [--small 3000] [--flat]``

Each way starts with the same pictures under their hashes on a SeaweedFS server and ends with tars
(100 MB each) on the same server: pictures, JSON and captions, unchanged bytes, SHA-256 looked at or
computed. What a way costs is that of its whole process, start included, and of its children; the
server's own work is left out. s5cmd copies the same pictures to disk and back: the limit.
``--flat`` packs 1,000 to 100,000 pictures in both formats instead, for time and peak of memory.
"""

import argparse
import functools
import hashlib
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import pandas as pd
from rich.console import Console
from rich.progress import track

from benchmarks import packing_ways
from benchmarks.features import draw
from benchmarks.measured import Cost, median_of, run, save, spread
from benchmarks.peers import peer
from nanobanana_pipeline import local
from nanobanana_pipeline.bucket_keys import image_key
from nanobanana_pipeline.cli.show import table_of
from nanobanana_pipeline.emulator.fields import PictureFields
from nanobanana_pipeline.emulator.pictures import draw as draw_like_emulator
from nanobanana_pipeline.storage import ObjectStore, s3_client

FLAT: Final = (1_000, 10_000, 100_000)
DIFFERENT: Final = 100
"""Pictures that are really drawn; the others differ from them behind their last byte."""


def main() -> None:
    """Run every way as often as asked for, by turns."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--large", type=int, default=400)
    parser.add_argument("--small", type=int, default=3_000)
    parser.add_argument("--flat", action="store_true")
    given = parser.parse_args()
    if given.flat:
        _flat()
        return
    found = []
    for size, count, drawn in (
        ("1.5 MB", given.large, functools.partial(draw, 1024)),
        ("38 kB", given.small, _small),
    ):
        found += _compared(size, count, drawn, given.rounds)
    where = save("packing", found)
    Console(width=150).print(table_of(pd.DataFrame(found), f"kept in {where}"))


def _compared(
    size: str, count: int, drawn: Callable[[int], bytes], rounds: int
) -> list[dict[str, Any]]:
    ways = _ways()
    costs: dict[str, list[Cost]] = {name: [] for name in ways}
    total = 0
    for _ in range(rounds):
        for name, way in track(ways.items(), f"{count:,} pictures of {size}"):
            with tempfile.TemporaryDirectory(prefix="packing-") as folder:
                data = Path(folder)
                with local.s3_server(data / "s3") as s3_url:
                    environment = local.s3_environment(s3_url)
                    total = _fill(environment, data, count, drawn)
                    costs[name].append(run(way(data), environment))
    ours = median_of(costs["this project"], lambda cost: cost.seconds)
    return [
        {
            "way": name,
            "picture": size,
            "images": count,
            "images/s": round(count / median_of(runs, lambda c: c.seconds), 1),
            "MB/s": round(total / 1e6 / median_of(runs, lambda c: c.seconds), 1),
            "seconds, least to most": spread(runs, lambda c: c.seconds),
            "CPU ms an image": round(median_of(runs, lambda c: c.cpu_seconds) / count * 1000, 1),
            "peak MB": round(median_of(runs, lambda c: c.peak_mb)),
            "speed of this project over it": round(median_of(runs, lambda c: c.seconds) / ours, 2),
        }
        for name, runs in costs.items()
    ]


_Way = Callable[[Path], Sequence[str | Path]]
"""A command for a folder with ``rows.parquet`` and ``urls.parquet``."""


def _own(name: str) -> _Way:
    return lambda data: [sys.executable, "-m", "benchmarks.packing_ways", name, data]


def _ways() -> dict[str, _Way]:
    def img2dataset(data: Path) -> Sequence[str | Path]:
        return [
            *(peer("img2dataset") / "img2dataset", "--url_list", data / "urls.parquet"),
            *("--input_format", "parquet", "--url_col", "url", "--caption_col", "prompt"),
            *("--output_format", "webdataset", "--output_folder", f"s3://{local.BUCKET}/i2d"),
            *("--disable_all_reencoding", "True", "--extract_exif", "False"),
            *("--processes_count", "2", "--thread_count", "16"),
            *("--number_sample_per_shard", str(_shard_rows(data))),
        ]

    def s5cmd(data: Path) -> Sequence[str | Path]:
        copy = f"{peer('s5cmd') / 's5cmd'} --endpoint-url $AWS_ENDPOINT_URL_S3 cp"
        bucket, disk = f"s3://{local.BUCKET}", data / "disk"
        there, back = f"'{bucket}/images/*' {disk}/", f"{disk}/ {bucket}/copy/"
        return ["sh", "-c", f"{copy} {there} >/dev/null && {copy} {back} >/dev/null"]

    return {
        "this project": _own("ours"),
        "webdataset.ShardWriter": _own("shard_writer"),
        "webdataset.TarWriter": _own("tar_writer"),
        "img2dataset": img2dataset,
        "s5cmd, copying only": s5cmd,
    }


def _shard_rows(data: Path) -> int:
    rows = pd.read_parquet(data / "rows.parquet", columns=["bytes"])
    return max(1, int(packing_ways.SHARD_BYTES // rows["bytes"].mean()))


def _fill(
    environment: dict[str, str], data: Path, count: int, drawn: Callable[[int], bytes]
) -> int:
    """Store the pictures and the tables that name them; gives the pictures' bytes."""
    store = ObjectStore(
        s3_client(
            endpoint_url=environment["AWS_ENDPOINT_URL_S3"],
            aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
            region_name=environment["AWS_DEFAULT_REGION"],
        ),
        local.BUCKET,
    )
    make = functools.partial(_stored, store, drawn)
    with ThreadPoolExecutor(8) as pool:
        rows = pd.DataFrame(pool.map(make, range(count)))
    rows.drop(columns="url").to_parquet(data / "rows.parquet")
    rows[["url", "prompt"]].to_parquet(data / "urls.parquet")
    return int(rows["bytes"].sum())


def _stored(store: ObjectStore, drawn: Callable[[int], bytes], number: int) -> dict[str, Any]:
    body = _drawn(drawn, number % DIFFERENT) + number.to_bytes(4)
    sha256 = hashlib.sha256(body).hexdigest()
    key = image_key(sha256, "png")
    store.put(key, body, content_type="image/png")
    return {
        "row_id": f"{number:064x}-0",
        "prompt": f"a paper fox by the river, number {number}",
        "seed": 1,
        "image_sha256": sha256,
        "image_key": key,
        "format": "png",
        "bytes": len(body),
        "split": "train",
        "url": store.client.generate_presigned_url(
            "get_object", Params={"Bucket": store.bucket, "Key": key}
        ),
    }


@functools.cache
def _drawn(drawn: Callable[[int], bytes], seed: int) -> bytes:
    return drawn(seed)


def _small(seed: int) -> bytes:
    fields = PictureFields(
        prompt="a paper fox by the river",
        negative_prompt="",
        width=1024,
        height=1024,
        seed=seed + 1,
        samples=1,
        noise_scale_start=7.5,
        noise_scale_end=7.5,
        noise_clip_std=2.5,
        watermark=False,
    )
    return draw_like_emulator(fields, 0, "png")


def _flat() -> None:
    found = []
    for count in FLAT:
        with tempfile.TemporaryDirectory(prefix="packing-") as folder:
            data = Path(folder)
            with local.s3_server(data / "s3") as s3_url:
                environment = local.s3_environment(s3_url)
                total = _fill(environment, data, count, _small)
                cost = run(_own("ours_twice")(data), environment)
        found.append(
            {
                "images": count,
                "MB": round(total / 1e6),
                "seconds": round(cost.seconds, 1),
                "peak MB": round(cost.peak_mb),
            }
        )
    where = save("packing_flat", found)
    Console().print(table_of(pd.DataFrame(found), f"WebDataset and Parquet at once; {where}"))


if __name__ == "__main__":
    if shutil.which("uv") is None:
        sys.exit("uv is needed: it installs the peers")
    main()
