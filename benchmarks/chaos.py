"""One table while everything goes wrong at once, and where each of its cells ended.

``uv run python -m benchmarks.chaos [--requests 1000] [--seed N]``

The provider answers 20 % of the POSTs with 429, 10 % with 500 before it has bought anything and
10 % after, cuts 5 % of its answers off, and gives 5 % of the pictures bad bytes: half of them once,
half of them for ever. Meanwhile S3 is killed and started again twice, and the worker is killed five
times, all by SIGKILL. Then it is launched until nothing is left to do. Prints every cell by state
and reason, writes ``artifacts/chaos.json``, and exits with 1 if anything was bought twice or is
unaccounted for.
"""

import argparse
import contextlib
import json
import os
import random
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from benchmarks.launches import (
    LEASE_SECONDS,
    SLOTS,
    Site,
    keep_prompts,
    launch,
    manifest_of,
    read_entries,
    request_keys,
    servers,
    start,
    wrong_images,
)
from nanobanana_pipeline import local
from nanobanana_pipeline.generation.manifest.manifest import CellState
from nanobanana_pipeline.ledger import State
from nanobanana_pipeline.webhooks.inbox import Inbox, attempt_id

MOODS: Final = {
    "rate_limited": 0.2,
    "http_500_before": 0.1,
    "http_500_after": 0.1,
    "lost_answer_after": 0.05,
    "truncated_image": 0.025,
    "corrupt_chunk": 0.025,
}
EMULATOR: Final = (
    *("--latency", "0.2:0.6", "--cap", str(SLOTS), "--retry-after", "0.2"),
    *(part for name, rate in MOODS.items() for part in ("--mood", f"{name}={rate}")),
)
NAME: Final = "chaos"
POLL_SECONDS: Final = 0.3
S3_AWAY_SECONDS: Final = 2.0
LAST_EVENT: Final = 0.8
"""Of all that will be bought, when the last thing is killed: something must be left to go wrong."""
LAUNCHES: Final = 6
LAUNCH_SECONDS: Final = 900
ARTIFACTS: Final = Path("artifacts")


def main() -> None:
    """Let it all go wrong, count, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="chaos-") as data:
        found = run(Path(data), args.requests, s3_restarts=2, kills=5, seed=args.seed)
    ARTIFACTS.mkdir(exist_ok=True)
    (ARTIFACTS / "chaos.json").write_text(json.dumps(found, indent=1) + "\n")
    table = Table(
        "state", "sold", "cells", "reason", title=f"{args.requests:,} requests, seed {args.seed}"
    )
    for row in found["cells"]:
        table.add_row(
            row["state"], "yes" if row["sold"] else "no", f"{row['cells']:,}", row["reason"]
        )
    Console().print(table, found["totals"])
    if found["problems"]:
        sys.exit("\n".join(found["problems"]))


def run(
    data: Path,
    requests: int,
    *,
    s3_restarts: int,
    kills: int,
    seed: int,
    site_type: type[Site] = Site,
    options: Sequence[str] = EMULATOR,
) -> dict[str, Any]:
    """Launch one table while servers and workers are killed, then to the end.

    Args:
        data: an empty folder.
        requests: rows of the table.
        s3_restarts: how often the S3 server is killed and started again.
        kills: how often the worker is.
        seed: of the instants and of the provider's moods.
        site_type: whose provider.
        options: of its server.

    Returns:
        ``totals`` (what: count), ``cells`` (state, reason, whether it was sold, how many) and
        ``problems`` (a sentence each; none if every cell is accounted for).

    Raises:
        RuntimeError: the launches do not come to an end.
    """
    rng = random.Random(seed)  # noqa: S311 - not for secrets
    events = ["kill the worker"] * kills + ["restart S3"] * s3_restarts
    rng.shuffle(events)
    moments = sorted(rng.uniform(0.02, LAST_EVENT) for _ in events)
    with (
        contextlib.closing(_S3(data / "s3")) as s3,
        servers(data, s3.url, [*options, "--seed", str(seed)], site_type) as place,
    ):
        store = place.store()
        keep_prompts(store, data, NAME, [f"picture {number}" for number in range(requests)])
        workers = _Workers(place)
        happened: Counter[str] = Counter()
        for event, moment in zip(events, moments, strict=True):
            if not workers.run_until_bought(int(moment * requests)):
                break
            happened[event] += 1
            if event == "restart S3":
                s3.restart()
            else:
                workers.kill()
        workers.run_to_the_end()
        found = _account(place, request_keys(place, NAME))
    problems = found["problems"]
    if happened.total() < len(events):
        problems.append(f"all was bought after {happened.total()} of {len(events)} kills")
    totals = {
        "requests": requests,
        "worker killed": happened["kill the worker"],
        "S3 restarted": happened["restart S3"],
        "launches": workers.launches,
        **found["totals"],
    }
    return {**found, "seed": seed, "moods": MOODS, "totals": totals}


class _S3:
    """An S3 server that can be killed, and goes on with the same data at the same address."""

    def __init__(self, data: Path) -> None:
        self._data = data
        self._server = contextlib.ExitStack()
        self.url = self._start()

    def restart(self) -> None:
        """Kill it, and start it again a while later."""
        os.kill(self._pid(), signal.SIGKILL)
        self.close()
        time.sleep(S3_AWAY_SECONDS)
        if (url := self._start()) != self.url:
            raise RuntimeError(f"S3 came back at {url} and not at {self.url}")

    def close(self) -> None:
        self._server.close()

    def _start(self) -> str:
        return self._server.enter_context(local.s3_server(self._data))

    def _pid(self) -> int:
        """The process that was started with our folder, as Linux tells it."""
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                if f"-dir={self._data}".encode() in (process / "cmdline").read_bytes().split(b"\0"):
                    return int(process.name)
        raise RuntimeError(f"nothing serves {self._data}")


class _Workers:
    """One worker after the other, on the same partition."""

    def __init__(self, place: Site) -> None:
        self._place = place
        self._worker: ForkServerProcess | None = None
        self.launches = 0

    def run_until_bought(self, count: int) -> bool:
        """Keep a worker running until so much was bought; False if it came to an end before."""
        deadline = time.monotonic() + LAUNCH_SECONDS
        worker = self._worker or self._start()
        while self._place.admin("purchases")["total"] < count:
            worker.join(POLL_SECONDS)
            if worker.exitcode is not None:
                _check(worker)
                self._worker = None
                return False
            if time.monotonic() > deadline:
                raise RuntimeError(f"a launch took more than {LAUNCH_SECONDS} s")
        return True

    def kill(self) -> None:
        if self._worker is not None:
            self._worker.kill()
            self._worker.join()
            self._worker = None

    def run_to_the_end(self) -> None:
        """Launch until a launch finds nothing left to do."""
        store = self._place.store()
        before: Mapping[str, int] = {}
        for _ in range(LAUNCHES):
            worker = self._worker or self._start()
            worker.join(LAUNCH_SECONDS)
            _check(worker)
            self._worker = None
            cells = manifest_of(store, NAME).cells
            if cells == before and not cells.get(CellState.PENDING, 0):
                return
            before = cells
            time.sleep(LEASE_SECONDS)
        raise RuntimeError("the launches do not come to an end")

    def _start(self) -> ForkServerProcess:
        self.launches += 1
        self._worker = start(launch, self._place, NAME, f"chaos-{self.launches}")
        return self._worker


def _check(worker: ForkServerProcess) -> None:
    if worker.exitcode != 0:
        raise RuntimeError(f"a worker that nobody killed ended with {worker.exitcode}")


def _account(place: Site, keys: Sequence[str]) -> dict[str, Any]:
    """Lay the provider's books beside the ledger, and read every image again."""
    store = place.store()
    entries = read_entries(store, keys)
    record = place.admin("purchases")
    sold = {track_id for group in record["groups"] for track_id in group["track_ids"]}
    inbox = Inbox(store)
    cells: Counter[tuple[str, bool, str]] = Counter()
    told = 0
    for entry in entries:
        names = {attempt_id(entry.request_key, attempt.nonce) for attempt in entry.attempts}
        bought = names & sold
        sold -= names
        cells[str(entry.state), bool(bought), _plain(entry.reason)] += 1
        if entry.state is State.IN_DOUBT:
            told += any(map(inbox.has_mail, bought))
    answered = place.admin("stats")["calls"]["text2img"].get("200", 0)
    wrong = wrong_images(store, entries)
    ended = {State.SETTLED, State.IN_DOUBT, State.LOST}
    totals = {
        "bought": record["total"],
        "of them answered with an error or not at all": record["total"] - answered,
        "bought twice": record["bought_twice"],
        "cells that are neither settled, in doubt nor lost": len(keys)
        - sum(entry.state in ended for entry in entries),
        "sold, and unknown to the ledger": len(sold),
        "in doubt though a webhook came": told,
        "images read again": sum(len(entry.images) for entry in entries),
        "images that are not what their hash says": len(wrong),
    }
    never = [
        "bought twice",
        "cells that are neither settled, in doubt nor lost",
        "sold, and unknown to the ledger",
        "in doubt though a webhook came",
        "images that are not what their hash says",
    ]
    return {
        "totals": totals,
        "cells": [
            {"state": state, "sold": was_sold, "cells": count, "reason": reason}
            for (state, was_sold, reason), count in sorted(cells.items())
        ],
        "problems": [
            f"{what}: {totals[what]}, and it should be 0" for what in never if totals[what]
        ],
    }


def _plain(reason: str | None) -> str:
    """A reason without what differs from cell to cell."""
    return re.sub(r"https?://\S+|\bchaos-\d+", "…", reason or "")


if __name__ == "__main__":
    main()
