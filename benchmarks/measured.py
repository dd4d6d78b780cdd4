"""Commands as whole processes, measured: wall time, CPU time and memory of all that they start."""

import json
import os
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil

__all__ = ["Cost", "median_of", "run", "save", "spread"]

SAMPLE_SECONDS: Final = 0.05
RESULTS: Final = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Cost:
    """What a command took.

    Attributes:
        seconds: wall time, from its start to its end.
        cpu_seconds: user and system time of it and of all its children.
        peak_mb: most resident memory of it and all its children together, in 10^6 bytes, looked
            at every 50 ms; pages that they share count for each.
        output: what it wrote to standard output.
    """

    seconds: float
    cpu_seconds: float
    peak_mb: float
    output: str


def run(command: Sequence[str | Path], environment: Mapping[str, str] | None = None) -> Cost:
    """Run a command to its end.

    Raises:
        RuntimeError: it failed; with what it said.
    """
    started = time.monotonic()
    process = subprocess.Popen(  # noqa: S603 - a benchmark's own command
        [str(part) for part in command],
        env={**os.environ, **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    peak, over = [0], threading.Event()
    sampler = threading.Thread(target=_sample, args=(process.pid, peak, over), daemon=True)
    sampler.start()
    said: list[str] = []
    errors = threading.Thread(target=lambda: said.append(process.stderr.read()), daemon=True)  # type: ignore[union-attr]
    errors.start()
    output = process.stdout.read()  # type: ignore[union-attr]
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    over.set()
    sampler.join()
    errors.join()
    if process.returncode:
        raise RuntimeError(f"{command[0]} ended with {process.returncode}: {''.join(said)[-2000:]}")
    return Cost(seconds, usage.ru_utime + usage.ru_stime, peak[0] / 1e6, output)


def median_of(costs: Sequence[Cost], what: Callable[[Cost], float]) -> float:
    """The median of a figure over repeated runs."""
    return statistics.median(map(what, costs))


def spread(costs: Sequence[Cost], what: Callable[[Cost], float]) -> str:
    """The least and the most of a figure over repeated runs, for people."""
    found = sorted(map(what, costs))
    return f"{found[0]:.3g}–{found[-1]:.3g}"


def save(name: str, found: Mapping[str, Any] | Iterable[Mapping[str, Any]]) -> Path:
    """Keep a benchmark's figures as ``benchmarks/results/<name>.json``; gives where."""
    path = RESULTS / f"{name}.json"
    kept = dict(found) if isinstance(found, Mapping) else list(found)
    path.write_text(json.dumps(kept, indent=1, default=str) + "\n")
    return path


def _sample(pid: int, peak: list[int], over: threading.Event) -> None:
    while not over.wait(SAMPLE_SECONDS):
        total = 0
        try:
            parent = psutil.Process(pid)
            for each in [parent, *parent.children(recursive=True)]:
                total += _resident(each)
        except psutil.NoSuchProcess:
            return
        peak[0] = max(peak[0], total)


def _resident(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0
