"""Mutation testing of the code that guards money: does a test fail where the code is wrong?

    python -m tests.mutation 200 --seed 7 --summary mutation.md
    python -m tests.mutation --room ledger --only entry.py:210 --only entry.py:215

Mutants are drawn at random from the files of `ROOMS`, and each is decided in a copy of the tree.
First come the tests of its room that run its line, the fastest first; where all of them pass, those
of `then`. One that takes too long is run again alone once the others are decided.

mutmut 3 would do this with less code of ours, but it leaves out functions with decorators (each
property and validator) and module-level constants, drops no statements and draws no samples.
Cosmic Ray has one command of tests for all mutants, and drops no statements either.
"""

import argparse
import contextlib
import functools
import json
import os
import queue
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nanobanana_pipeline import local
from tests.mutation.mutants import Mutant, mutants_of

ROOT: Final = Path(__file__).parents[2]
LEFT_OUT: Final = shutil.ignore_patterns(".*", "__pycache__", "node_modules")
AGEING: Final = (
    "tests/ageing/test_found.py",
    "tests/ageing/test_ageing.py::test_nothing_is_bought_twice_or_lost_whatever_happens",
)
SLACK_SECONDS: Final = 60.0
"""A mutant may take so long beyond five times what its tests took without it."""
THEN_SECONDS: Final = 1800.0


@dataclass(frozen=True)
class Room:
    """Files, and the tests that concern them.

    Attributes:
        files: modules and folders of modules.
        tests: files and folders of tests, which decide most mutants in seconds.
        then: slower ones, for mutants that survive those.
    """

    files: tuple[str, ...]
    tests: tuple[str, ...]
    then: tuple[str, ...] = ()


ROOMS: Final = {
    "ledger": Room(
        ("nanobanana_pipeline/ledger",),
        (
            "tests/ledger",
            "tests/generation/engine/test_submit.py",
            "tests/generation/engine/test_reconcile.py",
            "tests/generation/test_damaged_entries.py",
        ),
        ("tests/generation/engine", "tests/cli/test_doubts.py", *AGEING),
    ),
    "budget": Room(
        ("nanobanana_pipeline/generation/budget",),
        ("tests/generation/budget", "tests/generation/recovery"),
        ("tests/generation/test_launch.py", *AGEING),
    ),
    "manifest": Room(
        (
            "nanobanana_pipeline/generation/manifest",
            "nanobanana_pipeline/generation/planning/partition_plan.py",
        ),
        ("tests/generation/manifest", "tests/generation/test_forward.py"),
        ("tests/generation/test_damaged_entries.py", "tests/generation/test_launch.py"),
    ),
    "cas": Room(
        ("nanobanana_pipeline/storage/cas.py",),
        ("tests/storage/test_cas.py", "tests/ledger/test_ledger.py"),
        ("tests/generation/budget", *AGEING),
    ),
}


@dataclass(frozen=True)
class Verdict:
    """What became of a mutant: killed, survived or timeout, and the test that failed."""

    word: str
    by: str = ""


@dataclass(frozen=True)
class Recorded:
    """A test without mutants: how long it takes, and which lines it runs."""

    seconds: float
    lines: frozenset[tuple[str, int]]


class Trees:
    """Copies of the tree, one a process, in which mutants are tested."""

    def __init__(self, folder: Path, count: int, s3_url: str) -> None:
        self._s3_url = s3_url
        self._clock = int(time.time())
        self._free: queue.Queue[Path] = queue.Queue()
        for number in range(count):
            tree = folder / f"tree-{number}"
            shutil.copytree(ROOT, tree, ignore=LEFT_OUT)
            self._free.put(tree)

    def record(self, path: str, files: Sequence[str]) -> dict[str, Recorded]:
        """Run tests without mutants; they must pass."""
        tree = self._free.get()
        record = tree.with_name(f"{tree.name}.json")
        try:
            _, output = self._pytest(tree, [path], 1800, traced=files, record=record, passes=True)
            found = json.loads(record.read_text())
        finally:
            self._free.put(tree)
        print(f"recorded {path}: {output.splitlines()[-1]}", flush=True)
        return {
            name: Recorded(took, frozenset((file, line) for file, line in lines))
            for name, (took, lines) in found.items()
        }

    def verdict(self, mutant: Mutant, tests: Sequence[str], seconds: float) -> Verdict:
        """Run tests on a mutant until one fails."""
        tree = self._free.get()
        try:
            self._write(tree / mutant.path, mutant.after)
            code, output = self._pytest(tree, tests, seconds)
        except subprocess.TimeoutExpired:
            return Verdict("timeout")
        finally:
            self._write(tree / mutant.path, mutant.before)
            self._free.put(tree)
        if not code:
            return Verdict("survived")
        failed = [line for line in output.splitlines() if line.startswith(("FAILED", "ERROR"))]
        return Verdict("killed", failed[0].partition(" - ")[0] if failed else f"exit {code}")

    def _write(self, path: Path, text: str) -> None:
        """With a time of its own: Python takes a compiled module of the same second for current."""
        path.write_text(text)
        self._clock += 1
        os.utime(path, (self._clock, self._clock))

    def _pytest(
        self,
        tree: Path,
        tests: Sequence[str],
        seconds: float,
        *,
        traced: Sequence[str] = (),
        record: Path = Path(),
        passes: bool = False,
    ) -> tuple[int, str]:
        options = ("-x", "-q", "-n", "0", "-p", "no:cacheprovider", "-p", "tests.mutation.plugin")
        variables = {
            "PYTHONPATH": str(tree),
            "MUTATION_S3_URL": self._s3_url,
            "MUTATION_TRACED": " ".join(traced),
            "MUTATION_RECORD": str(record),
        }
        command = [sys.executable, "-m", "pytest", *options, *tests]
        with subprocess.Popen(
            command,
            cwd=tree,
            env={**os.environ, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        ) as process:
            try:
                output, _ = process.communicate(timeout=seconds)
            finally:
                # What a test has started must not outlive it.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        if passes and process.returncode != 0:
            raise SystemExit(f"without mutants, too, {tests} fail:\n{output}")
        return process.returncode, output


def files_of(room: Room) -> list[str]:
    """The modules of a room, by their paths from the root."""
    paths = [ROOT / each for each in room.files]
    found = [file for path in paths for file in (path.rglob("*.py") if path.is_dir() else [path])]
    return sorted(str(file.relative_to(ROOT)) for file in found)


def drawn(names: Sequence[str], count: int, seed: int, only: Sequence[str]) -> dict[Mutant, Room]:
    """Mutants of some rooms: a sample, or all that have one of some texts in their names."""
    every = {
        mutant: ROOMS[name]
        for name in names
        for file in files_of(ROOMS[name])
        for mutant in mutants_of(file, (ROOT / file).read_text())
    }
    if only:
        return {m: room for m, room in every.items() if any(text in m.name for text in only)}
    chosen = set(random.Random(seed).sample(list(every), min(count, len(every))))  # noqa: S311
    return {mutant: room for mutant, room in every.items() if mutant in chosen}


class Run:
    """Decides mutants, in as many copies of the tree as may be busy at once."""

    def __init__(self, trees: Trees, pool: ThreadPoolExecutor, work: dict[Mutant, Room]) -> None:
        self._trees = trees
        self._pool = pool
        self._work = work
        self._recorded: dict[Room, dict[str, Recorded]] = {}

    def decide(self) -> Iterator[tuple[Mutant, Verdict]]:
        """Give each mutant once its verdict is final."""
        for room in dict.fromkeys(self._work.values()):
            record = functools.partial(self._trees.record, files=files_of(room))
            self._recorded[room] = {
                name: test
                for found in self._pool.map(record, room.tests)
                for name, test in found.items()
            }
        survivors, slow = [], []
        for mutant, verdict in self._each(self._first, list(self._work)):
            if verdict.word == "timeout":
                slow.append(mutant)
            elif verdict.word == "survived" and self._work[mutant].then:
                survivors.append(mutant)
                print(f"survived its room's tests: {mutant.name}\n{mutant.diff}", flush=True)
            else:
                yield mutant, verdict
        for mutant, verdict in self._each(self._then, survivors):
            if verdict.word == "timeout":
                slow.append(mutant)
            else:
                yield mutant, verdict
        for mutant in slow:
            verdict = self._first(mutant)
            yield mutant, self._then(mutant) if verdict.word == "survived" else verdict

    def _each(
        self, decide: Callable[[Mutant], Verdict], mutants: Sequence[Mutant]
    ) -> Iterator[tuple[Mutant, Verdict]]:
        jobs = {self._pool.submit(decide, mutant): mutant for mutant in mutants}
        for job in as_completed(jobs):
            yield jobs[job], job.result()

    def _first(self, mutant: Mutant) -> Verdict:
        known = self._recorded[self._work[mutant]]
        lines = {(mutant.path, line) for line in mutant.lines or ()}
        running = [name for name, test in known.items() if not lines or lines & test.lines]
        if not running:
            return Verdict("survived")
        limit = SLACK_SECONDS + 5 * sum(known[name].seconds for name in running)
        tests = sorted(running, key=lambda name: known[name].seconds)
        return self._trees.verdict(mutant, tests, limit)

    def _then(self, mutant: Mutant) -> Verdict:
        return self._trees.verdict(mutant, self._work[mutant].then, THEN_SECONDS)


def summary(verdicts: dict[Mutant, Verdict]) -> str:
    """Figures by file, then each mutant that no test has killed."""
    words = ("killed", "timeout", "survived")
    files = sorted({mutant.path for mutant in verdicts})
    lines = ["| file | decided | killed | timeout | survived |", "|---|--:|--:|--:|--:|"]
    for file in (*files, ""):
        count = Counter(v.word for m, v in verdicts.items() if m.path.startswith(file))
        cells = (file or "all", count.total(), *(count[word] for word in words))
        lines.append(f"| {' | '.join(map(str, cells))} |")
    for mutant, verdict in sorted(verdicts.items(), key=lambda pair: pair[0].name):
        if verdict.word == "survived":
            lines += ["", f"`{mutant.name}`", "```diff", mutant.diff.rstrip(), "```"]
    lines += ["", "| mutant | verdict | by |", "|---|---|---|"]
    lines += [f"| {m.name} | {v.word} | {v.by} |" for m, v in verdicts.items()]
    return "\n".join((*lines, ""))


def main() -> None:
    """Decide mutants as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutation")
    parser.add_argument("count", type=int, nargs="?", default=200, help="how many are drawn")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--room", action="append", choices=ROOMS, help="these alone")
    parser.add_argument(
        "--only", action="append", help="all with this in their names, e.g. cas.py:9"
    )
    parser.add_argument("--at-once", type=int, default=2, help="processes")
    parser.add_argument("--summary", type=Path, required=True, help="a Markdown file to write")
    asked = parser.parse_args()
    work = drawn(asked.room or list(ROOMS), asked.count, asked.seed, asked.only or [])
    verdicts: dict[Mutant, Verdict] = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        local.s3_server(Path(folder) / "s3") as s3_url,
        ThreadPoolExecutor(asked.at_once) as pool,
    ):
        trees = Trees(Path(folder), asked.at_once, s3_url)
        for mutant, verdict in Run(trees, pool, work).decide():
            verdicts[mutant] = verdict
            print(f"{len(verdicts)}/{len(work)} {verdict.word}: {mutant.name}", flush=True)
            if verdict.word == "survived":
                print(mutant.diff, flush=True)
            asked.summary.write_text(summary(verdicts))


if __name__ == "__main__":
    main()
