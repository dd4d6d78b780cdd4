"""Kills launches at random instants, and has others bring to an end what they began."""

import random
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerProcess
from typing import Any, Final, Protocol

from benchmarks.launches import Site, Target, start

__all__ = ["REQUESTS", "Kill", "Partition", "Subject", "kill_launches"]

REQUESTS: Final = 30
TWICE_EVERY: Final = 4
WHOLE_LIVES: Final = 2
"""So many launches are let live first, to know how long one takes."""
RESUMERS: Final = 2
RESUMES: Final = 4
"""What so many launches do not bring to its end never comes to one."""
LAUNCH_SECONDS: Final = 120
POLL_SECONDS: Final = 0.05


@dataclass
class Kill:
    """One SIGKILL.

    Attributes:
        run_id: the launch that it ended.
        seconds: since that launch began.
        doubts: request keys of its claims that nobody had answered when their lease had run out.
        planned: it had written its plan, and might buy.
    """

    run_id: str
    seconds: float
    doubts: list[str] = field(default_factory=list)
    planned: bool = False


@dataclass
class Partition:
    """30 requests of its own, whose launches are killed.

    Attributes:
        found: how many requests the kills left in which state of the ledger.
        resumes: launches that were let live since.
    """

    name: str
    kills: list[Kill] = field(default_factory=list)
    found: Mapping[str, int] = field(default_factory=dict)
    resumes: int = 0

    @property
    def prompts(self) -> list[str]:
        """Nobody else's."""
        return prompts_of(self.name)


def prompts_of(name: str) -> list[str]:
    """The prompts of a partition."""
    return [f"{name}, picture {number}" for number in range(REQUESTS)]


class Subject(Protocol):
    """What is killed."""

    @property
    def target(self) -> Target:
        """One launch; a function that another process can import."""

    @property
    def rest_seconds(self) -> float:
        """How long after a kill the next launch is held back."""

    def prepare(self, partition: Partition) -> None:
        """Make what a launch needs."""

    def note(self, partition: Partition) -> None:
        """Write down what the kills have left, before the partition is launched again."""

    def is_ended(self, partition: Partition) -> bool:
        """Whether nothing is left that a further launch would do."""

    def judge(self, partitions: Sequence[Partition]) -> dict[str, Any]:
        """Lay the books side by side: ``totals``, ``problems`` and ``partitions``."""


def kill_launches(
    place: Site, subject: Subject, kills: int, seconds: float, seed: int
) -> list[Partition]:
    """Kill launches, and bring each partition to its end while the next ones are being killed.

    Args:
        place: where.
        subject: what.
        kills: how many launches are killed.
        seconds: none is killed after so long.
        seed: of the instants.

    Raises:
        RuntimeError: a launch that was let live failed, or took for ever.
    """
    rng, deadline = random.Random(seed), time.monotonic() + seconds  # noqa: S311 - not for secrets
    partitions: list[Partition] = []
    resumers = _Resumers(place, subject)
    lives: list[float] = []
    made = 0
    while made < kills and time.monotonic() < deadline:
        partition = Partition(f"kill-{len(partitions):03d}")
        partitions.append(partition)
        subject.prepare(partition)
        if len(lives) < WHOLE_LIVES:
            lives.append(_live(place, subject, partition))
            continue
        times = 2 if len(partitions) % TWICE_EVERY == 0 else 1
        for _ in range(min(times, kills - made)):
            # Where the machine is slower now than it was, launches live longer than the first ones.
            instant = rng.uniform(0, max(lives[-WHOLE_LIVES:]))
            lived = _kill(place, subject, partition, instant)
            if lived is not None:
                if not partition.kills:
                    lives.append(lived)  # one that found work done would tell too little
                break
            made += 1
        resumers.add(partition)
        resumers.catch_up()
    resumers.finish()
    return partitions


def _live(place: Site, subject: Subject, partition: Partition) -> float:
    process = start(subject.target, place, partition.name, f"{partition.name}-whole")
    began = time.monotonic()
    process.join(LAUNCH_SECONDS)
    _check(process)
    return time.monotonic() - began


def _kill(place: Site, subject: Subject, partition: Partition, instant: float) -> float | None:
    """Launch, and kill at the instant; where the launch ended before that, how long it lived."""
    run_id = f"{partition.name}-killed-{len(partition.kills) + 1}"
    process = start(subject.target, place, partition.name, run_id)
    began = time.monotonic()
    process.join(instant)
    process.kill()
    process.join()
    if process.exitcode == 0:
        return time.monotonic() - began
    if process.exitcode != -signal.SIGKILL:
        _check(process)
    partition.kills.append(Kill(run_id, round(instant, 3)))
    return None


class _Resumers:
    """Launches partitions again until they are ended, some at once."""

    def __init__(self, place: Site, subject: Subject) -> None:
        self._place = place
        self._subject = subject
        self._due: list[tuple[float, Partition]] = []
        self._running: list[tuple[float, ForkServerProcess, Partition]] = []

    def add(self, partition: Partition) -> None:
        """Launch it again once its rest is over."""
        self._due.append((time.monotonic() + self._subject.rest_seconds, partition))

    def catch_up(self) -> None:
        """Start all that is due, waiting for room."""
        while self._is_due():
            self._step()
            time.sleep(POLL_SECONDS)

    def finish(self) -> None:
        """Bring everything to its end."""
        while self._due or self._running:
            self._step()
            time.sleep(POLL_SECONDS)

    def _is_due(self) -> bool:
        return bool(self._due) and self._due[0][0] < time.monotonic()

    def _step(self) -> None:
        for each in list(self._running):
            deadline, process, partition = each
            if process.is_alive() and time.monotonic() < deadline:
                continue
            self._running.remove(each)
            _check(process)
            if self._subject.is_ended(partition):
                continue
            if partition.resumes == RESUMES:
                raise RuntimeError(f"{partition.name} does not come to an end")
            self.add(partition)
        while self._is_due() and len(self._running) < RESUMERS:
            _, partition = self._due.pop(0)
            if not partition.resumes:
                self._subject.note(partition)
            partition.resumes += 1
            run_id = f"{partition.name}-resumed-{partition.resumes}"
            process = start(self._subject.target, self._place, partition.name, run_id)
            self._running.append((time.monotonic() + LAUNCH_SECONDS, process, partition))


def _check(process: ForkServerProcess) -> None:
    if process.exitcode is None:
        raise RuntimeError(f"a launch took more than {LAUNCH_SECONDS} s")
    if process.exitcode != 0:
        raise RuntimeError(f"a launch that was let live ended with {process.exitcode}")
