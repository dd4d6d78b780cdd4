"""`Engine`: settles the requests of one shard, buying each at most once; `Report` says what came.

Two stages of threads with a bounded hand-over. Submit workers hold a provider slot while they
claim, send and poll; transfer workers store the pictures in the bucket. A slow bucket does not idle
the provider before the hand-over is full.
"""

import contextlib
import functools
import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from typing import Final, Self

from nanobanana_pipeline.errors import (
    EntryDamaged,
    NanobananaError,
    ProviderHalt,
    StorageFull,
    StorageUnavailable,
)
from nanobanana_pipeline.generation.budget.reservations import ShardBudget
from nanobanana_pipeline.generation.engine.metrics import NO_METRICS, Metrics
from nanobanana_pipeline.generation.engine.submit import Submitter
from nanobanana_pipeline.generation.engine.thread_group import StopEvents, ThreadGroup
from nanobanana_pipeline.generation.engine.timing import DEFAULT_TIMING, Timing
from nanobanana_pipeline.generation.engine.transfer import Transfer
from nanobanana_pipeline.generation.engine.work_queue import (
    Downloadable,
    Finished,
    Requeue,
    WorkItem,
    WorkQueue,
)
from nanobanana_pipeline.generation.planning.run_files import PlannedRequest
from nanobanana_pipeline.ledger import Entry, State
from nanobanana_pipeline.provider.account import Account
from nanobanana_pipeline.provider.slots import Slots
from nanobanana_pipeline.storage import ObjectStore
from nanobanana_pipeline.wording import counted, size_text

__all__ = ["Engine", "Progress", "Report"]

log = logging.getLogger(__name__)

MAX_REASONS: Final = 20
HOPELESS_REFUSALS: Final = 8


@dataclass(frozen=True)
class Progress:
    """How far a running engine is: requests, images, bytes and pace."""

    total: int
    finished: int
    at_provider: int
    slots: int
    images: int
    size: int
    seconds: float

    def __str__(self) -> str:
        pace = self.images / self.seconds if self.seconds else 0.0
        return (
            f"{self.finished:,} of {counted(self.total, 'request')}, "
            f"{counted(self.images, 'image')}, "
            f"{size_text(self.size)}, {pace:.1f} images/s, "
            f"{self.at_provider} at the provider ({self.slots} slots)"
        )


@dataclass
class Report:
    """Counts and reasons of a shard, or of several together.

    Attributes:
        states: requests by their state at the end; `open` means not bought in this run.
        bought: how many the provider accepted in this run.
        images, size: pictures stored by this run, and their bytes.
        seconds: wall time.
        provider_seconds: summed over `served` requests, from sending to seeing that they are done.
        rate_limited: answers that said 429.
        spent: images that count as bought: all but those that surely were not.
        over_budget: requests that were not bought because of a cap.
        reasons: why requests are not settled, with how often; the first 20 different ones.
        halted: why buying stopped early, if it did.
    """

    states: Counter[State] = field(default_factory=Counter)
    bought: int = 0
    images: int = 0
    size: int = 0
    seconds: float = 0.0
    provider_seconds: float = 0.0
    served: int = 0
    rate_limited: int = 0
    spent: int = 0
    over_budget: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    halted: str | None = None

    @property
    def request_seconds(self) -> float | None:
        """Mean seconds that the provider took for a request; None if it served none."""
        return self.provider_seconds / self.served if self.served else None

    def __iadd__(self, other: Self) -> Self:
        for name in (each.name for each in fields(self)):
            mine, more = getattr(self, name), getattr(other, name)
            setattr(self, name, mine or more if name == "halted" else mine + more)
        return self


class Engine:
    """Settles one shard of requests; made anew for each.

    The budget's run id is written into every attempt; with `rebuy` requests in doubt or lost are
    sent again. `on_settled` is given each entry that this engine settles, from any of its threads.
    """

    def __init__(
        self,
        store: ObjectStore,
        account: Account,
        slots: Slots,
        budget: ShardBudget,
        *,
        rebuy: bool = False,
        on_settled: Callable[[Entry], None] | None = None,
        metrics: Metrics = NO_METRICS,
        timing: Timing = DEFAULT_TIMING,
    ) -> None:
        self._metrics = metrics
        self._slots = slots
        self._budget = budget
        self._on_settled = on_settled
        self._timing = timing
        stopping = StopEvents()
        self._stop, self._give_up = stopping.stop, stopping.give_up
        self._all_started, self._all_submitted = threading.Event(), threading.Event()
        self._submitter = Submitter(
            store,
            account,
            slots,
            budget=budget,
            stopping=stopping,
            rebuy=rebuy,
            metrics=metrics,
            timing=timing,
        )
        self._transfer = Transfer(
            store,
            self._submitter.ledger,
            account.provider,
            account.downloader,
            run_id=budget.run_id,
            metrics=metrics,
            timing=timing,
            give_up=stopping.give_up,
        )
        self._hand_over: queue.Queue[Downloadable] = queue.Queue(timing.hand_over)
        self._lock = threading.Lock()
        self._report = Report()
        self._over_budget: dict[str, Finished] = {}
        self._refused = 0
        self._fault: BaseException | None = None

    def settle(
        self,
        planned: Iterable[PlannedRequest],
        count: int,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> Report:
        """Settle what can be settled; what cannot is left in a state that says why.

        The planned requests, `count` of them, are taken one by one, and not kept: those that a cap
        forbade are read once more at the end, if it has room by then. `on_progress` is called now
        and then from this thread; what it raises stops the engine as an interrupt does.

        Raises:
            BaseException: what interrupted the calling thread, once nothing more is sent and
                requests in flight have had their grace.
            NanobananaError: a fault of ours or of the bucket that ends the shard.
        """
        started = time.monotonic()

        def report_progress() -> None:
            if on_progress is not None:
                on_progress(self._progress(count, started))

        submitting = self._submitting(planned, count)
        transferring = ThreadGroup("transfer", self._run_transfer_worker)
        try:
            submitting.start(min(self._slots.most, count))
            transferring.start(min(self._timing.transfer_workers, count))
            self._all_started.set()
            self._wait_for(submitting, report_progress)
            if (over := self._over_budget) and self._has_room_now():
                self._over_budget = {}
                again = (each for each in planned if each.request_key in over)
                submitting = self._submitting(again, len(over))
                submitting.start(min(self._slots.most, len(over)))
                self._wait_for(submitting, report_progress)
            self._all_submitted.set()
            self._wait_for(transferring, report_progress)
        except BaseException:
            self._stop.set()
            self._all_started.set()
            log.warning("stopping: nothing more is sent; waiting for requests in flight")
            self._wind_down(submitting, transferring, time.monotonic() + self._timing.grace_seconds)
            raise
        if self._fault is not None:
            raise self._fault
        report = self._report
        for finished in self._over_budget.values():
            self._count(finished.state, finished.reason)
        report.over_budget = len(self._over_budget)
        report.seconds = time.monotonic() - started
        report.bought = self._submitter.accepted
        report.provider_seconds = self._submitter.provider_seconds
        report.served = self._submitter.served
        report.spent = self._budget.spent
        report.rate_limited = self._slots.rate_limited
        not_reached = count - report.states.total()
        report.states[State.OPEN] += not_reached
        self._metrics.ended(State.OPEN, not_reached)
        report.states = +report.states
        return report

    def _has_room_now(self) -> bool:
        """Whether a cap that forbade requests has room, once all others have been sent."""
        try:
            return not self._stop.is_set() and self._budget.ask_again()
        except StorageUnavailable as error:
            log.warning("the caps were not asked once more for room: %s", error)
            return False

    def _submitting(self, planned: Iterable[PlannedRequest], count: int) -> ThreadGroup:
        work_queue = WorkQueue(map(WorkItem, planned), count)
        return ThreadGroup("submit", functools.partial(self._run_submit_worker, work_queue))

    def _wait_for(self, threads: ThreadGroup, report_progress: Callable[[], None]) -> None:
        """Wait for threads in small steps, so that the calling thread can be interrupted."""
        self._metrics.slots(self._slots.in_use, self._slots.limit)
        due = time.monotonic() + self._timing.progress_seconds
        while not threads.wait(0.2):
            self._metrics.slots(self._slots.in_use, self._slots.limit)
            if time.monotonic() >= due:
                due += self._timing.progress_seconds
                report_progress()

    def _wind_down(
        self, submitting: ThreadGroup, transferring: ThreadGroup, deadline: float
    ) -> None:
        """Let both stages finish until the deadline; the ledger keeps what is not done by then."""
        if not submitting.wait(deadline - time.monotonic()):
            self._give_up.set()
        # In a thread of its own: a stop must not wait for a bucket that stays silent.
        doubts = ThreadGroup("doubts", self._submitter.in_flight.doubt_unanswered)
        doubts.start(1)
        doubts.wait(self._timing.doubt_seconds)
        self._all_submitted.set()
        transferring.wait(deadline - time.monotonic())
        self._give_up.set()

    def _run_submit_worker(self, work_queue: WorkQueue) -> None:
        # Buy nothing before all threads have started: an interrupt while they start could otherwise
        # leave some that are not waited for.
        self._all_started.wait()
        while (item := work_queue.take(self._stop)) is not None:
            if self._transfer.is_stuck:
                work_queue.put_back(item, self._timing.stuck_poll_seconds)
                continue
            try:
                step = self._submitter.advance(item)
            except ProviderHalt as error:
                self._halt(str(error))
                step = Finished(item.state, f"stopped: {error}")
            except StorageUnavailable as error:
                key = item.planned.request_key
                log.warning("request %s is left for a later launch: %s", key, error)
                step = Finished(item.state, str(error))
                if isinstance(error, StorageFull):
                    self._halt(str(error))
            except EntryDamaged as error:
                step = Finished(State.IN_DOUBT, str(error))
            except BaseException as error:  # noqa: BLE001 - raised again where settle was called
                self._fail(error)
                return
            match step:
                case Requeue(seconds):
                    work_queue.put_back(item, seconds)
                case Downloadable():
                    work_queue.finish()
                    self._put_downloadable(step)
                case Finished(over_budget=True):
                    work_queue.finish()
                    with self._lock:
                        self._over_budget[item.planned.request_key] = step
                case Finished(state, reason):
                    work_queue.finish()
                    self._count(state, reason)

    def _run_transfer_worker(self) -> None:
        while (next_one := self._take_downloadable()) is not None:
            try:
                result = self._transfer.settle(next_one.held, next_one.nonce, next_one.done)
            except StorageUnavailable as error:
                full = isinstance(error, StorageFull)
                reason = "bought, and not brought: the bucket is full" if full else str(error)
                self._count(State.ACCEPTED, reason)
                if full or self._transfer.is_stuck:
                    self._halt(str(error))
            except EntryDamaged as error:
                self._count(State.IN_DOUBT, str(error))
            except BaseException as error:  # noqa: BLE001 - raised again where settle was called
                self._fail(error)
                return
            else:
                with self._lock:
                    self._report.images += result.images
                    self._report.size += result.size
                self._metrics.stored(result.images, result.size)
                entry = result.held.entry
                if entry.state is State.SETTLED and self._on_settled:
                    self._on_settled(entry)
                self._count(entry.state, result.reason)
                if result.refused:
                    self._count_refused(str(result.reason))

    def _count_refused(self, reason: str) -> None:
        """Stop buying where our own rules refuse every picture, but not for a few refused ones."""
        with self._lock:
            self._refused += 1
            hopeless = self._refused >= HOPELESS_REFUSALS and not self._report.images
        if hopeless:
            self._halt(reason)

    def _take_downloadable(self) -> Downloadable | None:
        while not self._give_up.is_set():
            # Read before the queue: whatever was put into it by then is seen below.
            all_submitted = self._all_submitted.is_set()
            wait = 0.0 if all_submitted else self._timing.hand_over_poll_seconds
            with contextlib.suppress(queue.Empty):
                return self._hand_over.get(timeout=wait)
            if all_submitted:
                return None
        return None

    def _put_downloadable(self, downloadable: Downloadable) -> None:
        """Hand over to a transfer worker; if a stop comes first, the ledger keeps the request."""
        while not self._give_up.is_set():
            with contextlib.suppress(queue.Full):
                self._hand_over.put(downloadable, timeout=self._timing.hand_over_poll_seconds)
                return
        self._count(State.ACCEPTED, "stopped before its pictures were brought")

    def _count(self, state: State, reason: str | None) -> None:
        self._metrics.ended(state)
        with self._lock:
            self._report.states[state] += 1
            reasons = self._report.reasons
            if reason and (reason in reasons or len(reasons) < MAX_REASONS):
                reasons[reason] += 1

    def _halt(self, reason: str) -> None:
        with self._lock:
            is_news = self._report.halted is None
            self._report.halted = self._report.halted or reason
        if is_news:
            log.warning("nothing more is bought: %s", reason)
        self._stop.set()

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            self._fault = self._fault or error
        # Errors that the domain raises on purpose need no traceback.
        log.error("stopping: %s", error, exc_info=not isinstance(error, NanobananaError) and error)
        self._stop.set()
        self._give_up.set()

    def _progress(self, total: int, started: float) -> Progress:
        with self._lock:
            return Progress(
                total=total,
                finished=self._report.states.total(),
                at_provider=self._slots.in_use,
                slots=self._slots.limit,
                images=self._report.images,
                size=self._report.size,
                seconds=time.monotonic() - started,
            )
