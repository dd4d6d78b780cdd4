"""`ShardBudget`: what a shard may still buy, over the incarnations that it buys as.

Where one is over the shard goes on as another. See docs/budgets.md.
"""

import contextlib
import functools
import logging
import threading
from collections.abc import Callable, Iterator
from decimal import Decimal

from nanobanana_pipeline.errors import StorageError
from nanobanana_pipeline.generation.budget.counters import (
    Scope,
    day_scope,
    partition_scope,
    run_scope,
)
from nanobanana_pipeline.generation.budget.incarnation import (
    DEFAULT_HEARTBEAT,
    HeartbeatTiming,
    Incarnation,
    Permit,
)
from nanobanana_pipeline.generation.planning.run_files import RunPlan, mark_unfinished
from nanobanana_pipeline.ledger import new_nonce
from nanobanana_pipeline.money import Budget, Cap
from nanobanana_pipeline.storage import ObjectStore

__all__ = ["ShardBudget", "open_shard_budget"]

log = logging.getLogger(__name__)


class ShardBudget:
    """What one shard may spend. Safe to share between threads.

    Args:
        store: the bucket.
        scopes_of: the counters whose caps hold on a UTC day (ISO date), the partition's first.
        price: of one image; None if unknown.
        run_id: the run.
        shard: its shard.
        timing: of its heartbeat.

    Attributes:
        run_id: the run.
        reason: why nothing more may be bought, once that is so.
    """

    def __init__(
        self,
        store: ObjectStore,
        scopes_of: Callable[[str], list[Scope]],
        *,
        price: Decimal | None,
        run_id: str,
        shard: str,
        timing: HeartbeatTiming = DEFAULT_HEARTBEAT,
    ) -> None:
        self.run_id = run_id
        self.reason: str | None = None
        self._store = store
        self._start = functools.partial(
            Incarnation, store, run_id, shard, scopes_of=scopes_of, price=price, timing=timing
        )
        self._lock = threading.Lock()
        self._expected = 0
        self._is_closed = False
        self._past: list[Incarnation] = []
        self._current: Incarnation | None = None

    def open(self, images: int) -> None:
        """Reserve what the shard expects to buy.

        Raises:
            StorageUnavailable: S3 stays silent.
        """
        with self._lock:
            self._expected = images
            self._grow(self._incarnation(), images)

    def take(self, images: int) -> Permit | None:
        """Leave to buy so many images now; None if a cap forbids it, and `reason` says which.

        Raises:
            StorageUnavailable: S3 stays silent.
        """
        with self._lock:
            if self._is_closed:
                self.reason = "its shard has ended"
                return None
            mine = self._incarnation()
            if mine.granted - mine.taken < images and self.reason is None:
                self._grow(mine, max(images, self._expected - self.spent))
            if mine.granted - mine.taken < images or mine.is_over:
                return None
            mine.taken += images
            return Permit(mine, images, mine.id + new_nonce()[-8:])

    def give_back(self, permit: Permit) -> None:
        """An attempt has bought nothing."""
        with self._lock:
            permit.incarnation.taken -= permit.images

    def ask_again(self) -> bool:
        """Whether a cap that had no room has some by now: others may have given some back.

        Raises:
            StorageUnavailable: S3 stays silent.
        """
        with self._lock:
            mine, self.reason = self._incarnation(), None
            self._grow(mine, self._expected - self.spent)
            return mine.granted > mine.taken

    @property
    def spent(self) -> int:
        """Images that were taken and not given back."""
        current = [self._current] if self._current else []
        return sum(each.taken for each in (*self._past, *current))

    def beat(self) -> None:
        """Write the heartbeats. Waits for no lock, so that no slow step of a thread delays them."""
        for each in (*self._past, self._current):
            if each is not None:
                try:
                    each.beat()
                except StorageError as error:
                    log.warning("the heartbeat of run %s was not written: %s", self.run_id, error)

    def close(self) -> None:
        """Give back what is left over. Where S3 refuses, the reservation stays counted."""
        with self._lock:
            self._is_closed = True
            for each in (*self._past, self._current):
                try:
                    if each is not None:
                        each.close()
                except StorageError as error:
                    told = (self.run_id, error)
                    log.warning("what a shard of run %s did not spend stays reserved: %s", *told)

    def _incarnation(self) -> Incarnation:
        """The current incarnation; another where it is over."""
        if self._current is not None and not self._current.is_over:
            return self._current
        if self._current is not None:
            log.info("run %s goes on as another incarnation", self.run_id)
            self._current.shrink()
            self._past.append(self._current)
            # A rescue may have called the run done: what it buys from now on must be found again.
            mark_unfinished(self._store, self.run_id)
            self.reason = None
        self._current = self._start()
        return self._current

    def _grow(self, mine: Incarnation, images: int) -> None:
        short = mine.grow(images)
        if short is not None:
            self.reason = f"over budget: {short.text} has its cap of {short.cap}"


@contextlib.contextmanager
def open_shard_budget(
    store: ObjectStore,
    budget: Budget,
    made: RunPlan,
    shard: str,
    images: int,
    timing: HeartbeatTiming = DEFAULT_HEARTBEAT,
) -> Iterator[ShardBudget]:
    """Reserve what a shard expects to buy; at the end its reservations are closed.

    Args:
        store: the bucket.
        budget: the price, and the caps that hold for every launch.
        made: the launch, with its own caps.
        shard: one of its shards.
        images: how many it expects to buy.
        timing: of its heartbeat, and of the end.

    Raises:
        StorageError: S3 refuses or stays silent, or a counter is damaged.
    """
    own = budget.run.tightened(Cap(made.max_images, made.max_cost))

    def scopes_of(day: str) -> list[Scope]:
        partition = partition_scope(store, budget, made.prompt_set, made.seed)
        run = [run_scope(store, made.run_id, own)] if own != Cap() else []
        return [partition, day_scope(store, budget, day), *run]

    mine = ShardBudget(
        store, scopes_of, price=budget.price, run_id=made.run_id, shard=shard, timing=timing
    )
    mine.open(images)
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(timing.renew_seconds):
            mine.beat()

    def close() -> None:
        beating.join()  # a heartbeat that is written after the last would outlive the shard
        mine.close()

    beating = threading.Thread(target=beat, name="heartbeat", daemon=True)
    beating.start()
    patience = timing.stopped_seconds
    try:
        yield mine
        patience = timing.close_seconds
    finally:
        ended.set()
        # In a thread of its own: no stop waits long for a bucket that stays silent.
        closing = threading.Thread(target=close, name="budget", daemon=True)
        closing.start()
        closing.join(patience)
