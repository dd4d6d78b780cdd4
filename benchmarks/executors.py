"""What the fan-out of one partition costs on one machine, by executor and number of shards.

``uv run python -m benchmarks.executors [--rows 1600]``: real S3 server, real emulator, whole
processes from start to exit. Prints a table and writes ``artifacts/executors.json``.
"""

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from nanobanana_pipeline.cli.profile import dagster_home
from nanobanana_pipeline.local import local_profile

SHARDS = (1, 4, 16)
EXECUTORS = ("in_process", "multiprocess", "forkserver")
LATENCY = "0.2:0.6"
CAP = 10
ARTIFACTS = Path("artifacts")


def main() -> None:
    """Run every combination once, on seeds of its own, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1600)
    rows = parser.parse_args().rows
    data = Path(tempfile.mkdtemp(prefix="executors-"))
    table = data / "bench.csv"
    table.write_text("prompt\n" + "".join(f"a picture of the number {n}\n" for n in range(rows)))
    found = []
    with local_profile(data, emulator=["--latency", LATENCY, "--cap", str(CAP)]) as profile:
        environment = {**os.environ, **profile.environment, "DAGSTER_HOME": str(dagster_home(data))}
        seeds = range(1, len(SHARDS) * len(EXECUTORS) + 1)
        # One row of each seed, so that set and partitions exist before the clock runs.
        prepare = [sys.executable, "-m", "dagster_nanobanana.materialize_command", "bench"]
        prepare += ["--table", str(table)]
        prepare += [part for seed in seeds for part in ("--seed", str(seed))]
        prepare += ["--config", json.dumps({"width": 1024, "height": 1024, "limit": 1})]
        subprocess.run(prepare, env=environment, check=True, stdout=subprocess.DEVNULL)  # noqa: S603
        for seed, (executor, shards) in zip(
            seeds, ((e, s) for e in EXECUTORS for s in SHARDS), strict=True
        ):
            found.append(_measure(environment, executor, shards, seed, rows))
            Console().print(found[-1])
    ARTIFACTS.mkdir(exist_ok=True)
    (ARTIFACTS / "executors.json").write_text(json.dumps(found, indent=1))
    _show(found, rows)


def _measure(
    environment: dict[str, str], executor: str, shards: int, seed: int, rows: int
) -> dict[str, Any]:
    config = {"shard_size": math.ceil(rows / shards)}
    command = [
        *(sys.executable, "-m", "dagster", "asset", "materialize"),
        *("-m", "benchmarks.executor_definitions", "--select", "generated_images"),
        *("--partition", f"bench|{seed}"),
        *("--config-json", json.dumps({"ops": {"generated_images": {"config": config}}})),
    ]
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(  # noqa: S603
        command,
        env={**environment, "BENCHMARK_EXECUTOR": executor},
        check=False,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "executor": executor,
        "shards": shards,
        "ok": done.returncode == 0,
        "wall_seconds": round(time.monotonic() - start, 1),
        # A fork server's children are nobody's: the system does not add them to ours.
        "cpu_seconds": None if executor == "forkserver" else round(cpu, 1),
    }


def _show(found: list[dict[str, Any]], rows: int) -> None:
    floor = rows * sum(map(float, LATENCY.split(":"))) / 2 / CAP
    table = Table(title=f"{rows:,} requests; the provider alone needs {floor:.0f} s")
    for name in ("executor", "shards", "wall s", "over the provider", "CPU s", "all settled"):
        table.add_column(name)
    for row in found:
        table.add_row(
            row["executor"],
            str(row["shards"]),
            f"{row['wall_seconds']:.1f}",
            f"{row['wall_seconds'] / floor:.2f}x",
            "not seen" if row["cpu_seconds"] is None else f"{row['cpu_seconds']:.1f}",
            "yes" if row["ok"] else "no",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
