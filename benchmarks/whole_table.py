"""A whole prompt table through Dagster, twice, on real local servers.

``uv run python -m benchmarks.whole_table ../shared/data/PartiPrompts.tsv``

Launches every seed, launches the same again (which must buy nothing), reads every manifest, ledger
entry and image back, and prints what it took. With ``--kill-after S`` the first launch is killed
with SIGKILL after so many seconds and launched again. Writes ``artifacts/whole_table.json``.
"""

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import requests
from rich.console import Console

from nanobanana_pipeline.cli.profile import dagster_home
from nanobanana_pipeline.generation.manifest.manifest import read_all_current, read_manifest
from nanobanana_pipeline.ledger import Entry
from nanobanana_pipeline.local import LocalProfile, local_profile
from nanobanana_pipeline.settings import Settings
from nanobanana_pipeline.storage import ObjectStore
from nanobanana_pipeline.storage.bucket import open_bucket

PROMPT_SET = "table"
SHORTEST, LONGEST, CAP = 1.0, 3.0, 10
ARTIFACTS = Path("artifacts")


def main() -> None:
    """Run it and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table")
    parser.add_argument("--seeds", default="1,2")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--kill-after", type=float)
    args = parser.parse_args()
    data = Path(tempfile.mkdtemp(prefix="whole-table-"))
    emulator = ["--latency", f"{SHORTEST}:{LONGEST}", "--cap", str(CAP)]
    with local_profile(data, emulator=emulator) as profile:
        os.environ.update(profile.environment)
        config = {"width": 1024, "height": 1024} | ({"limit": args.limit} if args.limit else {})
        command = [
            *(sys.executable, "-m", "dagster_nanobanana.materialize_command", PROMPT_SET),
            *("--table", args.table, "--config", json.dumps(config)),
            *(part for seed in args.seeds.split(",") for part in ("--seed", seed)),
        ]
        environment = {**os.environ, "DAGSTER_HOME": str(dagster_home(data))}
        found: dict[str, Any] = {}
        if args.kill_after:
            found["killed"] = _launch(command, environment, profile, args.kill_after)
        found["first"] = _launch(command, environment, profile)
        found["again"] = _launch(command, environment, profile)
        found["share of the ceiling by seed"] = _shares(profile)
        found["read back"] = _read_back(open_bucket(Settings.load()))
    ARTIFACTS.mkdir(exist_ok=True)
    (ARTIFACTS / "whole_table.json").write_text(json.dumps(found, indent=1))
    Console().print(found)


def _launch(
    command: list[str],
    environment: dict[str, str],
    profile: LocalProfile,
    kill_after: float | None = None,
) -> dict[str, Any]:
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    process = subprocess.Popen(command, env=environment)  # noqa: S603 - our own command
    try:
        process.wait(kill_after)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    record = requests.get(f"{_root(profile)}/admin/purchases", timeout=60).json()
    return {
        "exit": process.returncode,
        "wall seconds": round(time.monotonic() - start, 1),
        "cpu seconds": round(
            after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1
        ),
        "peak memory MB": round(after.ru_maxrss / 1024),
        "bought so far": record["total"],
        "bought twice so far": record["bought_twice"],
    }


def _shares(profile: LocalProfile) -> dict[str, Any]:
    """Images a second, from first to last purchase, over what the cap and the latency allow."""
    record = requests.get(f"{_root(profile)}/admin/purchases", timeout=60).json()
    times: dict[int, list[float]] = {}
    for group in record["groups"]:
        times.setdefault(group["seed"], []).extend(group["times"])
    ceiling = CAP / ((SHORTEST + LONGEST) / 2)
    found = {}
    for seed, moments in sorted(times.items()):
        pace = (len(moments) - 1) / (max(moments) - min(moments))
        found[str(seed)] = {"images/s": round(pace, 2), "share": round(pace / ceiling, 3)}
    return found


def _read_back(store: ObjectStore) -> dict[str, Any]:
    """Every cell, every image's bytes under their hash, every ledger entry."""
    cells: Counter[str] = Counter()
    images = size = 0
    for current in read_all_current(store):
        cells.update(current.cells)
        for row in read_manifest(store, current.manifest).itertuples():
            if row.state == "settled":
                body = store.open_url(str(row.image_uri))
                if hashlib.sha256(body).hexdigest() != row.image_sha256:
                    raise SystemExit(f"{row.image_uri} is not what its name says")
                images, size = images + 1, size + len(body)
    states: Counter[str] = Counter()
    for key in store.keys("ledger/"):
        entry = store.get(key)
        if entry is not None:
            states[Entry.from_json(entry.body, key).state.value] += 1
    return {"cells": dict(cells), "images": images, "bytes": size, "ledger": dict(states)}


def _root(profile: LocalProfile) -> str:
    return profile.base_url.partition("/api/")[0]


if __name__ == "__main__":
    main()
