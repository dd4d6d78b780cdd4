"""How much of what the provider allows is used, and how soon what is ready is noticed.

``uv run python -m benchmarks ceiling [--requests 1000] [--rounds 3] [--latency 1:3]``

The emulator allows 10 at once. Ours buys once with 10 slots, and once with 50, so that it has to
find the cap; beside it a script of threads (`benchmarks.plain_script`), and NVIDIA Data Designer
over `benchmarks.openai_face`, told the cap and not told. Data Designer knows no queue: the emulator
answers it when the picture is there, and so it answers ours once more with 10 slots. The use is
that of the emulator's own books: mean of what is under way over the cap, until the last submit,
from the first submit or from the moment when the cap was first reached. Noticed is when the
picture is first asked for.
"""

import argparse
import contextlib
import itertools
import sqlite3
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pandas as pd
import requests
from rich.console import Console
from rich.progress import track

from benchmarks.commands import generate, prompt_table
from benchmarks.measured import Cost, run, save
from benchmarks.peers import peer
from benchmarks.watched import run_watched
from nanobanana_pipeline import local
from nanobanana_pipeline.cli.show import table_of
from nanobanana_pipeline.emulator.answers import API

CAP: Final = 10
TOO_MANY: Final = 50
NO_TELEMETRY: Final = {"NEMO_TELEMETRY_ENABLED": "false"}


@dataclass(frozen=True)
class _Found:
    """One way, once."""

    cost: Cost
    books: pd.DataFrame
    looked: Mapping[str, float]
    refused: int


@dataclass(frozen=True)
class _Place:
    """Where it happens."""

    data: Path
    s3_url: str
    emulator: str
    count: int

    @property
    def api(self) -> str:
        return f"{self.emulator}{API}"


_Way = Callable[[_Place], tuple[Cost, Mapping[str, float]]]


def main() -> None:
    """Run every way as often as asked for, by turns."""
    parser = argparse.ArgumentParser(prog="ceiling")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--latency", default="1:3")
    parser.add_argument("--way", action="append", choices=WAYS, help="this one only; repeatable")
    given = parser.parse_args()
    ways = given.way or list(WAYS)
    runs: dict[str, list[_Found]] = {name: [] for name in ways}
    for _ in track(range(given.rounds), f"{given.requests} requests, {len(ways)} ways"):
        for name in ways:
            runs[name].append(_once(*WAYS[name], given.requests, given.latency))
        found = [{"way": name, "requests": given.requests} | _told(runs[name]) for name in ways]
        where = save("ceiling", found)
    Console(width=170).print(table_of(pd.DataFrame(found), f"kept in {where}"))


def _once(mode: str, way: _Way, count: int, latency: str) -> _Found:
    port = local.free_port()
    root = f"http://127.0.0.1:{port}"
    with (
        tempfile.TemporaryDirectory(prefix="ceiling-") as folder,
        local.s3_server(Path(folder) / "s3") as s3_url,
    ):
        data = Path(folder)
        command = [
            *(sys.executable, "-m", "nanobanana_pipeline.emulator", "--port", str(port)),
            *("--data", str(data / "emulator"), "--mode", mode),
            *("--cap", str(CAP), "--latency", latency),
        ]
        log = data / "emulator.log"
        with local.child("the emulator", command, log=log, ready=lambda: _answers(root)):
            cost, looked = way(_Place(data, s3_url, root, count))
            refused = requests.get(f"{root}/admin/stats", timeout=60).json()["rate_limited"]
            return _Found(cost, _read_books(data / "emulator"), looked, refused)


def _answers(root: str) -> bool:
    try:
        return requests.get(f"{root}/healthz", timeout=2).ok
    except requests.RequestException:
        return False


def _read_books(folder: Path) -> pd.DataFrame:
    with contextlib.closing(sqlite3.connect(folder / "purchases.sqlite")) as books:
        query = "SELECT output, bought_at, ready_at FROM purchases ORDER BY bought_at"
        return pd.read_sql_query(query, books)


def _told(runs: Sequence[_Found]) -> dict[str, Any]:
    filled = [_use(found.books, from_full=True) for found in runs]
    whole = [_use(found.books, from_full=False) for found in runs]
    delays = [delay for found in runs for delay in _delays(found)]
    return {
        "use of the cap once full": round(statistics.median(filled), 3),
        "least to most": f"{min(filled):.3f}–{max(filled):.3f}",
        "from the first submit": round(statistics.median(whole), 3),
        "bought": round(statistics.median(len(found.books) for found in runs)),
        "429s": round(statistics.median(found.refused for found in runs)),
        "ready to noticed, s": round(statistics.mean(delays), 3) if delays else None,
        "seconds": round(statistics.median(found.cost.seconds for found in runs), 1),
        "CPU s": round(statistics.median(found.cost.cpu_seconds for found in runs), 1),
        "peak MB": round(statistics.median(found.cost.peak_mb for found in runs)),
    }


def _use(books: pd.DataFrame, *, from_full: bool) -> float:
    """Mean share of the cap in use until the last submit; 0 if it is never reached."""
    changes = sorted(
        [(at, 1) for at in books["bought_at"]] + [(at, -1) for at in books["ready_at"]]
    )
    counts = list(itertools.accumulate(step for _, step in changes))
    times = [at for at, _ in changes]
    first = next((n for n, count in enumerate(counts) if count >= CAP), None) if from_full else 0
    if first is None:
        return 0.0
    start, end = times[first], books["bought_at"].max()
    used = sum(
        count * (min(after, end) - at)
        for count, (at, after) in zip(counts, itertools.pairwise(times), strict=False)
        if start <= at < end
    )
    return float(used / (end - start) / CAP)


def _delays(found: _Found) -> Iterator[float]:
    ready = dict(zip(found.books["output"], found.books["ready_at"], strict=True))
    for name, at in found.looked.items():
        yield at - ready[name.rpartition("-")[0]]


def _ours(slots: int) -> _Way:
    def way(place: _Place) -> tuple[Cost, Mapping[str, float]]:
        table = prompt_table(place.data, "fox", place.count)
        environment = {
            **local.s3_environment(place.s3_url),
            "NANOBANANA_API_KEY": local.API_KEY,
            "NANOBANANA_BASE_URL": place.api,
            "NANOBANANA_BUCKET": local.BUCKET,
            "NANOBANANA_REALM": "emulator",
            "NANOBANANA_ALLOWED_HOSTS": "127.0.0.1",
            "NANOBANANA_SLOTS": str(slots),
        }
        found = run_watched(generate(table), environment)
        return found.cost, found.looked

    return way


def _script(place: _Place) -> tuple[Cost, Mapping[str, float]]:
    prompts = place.data / "prompts.txt"
    prompts.write_text("".join(f"a paper fox by the river {n}\n" for n in range(place.count)))
    found = run_watched(
        [
            *("benchmarks.plain_script:main", place.api, local.API_KEY),
            *(local.BUCKET, "plain/", prompts),
        ],
        local.s3_environment(place.s3_url),
    )
    return found.cost, found.looked


def _data_designer(parallel: int) -> _Way:
    def way(place: _Place) -> tuple[Cost, Mapping[str, float]]:
        port = local.free_port()
        root = f"http://127.0.0.1:{port}"
        face = [sys.executable, "-m", "benchmarks.openai_face", str(port), place.api]
        log = place.data / "face.log"
        with local.child("the face", face, log=log, ready=lambda: _answers(root)):
            python = peer("data-designer") / "python"
            script = (python, "-m", "benchmarks.data_designer_script", f"{root}/v1")
            many = (str(place.count), str(parallel), place.data / "pictures")
            return run((*script, *many), NO_TELEMETRY), {}

    return way


WAYS: Final[Mapping[str, tuple[str, _Way]]] = {
    "this project, 10 slots": ("queued", _ours(CAP)),
    "this project, cold start with 50": ("queued", _ours(TOO_MANY)),
    "threads": ("queued", _script),
    "this project, 10 slots, answered when done": ("sync", _ours(CAP)),
    "Data Designer, told 10": ("sync", _data_designer(CAP)),
    "Data Designer, told 50": ("sync", _data_designer(TOO_MANY)),
}
"""With the emulator's mode: ``sync`` is answered when the picture is there, ``queued`` has to ask
whether it is."""


if __name__ == "__main__":
    main()
