"""What the bucket check costs, and how often it finds a server that lets two writers win.

`uv run python -m benchmarks.bucket_check --races 1000` races at length on SeaweedFS;
`--runs 100` runs the default check so often through a proxy that lets 1 % of the losing conditional
writes through, and says how many runs caught it.
"""

import argparse
import os
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.console import Console

from nanobanana_pipeline import local
from nanobanana_pipeline.storage import ObjectStore, s3_client
from nanobanana_pipeline.storage.bucket_check import ROUNDS, run_check
from tests.storage.breaking_proxy import breaking, lets_through

AT_ONCE = 3
"""Runs through the proxy: they mostly wait for the server."""


def main() -> None:
    """Measure what the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--races", type=int, default=0)
    parser.add_argument("--runs", type=int, default=0)
    parser.add_argument("--share", type=float, default=0.01)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, local.s3_server(Path(folder) / "s3") as url:
        os.environ.update(local.s3_environment(url))
        seconds = [_check(f"alone-{number}", ROUNDS)[0] for number in range(5)]
        Console().print(
            f"default check, {ROUNDS} rounds: {statistics.median(seconds):.1f} s", seconds
        )
        if given.races:
            took, faults = _check("long", given.races)
            Console().print(f"{given.races:,} rounds: {took:.0f} s, {faults or 'all held'}")
        if given.runs:
            _through_a_proxy(given.runs, given.share)


def _check(prefix: str, rounds: int) -> tuple[float, list[str]]:
    began = time.monotonic()
    (verdict,) = run_check([ObjectStore(s3_client(), local.BUCKET, prefix)], rounds)
    return round(time.monotonic() - began, 1), verdict.faults


def _through_a_proxy(runs: int, share: float) -> None:
    def caught(number: int) -> bool:
        store = ObjectStore(s3_client(), local.BUCKET, f"run-{number}")
        with breaking(store, lets_through(share)) as seen:
            (verdict,) = run_check([seen], ROUNDS)
        Console().print(number, bool(verdict.faults), verdict.seconds)
        return bool(verdict.faults)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = sum(pool.map(caught, range(runs)))
    Console().print(f"{found} of {runs} runs caught a server that lets {share:.1%} through")


if __name__ == "__main__":
    main()
