"""What the bucket check costs, and how often it finds a server that lets two writers win.

`uv run python -m benchmarks.bucket_check --races 1000` races at length on SeaweedFS;
`--runs 100` runs the default check so often through a proxy that lets 1 % of the losing conditional
writes through, and says how many runs caught it; `--server radosgw` takes Ceph's gateway in
place of SeaweedFS, `--versioned` switches the bucket's versioning on, and `--bare-etags` has
If-Match sent without quotes.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.radosgw import radosgw
from nanobanana_pipeline import local
from nanobanana_pipeline.storage import ObjectStore, s3_client
from nanobanana_pipeline.storage.bucket_check import ROUNDS, run_check
from tests.storage.breaking_proxy import breaking, lets_through

AT_ONCE = 3
"""Runs through the proxy: they mostly wait for the server."""
SERVERS: dict[str, Callable[[Path], AbstractContextManager[str]]] = {
    "seaweedfs": local.s3_server,
    "radosgw": radosgw,
}


def main() -> None:
    """Measure what the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--races", type=int, default=0)
    parser.add_argument("--runs", type=int, default=0)
    parser.add_argument("--share", type=float, default=0.01)
    parser.add_argument("--server", choices=SERVERS, default="seaweedfs")
    parser.add_argument("--versioned", action="store_true")
    parser.add_argument("--bare-etags", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, SERVERS[given.server](Path(folder) / "s3") as url:
        os.environ.update(local.s3_environment(url))
        client = s3_client()
        if given.bare_etags:
            client.meta.events.register("before-call.s3.PutObject", _leave_quotes_out)
        if given.versioned:
            client.put_bucket_versioning(
                Bucket=local.BUCKET, VersioningConfiguration={"Status": "Enabled"}
            )
        default = [
            _check(ObjectStore(client, local.BUCKET, f"alone-{number}"), ROUNDS)
            for number in range(5)
        ]
        seconds = [each for each, _ in default]
        Console().print(
            f"default check, {ROUNDS} rounds: {statistics.median(seconds):.1f} s",
            *(seconds, default[-1][1] or "all held"),
        )
        if given.races:
            took, faults = _check(ObjectStore(client, local.BUCKET, "long"), given.races)
            Console().print(f"{given.races:,} rounds: {took:.0f} s, {faults or 'all held'}")
        if given.runs:
            _through_a_proxy(given.runs, given.share)


def _leave_quotes_out(params: dict[str, Any], **_: object) -> None:
    if "If-Match" in params["headers"]:
        params["headers"]["If-Match"] = params["headers"]["If-Match"].strip('"')


def _check(store: ObjectStore, rounds: int) -> tuple[float, list[str]]:
    began = time.monotonic()
    (verdict,) = run_check([store], rounds, copies=True)
    return round(time.monotonic() - began, 1), [*verdict.faults, *verdict.warnings]


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
