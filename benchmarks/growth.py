"""How time, memory, S3 calls and Dagster's storage grow with the cells of a partition.

``uv run python -m benchmarks growth [--sizes 1000,10000] [--rounds 1]``

Flat pictures of 1024² from a provider that answers at once: what is left is this project's own
work. Each size is launched through Dagster into an empty bucket, launched again with nothing to do,
and audited. The slope is that of the logarithms, between the smallest size and the largest.
"""

import argparse
import math
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any, Final

import pandas as pd
from rich.console import Console
from rich.progress import track

from benchmarks.commands import audit, materialize, prompt_table
from benchmarks.measured import save
from benchmarks.provider_of_files import files_provider
from benchmarks.watched import Watched, run_watched
from nanobanana_pipeline import local
from nanobanana_pipeline.cli.profile import dagster_home
from nanobanana_pipeline.cli.show import table_of

SLOTS: Final = 16


def main() -> None:
    """Run every size as often as asked for."""
    parser = argparse.ArgumentParser(prog="growth")
    parser.add_argument("--sizes", default="1000,10000")
    parser.add_argument("--rounds", type=int, default=1)
    given = parser.parse_args()
    sizes = sorted(map(int, given.sizes.split(",")))
    rounds = [
        row for _ in range(given.rounds) for size in track(sizes, "growing") for row in _steps(size)
    ]
    found = pd.DataFrame(rounds).groupby(["step", "cells"], sort=False, as_index=False).median()
    slopes = {step: _slope(rows) for step, rows in found.groupby("step", sort=False)}
    where = save("growth", {"rounds": rounds, "slope of seconds": slopes})
    Console(width=160).print(table_of(found.round(2), f"medians; kept in {where}"))
    Console().print("log-log slope of seconds:", slopes)


def _steps(cells: int) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory(prefix="growth-") as folder:
        data = Path(folder)
        with (
            local.s3_server(data / "s3") as s3_url,
            files_provider(data) as provider,
        ):
            home = dagster_home(data)
            environment = {
                **os.environ,
                **local.s3_environment(s3_url),
                **provider.environment,
                "NANOBANANA_SLOTS": str(SLOTS),
                "DAGSTER_HOME": str(home),
            }
            launch = materialize(prompt_table(data, "growth", cells))
            first = run_watched(launch, environment)
            stored = _bytes_under(home)
            again = run_watched(launch, environment)
            audited = run_watched(audit(), environment)
            if provider.facts()["bought"] != cells:
                raise SystemExit(f"{provider.facts()['bought']} were bought for {cells} cells")
    storage = {"Dagster's storage, bytes a cell": round(stored / cells, 1)}
    return [
        _row("launch", cells, first, s3_url) | storage,
        _row("launch again", cells, again, s3_url),
        _row("audit", cells, audited, s3_url),
    ]


def _row(step: str, cells: int, found: Watched, s3_url: str) -> dict[str, Any]:
    calls = sum(found.calls_to(s3_url).values())
    return {
        "step": step,
        "cells": cells,
        "seconds": found.cost.seconds,
        "CPU s": found.cost.cpu_seconds,
        "peak MB": found.cost.peak_mb,
        "S3 calls": calls,
        "S3 calls a cell": calls / cells,
    }


def _bytes_under(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _slope(rows: pd.DataFrame) -> float:
    """Of the logarithms: 1 is in proportion, 0 the same whatever the size."""
    sizes = [math.log(cells) for cells in rows["cells"]]
    times = [math.log(seconds) for seconds in rows["seconds"]]
    if len(sizes) == 1:
        return math.nan
    return round(statistics.linear_regression(sizes, times).slope, 3)


if __name__ == "__main__":
    main()
