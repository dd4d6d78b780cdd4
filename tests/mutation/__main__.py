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
import hashlib
import itertools
import json
import os
import queue
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from nanobanana_pipeline import local
from tests.mutation.mutants import Mutant, mutants_of

ROOT: Final = Path(__file__).parents[2]
LEFT_OUT: Final = shutil.ignore_patterns(".*", "__pycache__", "node_modules")
AGEING: Final = (
    "tests/ageing/test_found.py",
    "tests/ageing/test_ageing.py::test_nothing_is_bought_twice_or_lost_whatever_happens",
)
PYTEST: Final = (
    *("-x", "-q", "-n", "0", "-p", "no:cacheprovider", "-p", "tests.mutation.plugin"),
    # The fork server has imported pytest's plugins before pytest could.
    *("-W", "ignore::pytest.PytestAssertRewriteWarning"),
)
FAST_SECONDS: Final = 40.0
"""So long the tests may take without a mutant that are run on it first."""
FIRST_SECONDS: Final = 300.0
"""After so long with a mutant they are stopped."""
THEN_SECONDS: Final = 1800.0
"""The same of the other tests."""


Item = TypeVar("Item")
Result = TypeVar("Result")


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
            "tests/stored/test_schemas.py",
        ),
        ("tests/generation/engine", "tests/cli/test_doubts.py", *AGEING),
    ),
    "budget": Room(
        ("nanobanana_pipeline/generation/budget",),
        ("tests/generation/budget", "tests/generation/recovery", "tests/stored/test_schemas.py"),
        ("tests/generation/test_launch.py", *AGEING),
    ),
    "manifest": Room(
        (
            "nanobanana_pipeline/generation/manifest",
            "nanobanana_pipeline/generation/planning/partition_plan.py",
        ),
        (
            "tests/generation/manifest",
            "tests/generation/test_forward.py",
            "tests/stored/test_schemas.py",
        ),
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


class Tree:
    """A copy of the tree, in which one mutant at a time is tested."""

    def __init__(self, folder: Path, s3_url: str) -> None:
        shutil.copytree(ROOT, folder, ignore=LEFT_OUT)
        self._folder = folder
        self._clock = int(time.time())
        self._environment = {"PYTHONPATH": str(folder), "MUTATION_S3_URL": s3_url}
        self._server = subprocess.Popen(
            [sys.executable, folder / "tests/mutation/fork_server.py"],
            cwd=folder,
            env={**os.environ, **self._environment, "OPENBLAS_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def record(self, path: str, files: Sequence[str], record: Path) -> None:
        """Run tests without mutants, and write down which runs which line; they must pass."""
        code, output = self._pytest([path], THEN_SECONDS, traced=files, record=record)
        if code != 0:
            raise SystemExit(f"without mutants, too, {path} fails:\n{output}")

    def verdict(self, mutant: Mutant, tests: Sequence[str], seconds: float) -> Verdict:
        """Run tests on a mutant until one fails."""
        self._write(mutant.path, mutant.after)
        code, output = self._pytest(tests, seconds)
        self._write(mutant.path, mutant.before)
        if code is None:
            return Verdict("timeout")
        if code == 0:
            return Verdict("survived")
        failed = [line for line in output.splitlines() if line.startswith(("FAILED", "ERROR"))]
        return Verdict("killed", failed[0].partition(" - ")[0] if failed else f"exit {code}")

    def _write(self, path: str, text: str) -> None:
        """With a time of its own: Python takes a compiled module of the same second for current."""
        (self._folder / path).write_text(text)
        self._clock += 1
        os.utime(self._folder / path, (self._clock, self._clock))

    def _pytest(
        self,
        tests: Sequence[str],
        seconds: float,
        *,
        traced: Sequence[str] = (),
        record: Path = ROOT,
    ) -> tuple[int | None, str]:
        output = self._folder / "output.txt"
        traces = {"MUTATION_TRACED": " ".join(traced), "MUTATION_RECORD": str(record)}
        asked = {
            "arguments": [*PYTEST, *tests],
            "environment": {**self._environment, **traces},
            "seconds": seconds,
            "output": str(output),
        }
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(f"{json.dumps(asked)}\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline()), output.read_text()

    def close(self) -> None:
        """End its process."""
        self._server.communicate()


def files_of(paths: Iterable[str]) -> list[str]:
    """The modules that are or lie in some paths, from the root."""
    whole = [ROOT / path for path in paths]
    found = [file for path in whole for file in (path.rglob("*.py") if path.is_dir() else [path])]
    return sorted(str(file.relative_to(ROOT)) for file in found)


def drawn(names: Sequence[str], count: int, seed: int, only: Sequence[str]) -> dict[Mutant, Room]:
    """Mutants of some rooms: a sample, or all that have one of some texts in their names."""
    every = {
        mutant: ROOMS[name]
        for name in names
        for file in files_of(ROOMS[name].files)
        for mutant in mutants_of(file, (ROOT / file).read_text())
    }
    if only:
        return {m: room for m, room in every.items() if any(text in m.name for text in only)}
    chosen = set(random.Random(seed).sample(list(every), min(count, len(every))))  # noqa: S311
    return {mutant: room for mutant, room in every.items() if mutant in chosen}


class Run:
    """Decides mutants, in as many trees as may be busy at once."""

    def __init__(self, trees: Sequence[Tree], work: dict[Mutant, Room], cache: Path) -> None:
        self._trees = trees
        self._cache = cache
        self._work = work
        self._recorded: dict[Room, dict[str, Recorded]] = {}

    def decide(self) -> Iterator[tuple[Mutant, Verdict]]:
        """Give each mutant once its verdict is final."""
        paths = [(room, path) for room in dict.fromkeys(self._work.values()) for path in room.tests]
        for (room, _), found in self._each(self._record, paths):
            self._recorded.setdefault(room, {}).update(found)
        survivors, slow = [], []
        for mutant, verdict in self._each(self._first, list(self._work)):
            if verdict.word == "timeout":
                slow.append(mutant)
            elif verdict.word == "survived":
                survivors.append(mutant)
                say(f"survived the fast tests: {mutant.name}\n{mutant.diff}")
            else:
                yield mutant, verdict
        for mutant, verdict in self._each(self._then, survivors):
            if verdict.word == "timeout":
                slow.append(mutant)
            else:
                yield mutant, verdict
        for mutant in slow:
            verdict = self._first(self._trees[0], mutant)
            if verdict.word == "survived":
                verdict = self._then(self._trees[0], mutant)
            yield mutant, verdict

    def _each(
        self, work: Callable[[Tree, Item], Result], items: Sequence[Item]
    ) -> Iterator[tuple[Item, Result]]:
        """Do work for each item, in whichever tree is free."""
        free: queue.SimpleQueue[Tree] = queue.SimpleQueue()
        for tree in self._trees:
            free.put(tree)

        def do(item: Item) -> Result:
            tree = free.get()
            try:
                return work(tree, item)
            finally:
                free.put(tree)

        with ThreadPoolExecutor(len(self._trees)) as pool:
            jobs = {pool.submit(do, item): item for item in items}
            try:
                for job in as_completed(jobs):
                    yield jobs[job], job.result()
            finally:
                pool.shutdown(cancel_futures=True)

    def _record(self, tree: Tree, asked: tuple[Room, str]) -> dict[str, Recorded]:
        room, path = asked
        digest = hashlib.sha256()
        for file in (*files_of(room.files), *files_of([path])):
            digest.update((ROOT / file).read_bytes())
        cached = self._cache / f"{digest.hexdigest()}.json"
        if not cached.exists():
            tree.record(path, files_of(room.files), cached)
            say(f"recorded {path}")
        return {
            name: Recorded(took, frozenset((file, line) for file, line in lines))
            for name, (took, lines) in json.loads(cached.read_text()).items()
        }

    def _first(self, tree: Tree, mutant: Mutant) -> Verdict:
        tests, _ = self._tests_of(mutant)
        return tree.verdict(mutant, tests, FIRST_SECONDS) if tests else Verdict("survived")

    def _then(self, tree: Tree, mutant: Mutant) -> Verdict:
        _, slower = self._tests_of(mutant)
        tests = (*slower, *self._work[mutant].then)
        return tree.verdict(mutant, tests, THEN_SECONDS) if tests else Verdict("survived")

    def _tests_of(self, mutant: Mutant) -> tuple[list[str], list[str]]:
        """The tests of a mutant's room that run its line: the fastest ones, and the others."""
        known = self._recorded[self._work[mutant]]
        lines = {(mutant.path, line) for line in mutant.lines or ()}
        running = [name for name, test in known.items() if not lines or lines & test.lines]
        running.sort(key=lambda name: known[name].seconds)
        took = itertools.accumulate(known[name].seconds for name in running)
        fast = sum(seconds <= FAST_SECONDS for seconds in took)
        return running[:fast], running[fast:]


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
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir(), "mutation"))
    asked = parser.parse_args()
    asked.cache.mkdir(exist_ok=True)
    work = drawn(asked.room or list(ROOMS), asked.count, asked.seed, asked.only or [])
    verdicts: dict[Mutant, Verdict] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        s3_url = stack.enter_context(local.s3_server(folder / "s3"))
        trees = [Tree(folder / f"tree-{number}", s3_url) for number in range(asked.at_once)]
        for tree in trees:
            stack.callback(tree.close)
        for mutant, verdict in Run(trees, work, asked.cache).decide():
            verdicts[mutant] = verdict
            say(f"{len(verdicts)}/{len(work)} {verdict.word}: {mutant.name}")
            if verdict.word == "survived":
                say(mutant.diff)
            asked.summary.write_text(summary(verdicts))


def say(text: str) -> None:
    """Print, at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
