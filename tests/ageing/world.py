"""One bucket, one provider, several workers, and somebody who means them no good.

`World.age` lets an adversary choose, step by step, who goes on and what goes wrong; then all
faults end, the clocks run on, and sound workers come by.
"""

import contextlib
import heapq
import itertools
import logging
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, tzinfo
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, Protocol, cast
from unittest import mock

import tenacity
from pydantic import SecretStr

from nanobanana_pipeline.errors import ProviderHalt, StorageUnavailable
from nanobanana_pipeline.generation.budget import counters, incarnation, reclaim, reservations
from nanobanana_pipeline.generation.budget.counters import (
    Scope,
    day_scope,
    partition_scope,
    run_scope,
)
from nanobanana_pipeline.generation.budget.reservations import ShardBudget
from nanobanana_pipeline.generation.engine import transfer
from nanobanana_pipeline.generation.engine.submit import Submitter
from nanobanana_pipeline.generation.engine.thread_group import StopEvents
from nanobanana_pipeline.generation.engine.transfer import Transfer
from nanobanana_pipeline.generation.engine.work_queue import (
    Downloadable,
    Finished,
    Requeue,
    WorkItem,
)
from nanobanana_pipeline.generation.planning.run_files import (
    PlannedRequest,
    RunPlan,
    write_plan,
    write_shards,
)
from nanobanana_pipeline.ledger import attempt, ledger
from nanobanana_pipeline.money import Budget, Cap
from nanobanana_pipeline.provider import slots
from nanobanana_pipeline.provider.account import Account
from nanobanana_pipeline.provider.modelslab.request import ModelsLabRequest
from nanobanana_pipeline.provider.slots import Slots
from nanobanana_pipeline.request import request_key
from nanobanana_pipeline.storage import ObjectStore, cas
from nanobanana_pipeline.webhooks.inbox import Inbox, Webhooks, attempt_id
from tests.ageing.fake_provider import FakeDownloader, FakeProvider, Order
from tests.ageing.fake_s3 import FakeS3
from tests.ageing.scheduler import Actor, Pause, Scheduler, SimCondition, SimEvent, SimLock, SimTime
from tests.ageing.witness import Violation, Witness

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

    from nanobanana_pipeline.provider.downloads import Downloader

__all__ = ["FAULTS", "Chooser", "World"]

FAULTS: Final = (
    *("s3", "provider", "crash", "freeze", "jump", "rebuy"),
    *("webhooks", "decay", "stop", "budget", "redelivery"),
)
REQUESTS: Final = tuple(
    ModelsLabRequest(prompt=prompt, seed=1, width=1024, height=1024, samples=samples)
    for prompt, samples in (("a red panda", 1), ("a blue whale", 2), ("a green frog", 1))
)
KEYS: Final = tuple(request_key(request, realm="test") for request in REQUESTS)
PAUSES: Final = (5.0, 40.0, 140.0, 200.0, 1200.0, 7200.0, 90_000.0)
CLOCKS: Final = (0.0, 1e6, -3600.0)
WALLS: Final = (0.0, 45.0, -45.0)
MOST_IMAGES: Final = 4
MOST_WORKERS: Final = 4
LAST_STEPS: Final = 20_000
HOUR: Final = 3600.0
TICKETS: Final = 5
STEADY: Final = 12
"""An actor's tickets in the draw of who goes on, and those of the one that went last: races need a
fair draw, depth a steady one."""
PEACE: Final = (3, 6, 20)
"""Every so manieth step, on the average, is a harm."""


class Chooser(Protocol):
    """The adversary's will: any number from 0 to `count - 1`; 0 does the least harm."""

    def __call__(self, count: int) -> int: ...


class InTurn:
    """A `ThreadPoolExecutor` that does one thing after another."""

    def __init__(self, _: int) -> None:
        pass

    def map(self, job: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        return map(job, items)

    def shutdown(self, **_: bool) -> None:
        pass


@dataclass(eq=False)
class Worker:
    """A shard of a run on one machine, as `Engine` works, with both stages in each thread.

    Attributes:
        run_id: the run's; a step that is delivered twice gives it to two workers.
        threads: those that buy; the first opens and closes the budget.
    """

    name: str
    run_id: str
    submitter: Submitter
    transfer: Transfer
    budget: ShardBudget
    stop: SimEvent
    give_up: SimEvent
    ended: SimEvent
    threads: list[Actor] = field(default_factory=list)
    others: list[Actor] = field(default_factory=list)

    @property
    def is_over(self) -> bool:
        return all(thread.ended for thread in self.threads)


class World:
    """Everything that one schedule plays with.

    Args:
        choose: decides everything that is not decided by the product.
        steps: how many decisions the adversary has.
        faults: which of `FAULTS` there may be; None lets the adversary choose.
    """

    def __init__(self, choose: Chooser, *, steps: int, faults: Sequence[str] | None = None) -> None:
        self._choose = choose
        self._steps = steps
        self.faults = frozenset(
            [fault for fault in FAULTS if choose(2)] if faults is None else faults
        )
        self.scheduler = Scheduler()
        self.provider = FakeProvider(self.scheduler)
        self.witness = Witness(self.scheduler, self.provider)
        self.provider.auditor = self.witness
        self.s3 = FakeS3(self.scheduler, clock=self._one_of(CLOCKS), on_write=self.witness.wrote)
        self.witness.s3 = self.s3
        self.s3.healthy = "s3" not in self.faults
        self.provider.healthy = "provider" not in self.faults
        self.store = ObjectStore(cast("S3Client", self.s3), "bucket")
        self._inbox = Inbox(self.store)
        self._asked = list(zip(KEYS, REQUESTS, strict=True))[: 1 + choose(len(KEYS))]
        self.caps = [1 + choose(MOST_IMAGES) for _ in ("partition", "day", "run")]
        if "budget" in self.faults:
            self.witness.caps = self.caps
        self._peace = self._one_of(PEACE)
        self._workers: list[Worker] = []
        self._started = 0
        self._last: Actor | None = None
        self._frozen: list[tuple[Actor, Pause, Pause]] = []
        self._mailed: set[tuple[int, int]] = set()

    def age(self) -> None:
        """Play one schedule.

        Raises:
            Violation: a promise was broken.
            BaseException: a worker fell over.
        """
        with self.patched():
            try:
                for _ in range(1 + self._choose(2)):
                    self._hire()
                for _ in range(self._steps):
                    if not self.scheduler.actors:
                        self._hire()
                    self._step()
                self._end_well()
            finally:
                self.scheduler.end()

    # ── the adversary ────────────────────────────────────────────────────────────────────────

    def _step(self) -> None:
        """One decision."""
        ready = [actor for actor in self.scheduler.actors if self.scheduler.is_ready(actor)]
        due = [a for a in ready if a.pause.deadline <= self.scheduler.now]
        if due:
            self._run(due[0])
            return
        moves: list[Callable[[], None]] = []
        for actor in sorted(ready, key=lambda each: each is not self._last):
            tickets = STEADY if actor is self._last else TICKETS
            moves += [lambda a=actor: self._run(a)] * tickets  # type: ignore[misc]
        if any(actor not in ready for actor in self.scheduler.actors):
            moves += [self._tick] * (3 if ready else STEADY)
        # Two draws rather than one: a schedule without its harm stays the same otherwise.
        if self._choose(self._peace) == self._peace - 1:
            moves = self._harms() or moves
        self._one_of(moves)()

    def _harms(self) -> list[Callable[[], None]]:
        moves: list[Callable[[], None]] = []
        actors = self.scheduler.actors
        if "crash" in self.faults and actors:
            moves.append(self._crash)
        if len([w for w in self._workers if not w.is_over]) < MOST_WORKERS:
            moves.append(self._hire)
        if "freeze" in self.faults and actors:
            moves += [self._freeze] * 2
        if "jump" in self.faults:
            moves.append(self._jump)
        if self.s3.in_flight:
            moves += [self._land] * 2
        if "webhooks" in self.faults and self.provider.orders:
            moves.append(self._mail)
        if "decay" in self.faults and self.provider.orders:
            moves.append(self._decay)
        if "stop" in self.faults and self._workers:
            moves.append(self._stop)
        return moves

    def _run(self, actor: Actor) -> None:
        self._last = actor
        self.scheduler.run(actor, self._one_of(actor.pause.outcomes))

    def _tick(self) -> None:
        """Let time pass until somebody wakes."""
        sleeping = [a for a in self.scheduler.actors if not self.scheduler.is_ready(a)]
        wakes = [a.pause.wake for a in sleeping if a.pause.wake < float("inf")]
        if wakes:
            self._pass_to(min(wakes))

    def _jump(self) -> None:
        seconds = self._one_of(PAUSES)
        self.scheduler.tell(f"{seconds:.0f} s pass")
        self._pass_to(self.scheduler.now + seconds)

    def _pass_to(self, moment: float) -> None:
        deadlines = [actor.pause.deadline for actor in self.scheduler.actors]
        self.scheduler.now = max(self.scheduler.now, min([moment, *deadlines]))

    def _freeze(self) -> None:
        """Stop one thread or a whole process for a while; the others go on."""
        actor, seconds = self._one_of(self.scheduler.actors), self._one_of(PAUSES)
        stopped = self._process_of(actor) if self._choose(2) else [actor]
        self.scheduler.tell(f"{[a.name for a in stopped]} are frozen for {seconds:.0f} s")
        for each in stopped:
            wake = min(self.scheduler.now + seconds, each.pause.deadline)
            frozen = replace(each.pause, wake=max(wake, each.pause.wake), event=None)
            self._frozen.append((each, frozen, each.pause))
            each.pause = frozen

    def _process_of(self, actor: Actor) -> list[Actor]:
        """The threads that live and die with one."""
        for worker in self._workers:
            if actor in (own := [*worker.threads, *worker.others]):
                return [each for each in self.scheduler.actors if each in own]
        return [actor]

    def _crash(self) -> None:
        actor = self._one_of(self.scheduler.actors)
        if actor.pause.what == "start":
            return
        others = [each for each in self._process_of(actor) if each is not actor]
        self.scheduler.crash(actor, self._one_of((None, *actor.pause.outcomes)))
        for other in others:
            self.scheduler.crash(other)

    def _land(self) -> None:
        write = self.s3.in_flight.pop(self._choose(len(self.s3.in_flight)))
        self.scheduler.tell(f"a late write lands: {'applied' if self.s3.land(write) else 'void'}")

    def _mail(self) -> None:
        """The provider tells of an order that is done: early, late, or once more."""
        order = self._one_of(self.provider.orders)
        if self.scheduler.now >= order.ready or order.failed:
            body = order.webhook(shape=self._choose(3))
            self.scheduler.tell(f"a webhook tells of {order.provider_id}")
            self._inbox.put(attempt_id(order.key, order.nonce), body)

    def _decay(self) -> None:
        order: Order = self._one_of(self.provider.orders)
        match self._choose(3):
            case 0 if self.scheduler.now < order.ready:
                order.failed = True
            case 1:
                order.forgotten = True
            case 2 if self.scheduler.now < order.ready:
                order.broken = True
        self.scheduler.tell(
            f"{order.provider_id}: failed {order.failed}, forgotten {order.forgotten}, "
            f"broken {order.broken}"
        )

    def _stop(self) -> None:
        """Ask a run to stop; when asked again its grace is over, as `Engine` ends."""
        worker = self._one_of(self._workers)
        self.scheduler.tell(f"{worker.name} is told to stop")
        if not worker.stop.is_set():
            worker.stop.set()
        elif not worker.give_up.is_set():
            worker.give_up.set()
            if not worker.is_over and not worker.threads[0].crashed:
                self._beside(worker, "doubts", worker.submitter.in_flight.doubt_unanswered)

    # ── the end ──────────────────────────────────────────────────────────────────────────────

    def _end_well(self) -> None:
        """No more faults: what is under way ends or is gone, and sound workers come by."""
        self.scheduler.tell("all faults end")
        self.s3.healthy = self.provider.healthy = True
        for actor, frozen, before in reversed(self._frozen):
            if actor.pause is frozen:
                actor.pause = before
        while self.s3.in_flight:
            self._land()
        if self._choose(2):
            for actor in list(self.scheduler.actors):
                self.scheduler.crash(actor)
        self._run_out()
        for hours in (1, 1):
            self._rest(hours)
        self.witness.check_brought()
        for hours in (26, 1):
            self._rest(hours)
        self.witness.check_end()

    def _rest(self, hours: float) -> None:
        self.scheduler.now += hours * HOUR
        self._hire(sound=True)
        self._run_out()

    def _run_out(self) -> None:
        for step in range(LAST_STEPS):
            if not self.scheduler.actors:
                return
            ready = [a for a in self.scheduler.actors if self.scheduler.is_ready(a)]
            if ready:
                self.scheduler.run(ready[step % len(ready)])
            else:
                self._tick()
        raise Violation("sound workers never come to an end")

    # ── workers ──────────────────────────────────────────────────────────────────────────────

    def _hire(self, *, sound: bool = False) -> None:
        """A new run begins, on some machine."""
        self._started += 1
        name = run_id = f"run-{self._started}"
        if not sound and "redelivery" in self.faults and self._workers and self._choose(2):
            run_id = self._one_of(self._workers).run_id
        rebuy = not sound and "rebuy" in self.faults and self._choose(2) == 1
        self.witness.rebuy_chosen |= rebuy
        account = self.account(with_webhooks=not sound and "webhooks" in self.faults)
        stop, give_up = SimEvent(self.scheduler), SimEvent(self.scheduler)
        budget = self._budget_of(run_id)
        submitter = Submitter(
            self.store,
            account,
            Slots(2, clock=self.scheduler.boot_clock),
            budget=budget,
            stopping=StopEvents(stop, give_up),
            rebuy=rebuy,
        )
        transfer = Transfer(
            self.store,
            submitter.ledger,
            account.provider,
            account.downloader,
            run_id=run_id,
            give_up=give_up,
        )
        ended = SimEvent(self.scheduler)
        worker = Worker(name, run_id, submitter, transfer, budget, stop, give_up, ended)
        boot, wall = (0.0, 0.0) if sound else (self._one_of(CLOCKS), self._one_of(WALLS))
        main = self.scheduler.start(name, lambda: self._work(worker), boot=boot, wall=wall)
        worker.threads.append(main)
        self._workers.append(worker)
        again = ", and buys again" if rebuy else ""
        self.scheduler.tell(f"{name} begins shard-0000 of {run_id}{again}")

    def _beside(self, worker: Worker, what: str, job: Callable[[], None]) -> Actor:
        """Another thread of a worker's process."""
        main = worker.threads[0]
        name = f"{worker.name}'s {what}"
        started = self.scheduler.start(name, job, boot=main.boot, wall=main.wall)
        worker.others.append(started)
        return started

    def _budget_of(self, run_id: str) -> ShardBudget:
        """What a run may spend, and the run files by which others count it later."""
        budget = Budget(partition=Cap(images=self.caps[0]), day=Cap(images=self.caps[1]))
        asked = [PlannedRequest(k, r) for k, r in self._asked]

        def scopes_of(day: str) -> list[Scope]:
            return [
                partition_scope(self.store, budget, "set", 1),
                day_scope(self.store, budget, day),
                run_scope(self.store, run_id, Cap(images=self.caps[2])),
            ]

        if "budget" not in self.faults:
            return ShardBudget(self.store, lambda _: [], price=None, run_id=run_id, shard="s")
        shards = write_shards(self.store, run_id, asked, len(asked), None)
        write_plan(
            self.store,
            RunPlan("set", 1, run_id, "", {}, None, *(0, {}, 0, 0, 0, 0), shards=shards),
        )
        return ShardBudget(self.store, scopes_of, price=None, run_id=run_id, shard=shards[0])

    def _work(self, worker: Worker) -> None:
        """`settle_shard`: its budget's account is opened, and closed in the end."""
        try:
            worker.budget.open(sum(request.samples for _, request in self._asked))
        except StorageUnavailable:
            return
        self._beside(worker, "heart", lambda: self._beat(worker))
        if self._choose(2):
            done = SimEvent(self.scheduler)

            def settle_second() -> None:
                self._settle(worker, 1, 2)
                done.set()

            worker.threads.append(self._beside(worker, "second", settle_second))
            self._settle(worker, 0, 2)
            done.wait()
        else:
            self._settle(worker, 0, 1)
        worker.ended.set()
        with contextlib.suppress(StorageUnavailable):
            worker.budget.close()

    def _beat(self, worker: Worker) -> None:
        while not worker.ended.wait(60.0):
            worker.budget.beat()

    def _settle(self, worker: Worker, first: int, step_of: int) -> None:
        """`Engine`'s two loops in one thread, over every so manieth request."""
        order = itertools.count()
        asked = self._asked[first::step_of]
        todo = [(0.0, next(order), WorkItem(PlannedRequest(k, r))) for k, r in asked]
        while todo and not worker.stop.is_set():
            due, _, work = heapq.heappop(todo)
            if due > self.scheduler.boot_clock():
                worker.stop.wait(due - self.scheduler.boot_clock())
            try:
                step = worker.submitter.advance(work)
                self.witness.leaving()
                match step:
                    case Requeue(seconds):
                        due = self.scheduler.boot_clock() + seconds if seconds else 0.0
                        heapq.heappush(todo, (due, next(order), work))
                    case Downloadable(held, nonce, done):
                        result = worker.transfer.settle(held, nonce, done)
                        self.scheduler.tell(f"    {worker.name} has brought: {result.reason}")
                    case Finished(state, reason):
                        self.scheduler.tell(f"    {worker.name} ends: {state}, {reason}")
            except StorageUnavailable:
                self.witness.excused()
            except ProviderHalt:
                worker.stop.set()

    def account(self, *, with_webhooks: bool = False) -> Account:
        return Account(
            "test",
            self.provider,
            cast("Downloader", FakeDownloader(self.scheduler, self.provider)),
            slots=2,
            webhooks=Webhooks("https://us.test", SecretStr("secret")) if with_webhooks else None,
        )

    def _one_of(self, options: Sequence[Any]) -> Any:
        return options[self._choose(len(options))]

    @contextlib.contextmanager
    def patched(self) -> Iterator[None]:
        """Put the product on the scheduler's clocks; nonces are counted, for one story a schedule.

        Warnings are silenced: of faults there are thousands.
        """
        time = SimTime(self.scheduler)
        scheduler, numbers = self.scheduler, itertools.count(1)

        class SimDatetime(datetime):
            @classmethod
            def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
                return scheduler.wall_clock().astimezone(tz)

        # S3 is asked again after a wait with jitter: a schedule repeats it to the letter.
        jitter = random.Random(0)  # noqa: S311 - not for secrets
        unique = SimpleNamespace(uuid4=lambda: SimpleNamespace(hex=f"{next(numbers):016x}"))
        threads = SimpleNamespace(
            Condition=lambda: SimCondition(scheduler), Lock=lambda: SimLock(scheduler)
        )
        with contextlib.ExitStack() as stack:
            for module, name, fake in (
                (cas, "time", time),
                (ledger, "ThreadPoolExecutor", InTurn),
                (tenacity, "time", time),
                (tenacity.nap, "time", time),
                (tenacity.wait, "random", jitter),
                (attempt, "datetime", SimDatetime),
                (counters, "datetime", SimDatetime),
                (reclaim, "datetime", SimDatetime),
                (incarnation, "time", time),
                (transfer, "datetime", SimDatetime),
                (attempt, "uuid", unique),
                (slots, "threading", threads),
                (reservations, "threading", threads),
            ):
                stack.enter_context(mock.patch.object(module, name, fake))
            disabled = logging.root.manager.disable
            stack.callback(logging.disable, disabled)
            logging.disable(logging.CRITICAL)
            yield
