"""What an image costs in CPU and memory, beside img2dataset and beside the least that is possible.

``uv run python -m benchmarks cost_per_image [--rounds 3] [--small 300] [--large 100]``

The provider answers at once with pictures that were drawn beforehand, of 1.9 MB and 7.4 MB. Ours is
`nanobanana generate`: submit, ledger, download, verify, hash, PUT, settle, manifest. img2dataset
downloads the same pictures, hashes them, and writes tars to the same S3 server. The floor has no
logic (`benchmarks.floor`). The whole process counts; what it costs to start is that of one image.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import pandas as pd
from rich.console import Console
from rich.progress import track

from benchmarks.commands import generate, prompt_table
from benchmarks.measured import Cost, median_of, run, save, spread
from benchmarks.peers import peer
from benchmarks.provider_of_files import FilesProvider, files_provider
from nanobanana_pipeline import local
from nanobanana_pipeline.cli.show import table_of

LEVELS: Final = 10
SLOTS: Final = 16
OURS, IMG2DATASET, FLOOR = "this project", "img2dataset", "obstore, no logic"
_Way = Callable[[Path, FilesProvider, int, int], Sequence[str | Path]]
"""A command that brings so many pictures of a side; with a folder of its own."""


def main() -> None:
    """Run every way as often as asked for, by turns."""
    parser = argparse.ArgumentParser(prog="cost_per_image")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--small", type=int, default=300, help="pictures of 1.9 MB")
    parser.add_argument("--large", type=int, default=100, help="pictures of 7.4 MB")
    given = parser.parse_args()
    found = [
        *_compared(1024, given.small, given.rounds),
        *_compared(2048, given.large, given.rounds),
    ]
    where = save("cost_per_image", found)
    Console(width=160).print(table_of(pd.DataFrame(found), f"kept in {where}"))


def _compared(side: int, count: int, rounds: int) -> list[dict[str, Any]]:
    ways: dict[str, _Way] = {OURS: _ours, IMG2DATASET: _img2dataset, FLOOR: _floor}
    costs: dict[str, list[Cost]] = {name: [] for name in ways}
    starts: dict[str, list[Cost]] = {name: [] for name in ways}
    size = 0
    for _ in track(range(rounds), f"{count} pictures of {side}²"):
        for name, way in ways.items():
            with tempfile.TemporaryDirectory(prefix="cost-") as folder:
                data = Path(folder)
                with (
                    local.s3_server(data / "s3") as s3_url,
                    files_provider(data, side=side, levels=LEVELS) as provider,
                ):
                    environment = {
                        **local.s3_environment(s3_url),
                        **provider.environment,
                        "NANOBANANA_SLOTS": str(SLOTS),
                    }
                    starts[name].append(run(way(data, provider, 1, side), environment))
                    costs[name].append(run(way(data, provider, count, side), environment))
                    size = provider.facts()["bytes"]
    cpu = {name: _beyond_start(costs[name], starts[name], count) for name in ways}
    return [
        {
            "way": name,
            "image": f"{size / 1e6:.1f} MB",
            "images": count,
            "images/s": round(count / median_of(runs, lambda c: c.seconds), 1),
            "seconds, least to most": spread(runs, lambda c: c.seconds),
            "CPU ms an image": round(median_of(runs, lambda c: c.cpu_seconds) / count * 1e3, 1),
            "beyond its start": round(cpu[name], 1),
            "over the floor": round(cpu[name] / cpu[FLOOR], 2),
            "start, CPU s": round(median_of(starts[name], lambda c: c.cpu_seconds), 2),
            "peak MB": round(median_of(runs, lambda c: c.peak_mb)),
        }
        for name, runs in costs.items()
    ]


def _beyond_start(costs: Sequence[Cost], starts: Sequence[Cost], count: int) -> float:
    """CPU ms that each further image costs."""
    whole, start = (median_of(runs, lambda cost: cost.cpu_seconds) for runs in (costs, starts))
    return (whole - start) / (count - 1) * 1e3


def _ours(data: Path, _: FilesProvider, count: int, side: int) -> Sequence[str | Path]:
    arguments = generate(prompt_table(data, f"bench-{count}", count), side)
    nanobanana = (sys.executable, "-c", "from nanobanana_pipeline.cli import app; app()")
    return [*nanobanana, *arguments[1:]]


def _img2dataset(data: Path, provider: FilesProvider, count: int, _: int) -> Sequence[str | Path]:
    urls = data / f"urls-{count}.parquet"
    pd.DataFrame({"url": [provider.picture(n) for n in range(count)]}).to_parquet(urls)
    return [
        *(peer("img2dataset") / "img2dataset", "--url_list", urls),
        *("--input_format", "parquet", "--url_col", "url", "--output_format", "webdataset"),
        *("--output_folder", f"s3://{local.BUCKET}/i2d-{count}", "--compute_hash", "sha256"),
        *("--disable_all_reencoding", "True", "--extract_exif", "False"),
        *("--processes_count", "2", "--thread_count", str(SLOTS)),
        *("--number_sample_per_shard", str(max(1, count // 4))),
    ]


def _floor(_: Path, provider: FilesProvider, count: int, __: int) -> Sequence[str | Path]:
    python = peer("obstore") / "python"
    return [python, "-m", "benchmarks.floor", provider.root, local.BUCKET, str(count)]


if __name__ == "__main__":
    main()
