"""What Dagster adds to the bare engine: wall time at the provider's pace, and a fixed cost.

``uv run python -m benchmarks dagsters_toll [--requests 1632] [--rounds 3] [--latency 0.2:0.6]``

The same table through `dagster_nanobanana.materialize_command` and through `nanobanana generate`,
each as a whole process with servers of its own, then both again with nothing left to buy: what
Dagster takes longer then is its fixed cost. A shorter latency than the provider's makes its share
larger.
"""

import argparse
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import pandas as pd
from rich.console import Console
from rich.progress import track

from benchmarks.commands import generate, materialize, prompt_table
from benchmarks.measured import Cost, median_of, save, spread
from benchmarks.watched import run_watched
from nanobanana_pipeline.cli.profile import dagster_home
from nanobanana_pipeline.cli.show import table_of
from nanobanana_pipeline.local import local_profile

BARE, DAGSTER = "bare engine", "through Dagster"
WAYS: Final[Mapping[str, Callable[[Path], Sequence[str | Path]]]] = {
    BARE: generate,
    DAGSTER: materialize,
}


def main() -> None:
    """Run both ways as often as asked for, by turns."""
    parser = argparse.ArgumentParser(prog="dagsters_toll")
    parser.add_argument("--requests", type=int, default=1632)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--latency", default="0.2:0.6")
    given = parser.parse_args()
    first: dict[str, list[Cost]] = {name: [] for name in WAYS}
    again: dict[str, list[Cost]] = {name: [] for name in WAYS}
    for _ in track(range(given.rounds), f"{given.requests} requests"):
        for name in WAYS:
            costs = _once(name, given.requests, given.latency)
            first[name].append(costs[0])
            again[name].append(costs[1])
    found = [_told(name, given.requests, first, again) for name in WAYS]
    where = save("dagsters_toll", {"latency": given.latency, "ways": found})
    title = f"provider's latency {given.latency} s, 10 slots; kept in {where}"
    Console(width=160).print(table_of(pd.DataFrame(found), title))


def _once(name: str, count: int, latency: str) -> tuple[Cost, Cost]:
    with tempfile.TemporaryDirectory(prefix="toll-") as folder:
        data = Path(folder)
        with local_profile(data, emulator=["--cap", "10", "--latency", latency]) as profile:
            home = {"DAGSTER_HOME": str(dagster_home(data))}
            environment = {**os.environ, **profile.environment, **home}
            command = WAYS[name](prompt_table(data, "toll", count))
            first = run_watched(command, environment).cost
            return first, run_watched(command, environment).cost


def _told(
    name: str, count: int, first: Mapping[str, list[Cost]], again: Mapping[str, list[Cost]]
) -> dict[str, Any]:
    wall, idle = (
        {way: median_of(costs, lambda cost: cost.seconds) for way, costs in found.items()}
        for found in (first, again)
    )
    return {
        "way": name,
        "requests": count,
        "seconds": round(wall[name], 1),
        "least to most": spread(first[name], lambda cost: cost.seconds),
        "over the bare engine": f"{wall[name] / wall[BARE] - 1:+.1%}",
        "CPU s": round(median_of(first[name], lambda cost: cost.cpu_seconds), 1),
        "peak MB": round(median_of(first[name], lambda cost: cost.peak_mb)),
        "nothing to do, s": round(idle[name], 1),
        "nothing to do, CPU s": round(median_of(again[name], lambda c: c.cpu_seconds), 1),
        "fixed cost, s": round(idle[name] - idle[BARE], 1),
    }


if __name__ == "__main__":
    main()
