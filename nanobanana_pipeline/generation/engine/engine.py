"""The engine: settles a shard's requests, buying each at most once.

Two stages with a bounded hand-over. Buyers hold a provider slot while they claim, send and wait;
movers bring what is ready into the bucket. A slow bucket never idles the provider until the
hand-over is full.
"""

import contextlib
import functools
import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final, Self

from nanobanana_pipeline.errors import (
    NanobananaError,
    ProviderHalt,
    StorageFull,
    StorageUnavailable,
)
from nanobanana_pipeline.generation.budget.reservations import ShardBudget
from nanobanana_pipeline.generation.engine.metrics import NO_METRICS, Metrics
from nanobanana_pipeline.generation.engine.submit import Submitter
from nanobanana_pipeline.generation.engine.thread_group import ThreadGroup
from nanobanana_pipeline.generation.engine.transfer import Transfer
from nanobanana_pipeline.generation.engine.work_queue import (
    Bought,
    Ended,
    Later,
    PlannedRequest,
    Work,
    WorkQueue,
)
from nanobanana_pipeline.ledger import Entry, Ledger, State
from nanobanana_pipeline.provider.account import Account
from nanobanana_pipeline.provider.slots import Slots
from nanobanana_pipeline.storage import ObjectStore
from nanobanana_pipeline.wording import counted, size_text

__all__ = ["Engine", "Progress", "Report"]

log = logging.getLogger(__name__)

MOVERS: Final = 8
HAND_OVER: Final = 64
HAND_OVER_POLL_SECONDS: Final = 0.2
GRACE_SECONDS: Final = 20.0
DOUBT_SECONDS: Final = 10.0
MAX_REASONS: Final = 20
HOPELESS_REFUSALS: Final = 8
STUCK_POLL_SECONDS: Final = 1.0


@dataclass(frozen=True)
class Progress:
    """A moment of a running engine: requests, images, bytes and pace."""

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
    """What a shard came to.

    Attributes:
        states: requests by what they ended as; `open` means not bought in this run.
        bought: how many the provider accepted in this run.
        images: pictures stored by this run.
        size: their bytes.
        seconds: wall time.
        provider_seconds: summed over requests, from sending to noticing that it is done.
        served: requests over which that is summed.
        rate_limited: answers that said 429.
        spent: images that count as bought: all that were not surely not.
        over_budget: requests that a cap kept from being bought.
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
        """How long the provider took for a request, as a mean; None if it served none."""
        return self.provider_seconds / self.served if self.served else None

    def __iadd__(self, other: Self) -> Self:
        self.states += other.states
        self.bought += other.bought
        self.images += other.images
        self.size += other.size
        self.seconds += other.seconds
        self.provider_seconds += other.provider_seconds
        self.served += other.served
        self.rate_limited += other.rate_limited
        self.spent += other.spent
        self.over_budget += other.over_budget
        self.reasons += other.reasons
        self.halted = self.halted or other.halted
        return self


class Engine:
    """Settles one shard of requests; made anew for each.

    Args:
        store: the bucket.
        account: who buys.
        slots: how many requests may be at the provider at once.
        purse: what may be spent.
        run_id: written into every attempt.
        rebuy: send requests in doubt or lost again.
        on_progress: called every `progress_seconds` from the calling thread. What it raises stops
            the engine as an interrupt does.
        progress_seconds: how often.
        on_settled: is given each entry that this engine settles, from any of its threads.
        metrics: is told of what happens.
    """

    def __init__(
        self,
        store: ObjectStore,
        account: Account,
        slots: Slots,
        purse: ShardBudget,
        *,
        run_id: str,
        rebuy: bool = False,
        on_settled: Callable[[Entry], None] | None = None,
        on_progress: Callable[[Progress], None] | None = None,
        progress_seconds: float = 10.0,
        metrics: Metrics = NO_METRICS,
    ) -> None:
        ledger = Ledger(store)
        self._transfer = transfer = Transfer(
            store, ledger, account.provider, account.downloader, run_id=run_id, metrics=metrics
        )
        self._metrics = metrics
        self._slots = slots
        self._purse = purse
        self._on_progress = on_progress
        self._on_settled = on_settled
        self._progress_seconds = progress_seconds
        self._stop, self._give_up = threading.Event(), transfer.give_up
        self._all_started, self._all_bought = threading.Event(), threading.Event()
        self._buyer = Submitter(
            store,
            account,
            slots,
            purse=purse,
            run_id=run_id,
            rebuy=rebuy,
            stop=self._stop,
            give_up=self._give_up,
            metrics=metrics,
        )
        self._handed_over: queue.Queue[Bought] = queue.Queue(HAND_OVER)
        self._lock = threading.Lock()
        self._report = Report()
        self._refused = 0
        self._fault: BaseException | None = None

    def settle(self, planned: Iterable[PlannedRequest], count: int) -> Report:
        """Settle what can be settled; what cannot is left in a state that says why.

        Args:
            planned: what is to be settled; taken one by one, and not kept.
            count: how many these are.

        Raises:
            BaseException: what interrupted the calling thread, after nothing new is sent and what
                is under way has had its grace.
            NanobananaError: a fault of ours or of the bucket that makes going on senseless.
        """
        todo = WorkQueue(map(Work, planned), count)
        started = time.monotonic()
        buyers = ThreadGroup("buyer", functools.partial(self._buy, todo))
        movers = ThreadGroup("mover", self._move)
        try:
            buyers.start(min(self._slots.most, count))
            movers.start(min(MOVERS, count))
            self._all_started.set()
            self._watch(buyers, count, started)
            self._all_bought.set()
            self._watch(movers, count, started)
        except BaseException:
            self._stop.set()
            self._all_started.set()
            log.warning("stopping: nothing more is sent; waiting for what is under way")
            self._end(buyers, movers, time.monotonic() + GRACE_SECONDS)
            raise
        if self._fault is not None:
            raise self._fault
        report = self._report
        report.seconds = time.monotonic() - started
        report.bought = self._buyer.accepted
        report.provider_seconds = self._buyer.provider_seconds
        report.served = self._buyer.served
        report.spent = self._purse.spent
        report.rate_limited = self._slots.rate_limited
        untouched = count - report.states.total()
        report.states[State.OPEN] += untouched
        self._metrics.ended(State.OPEN, untouched)
        report.states = +report.states
        return report

    def _watch(self, crew: ThreadGroup, total: int, started: float) -> None:
        """Wait for threads in small steps, so that the calling thread can be interrupted."""
        self._metrics.slots(self._slots.in_use, self._slots.limit)
        due = time.monotonic() + self._progress_seconds
        while not crew.wait(0.2):
            self._renew()
            self._metrics.slots(self._slots.in_use, self._slots.limit)
            if self._on_progress and time.monotonic() >= due:
                due += self._progress_seconds
                self._on_progress(self._progress(total, started))

    def _renew(self) -> None:
        """Say that this shard lives; while S3 is silent nothing can be bought anyway."""
        try:
            self._purse.renew()
        except StorageUnavailable as error:
            log.warning("this shard's sign of life could not be written: %s", error)

    def _end(self, buyers: ThreadGroup, movers: ThreadGroup, deadline: float) -> None:
        """Let both stages run out until the deadline, and leave what is not done by then."""
        if not buyers.wait(deadline - time.monotonic()):
            self._give_up.set()
        # In a thread of its own: no stop waits long for a bucket that stays silent.
        doubts = ThreadGroup("doubts", self._buyer.under_way.doubt_unanswered)
        doubts.start(1)
        doubts.wait(DOUBT_SECONDS)
        self._all_bought.set()
        movers.wait(deadline - time.monotonic())
        self._give_up.set()

    def _buy(self, todo: WorkQueue) -> None:
        # Nothing is bought before every thread can be waited for, whatever interrupts their start.
        self._all_started.wait()
        while (work := todo.take(self._stop)) is not None:
            if self._transfer.is_stuck:
                todo.put_back(work, STUCK_POLL_SECONDS)
                continue
            try:
                step = self._buyer.advance(work)
            except ProviderHalt as error:
                self._halt(str(error))
                step = Ended(work.state, f"stopped: {error}")
            except StorageUnavailable as error:
                key = work.planned.request_key
                log.warning("request %s is left for a later launch: %s", key, error)
                step = Ended(work.state, str(error))
                if isinstance(error, StorageFull):
                    self._halt(str(error))
            except BaseException as error:  # noqa: BLE001 - raised again where settle was called
                self._fail(error)
                return
            match step:
                case Later(seconds):
                    todo.put_back(work, seconds)
                case Bought():
                    todo.finish()
                    self._hand_over(step)
                case Ended(state, reason, over_budget):
                    todo.finish()
                    self._count(state, reason)
                    if over_budget:
                        with self._lock:
                            self._report.over_budget += 1

    def _move(self) -> None:
        while (bought := self._next_bought()) is not None:
            try:
                result = self._transfer.settle(bought.held, bought.nonce, bought.done)
            except StorageUnavailable as error:
                full = isinstance(error, StorageFull)
                reason = "bought, and not brought: the bucket is full" if full else str(error)
                self._count(State.ACCEPTED, reason)
                if full or self._transfer.is_stuck:
                    self._halt(str(error))
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
                    self._note_refused(str(result.reason))

    def _note_refused(self, reason: str) -> None:
        """Buy no more where our own rules let no picture through; a single odd one stops nobody."""
        with self._lock:
            self._refused += 1
            hopeless = self._refused >= HOPELESS_REFUSALS and not self._report.images
        if hopeless:
            self._halt(reason)

    def _next_bought(self) -> Bought | None:
        while not self._give_up.is_set():
            # Asked before looking: what was handed over by then is seen below.
            all_bought = self._all_bought.is_set()
            wait = 0.0 if all_bought else HAND_OVER_POLL_SECONDS
            with contextlib.suppress(queue.Empty):
                return self._handed_over.get(timeout=wait)
            if all_bought:
                return None
        return None

    def _hand_over(self, bought: Bought) -> None:
        """Give to the movers; when they are dead or too slow for a stop, the ledger keeps it."""
        while not self._give_up.is_set():
            with contextlib.suppress(queue.Full):
                self._handed_over.put(bought, timeout=HAND_OVER_POLL_SECONDS)
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
        # What the domain says on purpose needs no traceback.
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
