"""Budget caps while 8 workers are killed, frozen and started twice; laid beside the books.

``uv run python -m benchmarks caps [--rounds 50] [--seed N]``

In each round 3 runs over 2 partitions are bought by 8 processes, one a shard, under a cap on the
UTC day, on each partition and on each run; each cap is below what is asked for. Workers are killed
(SIGKILL), frozen (SIGSTOP; some for longer than a lease and a heartbeat last) and started a second
time while the first still runs. A shard whose process has ended is started again, so that what is
given back is wanted at once. At the end every shard runs once more, undisturbed. Then the
emulator's books are laid beside the caps and, after a recount, beside the counters. Prints a table,
writes ``artifacts/caps.json``, and exits with 1 where a cap or a counter was wrong; the round's
story is kept there. ``--rounds 1 --seed N`` repeats the one of that seed.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, ClassVar, Final

from rich.console import Console
from rich.table import Table

from benchmarks.launches import (
    LEASE_MARGIN_SECONDS,
    SEED,
    Site,
    keep_prompts,
    read_entries,
    request_keys,
    site,
    start,
)
from nanobanana_pipeline import local
from nanobanana_pipeline.generation.budget.counters import (
    Scope,
    counter_keys,
    day_scope,
    partition_scope,
    run_scope,
)
from nanobanana_pipeline.generation.budget.incarnation import HeartbeatTiming
from nanobanana_pipeline.generation.budget.reclaim import reclaim, recount
from nanobanana_pipeline.generation.engine.timing import Timing
from nanobanana_pipeline.generation.launch_steps import plan, settle_shard
from nanobanana_pipeline.generation.planning.planner import Launch
from nanobanana_pipeline.ledger import Attempt, Outcome
from nanobanana_pipeline.money import Budget, Cap
from nanobanana_pipeline.provider.account import Account
from nanobanana_pipeline.storage import ObjectStore
from nanobanana_pipeline.webhooks.inbox import attempt_id

REQUESTS: Final = 48
"""Of each partition."""
RUNS: Final = {"left-1": ("left", 12), "left-2": ("left", 24), "right-1": ("right", 24)}
"""The partition of each run, and its requests a shard: 8 shards in all."""
PARTITIONS: Final = ("left", "right")
SLOTS: Final = 2
EMULATOR: Final = (
    *("--latency", "0.4:1.6", "--cap", "14", "--retry-after", "0.2"),
    *("--mood", "slow_answer=1", "--slow-answer", "0.2"),
    *("--mood", "http_500_before=0.03", "--mood", "http_500_after=0.03"),
)
HEARTBEAT: Final = HeartbeatTiming(renew_seconds=0.5, silent_seconds=3.0, expired_seconds=5.0)
TIMING: Final = Timing(
    lease_margin_seconds=LEASE_MARGIN_SECONDS, others_claim_poll_seconds=0.5, heartbeat=HEARTBEAT
)
SUBMIT_SECONDS: Final = 3.0
LEASE_SECONDS: Final = SUBMIT_SECONDS + 2 * LEASE_MARGIN_SECONDS

EVENTS_SECONDS: Final = (0.5, 8.0)
"""Since a round's start: the first and the last that may happen to a worker."""
FREEZE_SECONDS: Final = (0.3, 8.0)
START_AGAIN_SECONDS: Final = 1.0
"""After the end of a shard's last process."""
END_SECONDS: Final = 90.0
"""For all processes to end, once nothing happens to them any more."""
POLL_SECONDS: Final = 0.02
ARTIFACTS: Final = Path("artifacts")


class Kind(StrEnum):
    """What happens to a worker."""

    KILL = "killed"
    FREEZE = "frozen"
    REDELIVER = "started twice"


EVENTS: Final = {Kind.KILL: 4, Kind.FREEZE: 6, Kind.REDELIVER: 4}
"""How often, in each round."""


@dataclass(frozen=True)
class Event:
    """What happens to a worker of a shard, and when.

    Attributes:
        at: seconds since the round's start.
        shard: its number among all shards of the round.
        seconds: how long a freeze lasts.
    """

    at: float
    kind: Kind
    shard: int
    seconds: float


@dataclass(frozen=True)
class CappedSite(Site):
    """A site whose rounds have folders and caps of their own.

    Attributes:
        prefix: of the round, in the bucket.
        budget: the caps on the day and on each partition.
    """

    submit_seconds: ClassVar[float] = SUBMIT_SECONDS

    prefix: str = ""
    budget: Budget = field(default_factory=Budget)

    def store(self) -> ObjectStore:
        """The round's part of the bucket."""
        return ObjectStore(self.client(), local.BUCKET, self.prefix)

    def account(self) -> Account:
        """Few slots a worker, and no webhooks: their receiver knows the whole bucket only."""
        found = super().account()
        return Account(
            found.realm, found.provider, found.downloader, SLOTS, None, budget=self.budget
        )


def main() -> None:
    """Run the rounds, print, and write them down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1, help="of the first round")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="caps-") as data:
        found = run(Path(data), args.rounds, seed=args.seed, progress=Console(stderr=True))
    ARTIFACTS.mkdir(exist_ok=True)
    (ARTIFACTS / "caps.json").write_text(as_json(found))
    table = Table("what", "count", title=f"{args.rounds} rounds, seeds from {args.seed}")
    for what, count in found["totals"].items():
        table.add_row(what, f"{count:,}")
    Console().print(table)
    if found["problems"]:
        sys.exit("\n".join(found["problems"]))


def run(data: Path, rounds: int, *, seed: int, progress: Console | None = None) -> dict[str, Any]:
    """Run rounds one after the other, each with a seed of its own.

    Args:
        data: an empty folder.
        rounds: how many.
        seed: of the first round; each next one's is larger by 1.
        progress: where a line for each round is printed.

    Returns:
        ``totals`` (what: count), ``problems`` (a sentence for each way in which a cap or a counter
        was wrong) and ``rounds`` (a row for each, with its story where it failed).
    """
    rows = []
    with site(data, EMULATOR, CappedSite) as place:
        for number in range(seed, seed + rounds):
            rows.append(_run_round(place, data, number))
            if progress is not None:
                told = {k: v for k, v in rows[-1].items() if k not in {"scopes", "story"}}
                progress.print(json.dumps(told), soft_wrap=True)
    problems = [f"seed {row['seed']}: {each}" for row in rows for each in row["problems"]]
    return {"seed": seed, "totals": _totals(rows), "problems": problems, "rounds": rows}


def as_json(found: Mapping[str, Any]) -> str:
    """A result as it is kept: a line a round."""
    lines = ",\n".join(f"  {json.dumps(row)}" for row in found["rounds"])
    rest = json.dumps({k: v for k, v in found.items() if k != "rounds"}, indent=1)
    return f'{rest[:-2]},\n "rounds": [\n{lines}\n ]\n}}\n'


def _run_round(place: Site, data: Path, seed: int) -> dict[str, Any]:
    _pass_midnight()
    began = time.monotonic()
    rng = random.Random(seed)  # noqa: S311 - not for secrets
    own = _with_caps(place, rng, seed)
    run_caps = {run_id: Cap(rng.randint(20, 40)) for run_id in RUNS}
    prompts = {
        name: [f"round {seed}, {name}, picture {number}" for number in range(REQUESTS)]
        for name in PARTITIONS
    }
    store = own.store()
    for name in PARTITIONS:
        keep_prompts(store, data, name, prompts[name])
    workers = _Workers(own, _plan_all(store, own, run_caps))
    with contextlib.closing(workers):
        workers.disturb(_events(rng, len(workers.shards)))
        workers.wait_for_end()
        time.sleep(HEARTBEAT.expired_seconds + 2)  # S3 tells the time in whole seconds
        workers.start_all()
        workers.wait_for_end()
    found = _judge(own, run_caps, prompts)
    problems = [*workers.problems, *found.pop("problems")]
    return {
        "seed": seed,
        "seconds": round(time.monotonic() - began, 1),
        "processes": workers.started,
        **{str(kind): workers.happened[kind] for kind in Kind},
        "frozen for longer than lease and heartbeat": workers.long_freezes,
        **found,
        "problems": problems,
        "story": workers.story if problems else [],
    }


def _pass_midnight() -> None:
    """A round has one day: what midnight does is tested by ``tests/ageing``."""
    now = datetime.now(UTC)
    midnight = (now + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
    if (left := (midnight - now).total_seconds()) < 3 * END_SECONDS:
        time.sleep(left + 2)


def _with_caps(place: Site, rng: random.Random, seed: int) -> CappedSite:
    """Caps below what is asked for, and near enough to each other that each binds now and then."""
    budget = Budget(day=Cap(rng.randint(50, 80)), partition=Cap(rng.randint(25, 42)))
    return CappedSite(**{**asdict(place), "prefix": f"round-{seed}", "budget": budget})


def _plan_all(
    store: ObjectStore, own: CappedSite, run_caps: Mapping[str, Cap]
) -> list[tuple[str, str]]:
    """Plan all runs before any buys; gives their shards."""
    shards = []
    for run_id, (name, size) in RUNS.items():
        asked = Launch(
            name,
            SEED,
            run_id=run_id,
            parameters=own.parameters,
            shard_size=size,
            max_images=run_caps[run_id].images,
        )
        made = plan(store, own.account(), asked)
        shards += [(run_id, shard) for shard in made.shards]
    return shards


def _events(rng: random.Random, shards: int) -> list[Event]:
    return sorted(
        (
            Event(
                rng.uniform(*EVENTS_SECONDS),
                kind,
                rng.randrange(shards),
                rng.uniform(*FREEZE_SECONDS),
            )
            for kind, count in EVENTS.items()
            for _ in range(count)
        ),
        key=lambda event: event.at,
    )


def buy_shard(place: Site, shard: str, run_id: str) -> None:
    """One worker: settle a shard, with leases and heartbeats of seconds."""
    settle_shard(place.store(), place.account(), run_id, shard, timing=TIMING)


@dataclass
class _Worker:
    """A process that buys a shard.

    Attributes:
        label: ``<run id>/<shard>``, and which process of it.
        thaw_at: when it is let go on; None unless it is frozen.
    """

    label: str
    process: ForkServerProcess
    was_killed: bool = False
    thaw_at: float | None = None


class _Workers:
    """The processes of a round.

    Attributes:
        shards: run id and shard, of each.
        started: how many processes.
        happened: events by kind, without those that met no process.
        long_freezes: freezes that outlast a lease and a heartbeat.
        story: what happened when, a line each.
        problems: processes that ended as they should not.
    """

    def __init__(self, place: CappedSite, shards: Sequence[tuple[str, str]]) -> None:
        self.shards = shards
        self.started = self.long_freezes = 0
        self.happened: Counter[Kind] = Counter()
        self.story: list[str] = []
        self.problems: list[str] = []
        self._place = place
        self._began = time.monotonic()
        self._workers: list[list[_Worker]] = [[] for _ in shards]
        self._ended_at: dict[int, float] = {}

    def disturb(self, events: Sequence[Event]) -> None:
        """Keep all shards running while the events happen, until all who were frozen go on."""
        self.start_all()
        left = list(events)
        self._began = time.monotonic()
        while left or self._frozen():
            now = time.monotonic() - self._began
            while left and left[0].at <= now:
                self._happen(left.pop(0))
            self._thaw()
            if left:
                self._start_ended()
            time.sleep(POLL_SECONDS)

    def start_all(self) -> None:
        """Start each shard."""
        for number in range(len(self.shards)):
            self._start(number)

    def wait_for_end(self) -> None:
        """Wait until all processes have ended."""
        deadline = time.monotonic() + END_SECONDS
        for worker in self._all():
            worker.process.join(max(0.0, deadline - time.monotonic()))
            if worker.process.is_alive():
                self.problems.append(f"{worker.label} did not end in {END_SECONDS:.0f} s")
            elif worker.process.exitcode != (-signal.SIGKILL if worker.was_killed else 0):
                self.problems.append(f"{worker.label} ended with {worker.process.exitcode}")

    def close(self) -> None:
        """Kill what is left."""
        for worker in self._all():
            worker.process.kill()
            worker.process.join()

    def _all(self) -> Iterator[_Worker]:
        return (worker for workers in self._workers for worker in workers)

    def _frozen(self) -> list[_Worker]:
        return [worker for worker in self._all() if worker.thaw_at is not None]

    def _start(self, number: int) -> None:
        run_id, shard = self.shards[number]
        label = f"{run_id}/{shard}#{len(self._workers[number]) + 1}"
        worker = _Worker(label, start(buy_shard, self._place, shard, run_id))
        self._workers[number].append(worker)
        self.started += 1
        self._tell(worker, "started")

    def _start_ended(self) -> None:
        now = time.monotonic()
        for number, workers in enumerate(self._workers):
            if any(worker.process.is_alive() for worker in workers):
                self._ended_at.pop(number, None)
            elif now - self._ended_at.setdefault(number, now) > START_AGAIN_SECONDS:
                self._start(number)

    def _happen(self, event: Event) -> None:
        alive = [w for w in self._workers[event.shard] if w.process.is_alive()]
        running = [w for w in alive if w.thaw_at is None]
        if event.kind is Kind.REDELIVER and alive:
            self._start(event.shard)
        elif event.kind is Kind.KILL and alive:
            alive[-1].process.kill()
            alive[-1].was_killed, alive[-1].thaw_at = True, None
            self._tell(alive[-1], event.kind)
        elif event.kind is Kind.FREEZE and running:
            os.kill(running[0].process.pid or 0, signal.SIGSTOP)
            running[0].thaw_at = time.monotonic() + event.seconds
            self.long_freezes += event.seconds > max(HEARTBEAT.expired_seconds, LEASE_SECONDS)
            self._tell(running[0], f"{event.kind} for {event.seconds:.2f} s")
        else:
            return
        self.happened[event.kind] += 1

    def _thaw(self) -> None:
        for worker in self._frozen():
            if worker.thaw_at is not None and worker.thaw_at <= time.monotonic():
                worker.thaw_at = None
                os.kill(worker.process.pid or 0, signal.SIGCONT)
                self._tell(worker, "goes on")

    def _tell(self, worker: _Worker, what: str) -> None:
        self.story.append(f"{time.monotonic() - self._began:6.2f} s  {worker.label} {what}")


def _judge(
    own: CappedSite, run_caps: Mapping[str, Cap], prompts: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    """Lay the emulator's books beside the caps and, after a recount, beside the counters."""
    store = own.store()
    for key in counter_keys(store):
        # As `recount` does it, which waits for the heartbeats of real workers.
        reclaim(store, Scope(store, key, Cap(), key), expired_seconds=HEARTBEAT.expired_seconds)
    changed = list(recount(store))
    partition_of = {prompt: name for name in PARTITIONS for prompt in prompts[name]}
    groups = [g for g in own.admin("purchases")["groups"] if g["prompt"] in partition_of]
    sold = {track: partition_of[g["prompt"]] for g in groups for track in g["track_ids"]}
    attempts = {
        attempt_id(entry.request_key, attempt.nonce): (name, attempt)
        for name in PARTITIONS
        for entry in read_entries(store, request_keys(own, name))
        for attempt in entry.attempts
    }
    is_unsure = {Outcome.SUBMITTING, Outcome.IN_DOUBT}
    doubts = {
        track: found
        for track, found in attempts.items()
        if track not in sold and found[1].outcome in is_unsure
    }
    known = {track: attempts[track] for track in sold if track in attempts}
    scopes = [
        _compare("day", day_scope(store, own.budget), len(sold), len(doubts)),
        *(
            _compare(
                f"partition {name}",
                partition_scope(store, own.budget, name, SEED),
                sum(each == name for each in sold.values()),
                sum(each == name for each, _ in doubts.values()),
            )
            for name in PARTITIONS
        ),
        *(
            _compare(
                f"run {run_id}",
                run_scope(store, run_id, cap),
                _of_run(known, run_id),
                _of_run(doubts, run_id),
            )
            for run_id, cap in run_caps.items()
        ),
    ]
    found = {
        "sold": len(sold),
        "in doubt, never sold": len(doubts),
        "bought twice": sum(group["count"] > 1 for group in groups),
        "sold, and unknown to the ledger": len(sold) - len(known),
        "overrun": sum(max(0, row["sold"] - row["cap"]) for row in scopes),
        "counted over a cap": sum(max(0, row["counted"] - row["cap"]) for row in scopes),
        "counters that differ from the books": sum(
            row["counted"] != row["sold"] + row["in doubt"] for row in scopes
        ),
        "reservations left open": sum(row["open"] for row in scopes),
        "caps that were reached": sum(row["counted"] == row["cap"] for row in scopes),
        "reservations that the recount changed": len(changed),
    }
    return {
        **found,
        "scopes": scopes,
        "problems": [f"{what}: {found[what]}, and it should be 0" for what in NEVER if found[what]],
    }


NEVER: Final = (
    "bought twice",
    "sold, and unknown to the ledger",
    "overrun",
    "counted over a cap",
    "counters that differ from the books",
    "reservations left open",
)


def _of_run(attempts: Mapping[str, tuple[str, Attempt]], run_id: str) -> int:
    return sum(attempt.run_id == run_id for _, attempt in attempts.values())


def _compare(name: str, scope: Scope, sold: int, in_doubt: int) -> dict[str, Any]:
    counter = scope.read()
    return {
        "scope": name,
        "cap": scope.cap.images,
        "sold": sold,
        "in doubt": in_doubt,
        "counted": counter.images_counted,
        "open": len(counter.open),
    }


def _totals(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    apart = {"seed", "seconds", "scopes", "problems", "story"}
    summed = [what for what in rows[0] if what not in apart] if rows else []
    scopes = [scope for row in rows for scope in row["scopes"]]
    return {
        "rounds": len(rows),
        "rounds that failed": sum(bool(row["problems"]) for row in rows),
        "seconds a round": round(sum(row["seconds"] for row in rows) / max(1, len(rows)), 1),
        **{what: sum(row[what] for row in rows) for what in summed},
        "caps": len(scopes),
        "images that all caps allow": sum(scope["cap"] for scope in scopes),
        "sold under them": sum(scope["sold"] for scope in scopes),
        "in doubt under them": sum(scope["in doubt"] for scope in scopes),
    }


if __name__ == "__main__":
    main()
