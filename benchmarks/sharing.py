"""Several processes on one account: how much of its cap they use, and how alike their shares are.

    uv run python -m benchmarks.sharing [--processes 3] [--cap 15] [--seconds 240]

Each process launches a prompt set of its own against one emulator, and knows nothing of the others;
they start 5 seconds apart. After a warm-up it is counted: the use of the cap (mean in flight over
cap), the share of generation calls answered 429, and each process's purchases.
"""

import argparse
import logging
import multiprocessing
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.progress import track

from benchmarks.launches import SEED, SMALL, Site, keep_prompts, site
from nanobanana_pipeline.generation.launch_steps import plan, settle_shard
from nanobanana_pipeline.generation.planning.planner import Launch

STAGGER_SECONDS: Final = 5
WARM_UP_SECONDS: Final = 60
PROMPTS: Final = 5000
LATENCY: Final = "1:3"


def main() -> None:
    """Run the processes, and print what they came to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--cap", type=int, default=15)
    parser.add_argument("--seconds", type=int, default=240, help="counted, after the warm-up")
    given = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        site(Path(folder), ["--cap", str(given.cap), "--latency", LATENCY]) as place,
    ):
        names = [f"worker-{number}" for number in range(given.processes)]
        for name in names:
            prompts = [f"{name}, animal number {number}" for number in range(PROMPTS)]
            keep_prompts(place.store(), Path(folder), name, prompts)
        context = multiprocessing.get_context("spawn")
        workers = [context.Process(target=_work, args=(place, n, given.cap)) for n in names]
        for worker in workers:
            worker.start()
            time.sleep(STAGGER_SECONDS)
        try:
            _wait(WARM_UP_SECONDS, "warming up")
            before = _books(place)
            _wait(given.seconds, "counting")
            _print(before, _books(place), given)
        finally:
            for worker in workers:
                worker.kill()
                worker.join()


def _work(place: Site, name: str, slots: int) -> None:
    logging.disable(logging.WARNING)
    store, account = place.store(), replace(place.account(), webhooks=None, slots=slots)
    made = plan(store, account, Launch(name, SEED, run_id=name, parameters=SMALL))
    settle_shard(store, account, made.run_id, made.shards[0])


def _books(place: Site) -> dict[str, Any]:
    """What the emulator says at this moment."""
    stats = place.admin("stats")
    groups = place.admin("purchases")["groups"]
    return {
        "calls": sum(stats["calls"].get("text2img", {}).values()),
        "rate limited": stats["rate_limited"],
        "bought": Counter(group["prompt"].partition(",")[0] for group in groups),
    }


def _wait(seconds: int, what: str) -> None:
    for _ in track(range(seconds), what, transient=True):
        time.sleep(1)


def _print(before: dict[str, Any], after: dict[str, Any], given: argparse.Namespace) -> None:
    console = Console()
    bought = after["bought"] - before["bought"]
    calls = after["calls"] - before["calls"]
    refused = after["rate limited"] - before["rate limited"]
    mean_latency = sum(map(float, LATENCY.split(":"))) / 2
    used = bought.total() * mean_latency / (given.cap * given.seconds)
    console.print(f"use of the cap of {given.cap}: {used:.2f}")
    console.print(f"429s: {refused / calls:.3f} of {calls:,} calls")
    console.print(f"bought by each: {dict(bought)}")
    console.print(f"smallest share over largest: {min(bought.values()) / max(bought.values()):.2f}")


if __name__ == "__main__":
    main()
