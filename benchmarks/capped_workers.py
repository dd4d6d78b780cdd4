"""Workers that buy shards under caps, and are killed, frozen and started twice: `Workers`."""

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from multiprocessing.context import ForkServerProcess
from typing import ClassVar, Final

from benchmarks.launches import LEASE_MARGIN_SECONDS, Site, start
from nanobanana_pipeline import local
from nanobanana_pipeline.generation.budget.incarnation import HeartbeatTiming
from nanobanana_pipeline.generation.engine.timing import Timing
from nanobanana_pipeline.generation.launch_steps import settle_shard
from nanobanana_pipeline.generation.planning.run_files import read_plan
from nanobanana_pipeline.money import Budget
from nanobanana_pipeline.provider.account import Account
from nanobanana_pipeline.storage import ObjectStore

__all__ = ["EXPIRED_SECONDS", "CappedSite", "Kind", "Workers", "draw_events"]

SLOTS: Final = 2
EXPIRED_SECONDS: Final = 4.0
HEARTBEAT: Final = HeartbeatTiming(
    renew_seconds=0.5, silent_seconds=2.5, expired_seconds=EXPIRED_SECONDS
)
TIMING: Final = Timing(
    lease_margin_seconds=LEASE_MARGIN_SECONDS, others_claim_poll_seconds=0.5, heartbeat=HEARTBEAT
)
SUBMIT_SECONDS: Final = 3.0
LEASE_SECONDS: Final = SUBMIT_SECONDS + 2 * LEASE_MARGIN_SECONDS

EVENT_SECONDS: Final = (1.0, 10.0)
"""Since the first start: when something may happen to a worker."""
SHORT_FREEZE_SECONDS: Final = (0.2, 2.5)
LONG_FREEZE_SECONDS: Final = (max(EXPIRED_SECONDS, LEASE_SECONDS) + 1.5, 9.0)
"""Its heartbeat is found expired, and its leases run out, before it goes on."""
START_AGAIN_SECONDS: Final = 1.0
"""After the end of a shard's last process."""
END_SECONDS: Final = 90.0
"""For all processes to end, once nothing happens to them any more."""
POLL_SECONDS: Final = 0.02


class Kind(StrEnum):
    """What happens to a worker."""

    KILL = "killed"
    FREEZE = "frozen"
    LONG_FREEZE = "frozen for longer than lease and heartbeat last"
    REDELIVER = "started again while it ran"


EVENTS: Final = {Kind.KILL: 4, Kind.FREEZE: 3, Kind.LONG_FREEZE: 3, Kind.REDELIVER: 4}
"""How often, in each round."""


@dataclass(frozen=True)
class Event:
    """What happens to a worker, and when.

    Attributes:
        at: seconds since the first start.
        pick: which of the workers that it may happen to, as a share of their number.
        seconds: how long a freeze lasts.
    """

    at: float
    kind: Kind
    pick: float
    seconds: float


def draw_events(rng: random.Random) -> list[Event]:
    """The events of a round, in their order."""
    events = []
    for kind, count in EVENTS.items():
        freeze = LONG_FREEZE_SECONDS if kind is Kind.LONG_FREEZE else SHORT_FREEZE_SECONDS
        for _ in range(count):
            at = rng.uniform(*EVENT_SECONDS)
            events.append(Event(at, kind, rng.random(), rng.uniform(*freeze)))
    return sorted(events, key=lambda event: event.at)


@dataclass(frozen=True)
class CappedSite(Site):
    """A site with a folder and caps of its own.

    Attributes:
        prefix: of the folder, in the bucket.
        budget: the caps on the day and on each partition.
    """

    submit_seconds: ClassVar[float] = SUBMIT_SECONDS

    prefix: str = ""
    budget: Budget = field(default_factory=Budget)

    def store(self) -> ObjectStore:
        """The folder."""
        return ObjectStore(self.client(), local.BUCKET, self.prefix)

    def account(self) -> Account:
        """Few slots a worker, and no webhooks: their receiver knows the whole bucket only."""
        made = super().account()
        return Account(made.realm, made.provider, made.downloader, SLOTS, budget=self.budget)


def buy_shard(place: Site, shard: str, run_id: str) -> None:
    """One worker: settle a shard, with leases and heartbeats of seconds."""
    settle_shard(place.store(), place.account(), run_id, shard, timing=TIMING)


def buy_run(place: Site, _: str, run_id: str) -> None:
    """Settle all shards of a run, one after the other."""
    store, account = place.store(), place.account()
    for shard in read_plan(store, run_id).shards:
        settle_shard(store, account, run_id, shard, timing=TIMING)


@dataclass
class _Worker:
    """A process that buys.

    Attributes:
        label: ``<run id>/<shard>``, and which process of it.
        thaw_at: when it is let go on; None unless it is frozen.
    """

    label: str
    shard: int
    process: ForkServerProcess
    was_killed: bool = False
    thaw_at: float | None = None


def _signal(worker: _Worker, number: signal.Signals) -> bool:
    """Send a signal; False where the process has ended just now."""
    try:
        os.kill(worker.process.pid or 0, number)
    except ProcessLookupError:
        return False
    return True


class Workers:
    """The processes of a round, 8 and more at once.

    Args:
        place: where.
        shards: run id and shard, of each.

    Attributes:
        happened: events by kind, without those that met no process.
        story: what happened when, a line each.
    """

    def __init__(self, place: CappedSite, shards: Sequence[tuple[str, str]]) -> None:
        self.happened: Counter[Kind] = Counter()
        self.story: list[str] = []
        self._place = place
        self._shards = shards
        self._began = time.monotonic()
        self._killed_at = self._began
        self._workers: list[_Worker] = []
        self._ended_at = dict.fromkeys(range(len(shards)), 0.0)

    @property
    def problems(self) -> list[str]:
        """Processes that have not ended, or not as they should; a sentence each."""
        found = []
        for worker in self._workers:
            code = worker.process.exitcode
            if code is None:
                found.append(f"{worker.label} did not end in {END_SECONDS:.0f} s")
            elif code != (-signal.SIGKILL if worker.was_killed else 0):
                found.append(f"{worker.label} ended with {code}")
        return found

    @property
    def started(self) -> int:
        """How many processes."""
        return len(self._workers)

    def disturb(self, events: Sequence[Event]) -> None:
        """Keep all shards running while the events happen; what was frozen goes on at the end."""
        left = list(events)
        while left or any(worker.thaw_at is not None for worker in self._workers):
            if left and left[0].at <= time.monotonic() - self._began:
                self._happen(left.pop(0))
            self._thaw()
            if left:
                self._start_one_that_ended()
            time.sleep(POLL_SECONDS)

    def finish(self) -> None:
        """Let all end, and buy each run once more as soon as what was killed has expired."""
        self._wait_for_end()
        # S3 tells the time in whole seconds.
        expired = self._killed_at + EXPIRED_SECONDS + 2
        time.sleep(max(0.0, expired - time.monotonic()))
        for run_id in dict(self._shards):
            process = start(buy_run, self._place, "", run_id)
            self._add(_Worker(f"{run_id}, undisturbed,", len(self._shards), process))
        self._wait_for_end()

    def close(self) -> None:
        """Kill what is left."""
        for worker in self._workers:
            worker.process.kill()
            worker.process.join()

    def _wait_for_end(self) -> None:
        deadline = time.monotonic() + END_SECONDS
        for worker in self._workers:
            worker.process.join(max(0.0, deadline - time.monotonic()))

    def _alive(self) -> Iterator[_Worker]:
        return (worker for worker in self._workers if worker.process.is_alive())

    def _start(self, shard: int) -> None:
        run_id, name = self._shards[shard]
        number = 1 + sum(worker.shard == shard for worker in self._workers)
        process = start(buy_shard, self._place, name, run_id)
        self._add(_Worker(f"{run_id}/{name}#{number}", shard, process))

    def _add(self, worker: _Worker) -> None:
        self._workers.append(worker)
        self._tell(worker, "started")

    def _start_one_that_ended(self) -> None:
        """Start a shard that has had no process for a while: one at a time, events go before."""
        now, running = time.monotonic(), {worker.shard for worker in self._alive()}
        for shard, ended_at in self._ended_at.items():
            if shard in running:
                self._ended_at[shard] = now
            elif now - ended_at > START_AGAIN_SECONDS:
                self._start(shard)
                return

    def _happen(self, event: Event) -> None:
        is_freeze = event.kind in {Kind.FREEZE, Kind.LONG_FREEZE}
        found = [w for w in self._alive() if not is_freeze or w.thaw_at is None]
        if not found:
            return
        worker = found[int(event.pick * len(found))]
        if event.kind is Kind.REDELIVER:
            self._start(worker.shard)
        elif event.kind is Kind.KILL:
            worker.process.kill()
            worker.process.join()
            if worker.process.exitcode != -signal.SIGKILL:
                return  # it ended by itself just before
            worker.was_killed, worker.thaw_at = True, None
            self._killed_at = time.monotonic()
            self._tell(worker, "killed")
        else:
            if not _signal(worker, signal.SIGSTOP):
                return
            worker.thaw_at = time.monotonic() + event.seconds
            self._tell(worker, f"frozen for {event.seconds:.2f} s")
        self.happened[event.kind] += 1

    def _thaw(self) -> None:
        for worker in self._workers:
            if worker.thaw_at is not None and worker.thaw_at <= time.monotonic():
                worker.thaw_at = None
                _signal(worker, signal.SIGCONT)
                self._tell(worker, "goes on")

    def _tell(self, worker: _Worker, what: str) -> None:
        self.story.append(f"{time.monotonic() - self._began:6.2f} s: {worker.label} {what}")
