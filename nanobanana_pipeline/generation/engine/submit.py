"""The engine's first stage: one request from its ledger entry to pictures ready to be fetched.

The order of writes is the promise: claim, then send; accepted, then wait. Whatever dies between
two lines here, the ledger tells the next worker what may be done.
"""

import logging
import threading
from collections.abc import Sequence
from typing import Final

from nanobanana_pipeline.errors import ProviderHalt, StorageError
from nanobanana_pipeline.generation.budget.reservations import ShardBudget
from nanobanana_pipeline.generation.engine.in_flight import InFlight
from nanobanana_pipeline.generation.engine.metrics import NO_METRICS, Metrics
from nanobanana_pipeline.generation.engine.poll import Poller
from nanobanana_pipeline.generation.engine.reconcile import Reconciler
from nanobanana_pipeline.generation.engine.references import KeptReferences
from nanobanana_pipeline.generation.engine.work_queue import (
    Bought,
    Ended,
    Later,
    PlannedRequest,
    Step,
    Work,
    ended,
)
from nanobanana_pipeline.ledger import (
    COSTING,
    UNSURE,
    Entry,
    Held,
    Ledger,
    Outcome,
    State,
    boot_clock,
    new_nonce,
)
from nanobanana_pipeline.provider.account import Account
from nanobanana_pipeline.provider.downloads import is_url
from nanobanana_pipeline.provider.outcomes import (
    Done,
    Failed,
    Halted,
    Missing,
    NotSent,
    Queued,
    RateLimited,
    Refused,
    SubmitOutcome,
    Unknown,
)
from nanobanana_pipeline.provider.slots import Slots
from nanobanana_pipeline.request import ImageRequest
from nanobanana_pipeline.storage import ObjectStore
from nanobanana_pipeline.webhooks.inbox import Inbox, attempt_id
from nanobanana_pipeline.wording import time_text

__all__ = ["Submitter"]

log = logging.getLogger(__name__)

LEASE_MARGIN_SECONDS: Final = 30.0
REBUY_AFTER_LEASE_SECONDS: Final = 900.0
FAILED_PAUSE_SECONDS: Final = 1.0
UNSENT_TRIES: Final = 6
MAX_BACKOFF_SECONDS: Final = 10.0
OTHERS_CLAIM_POLL_SECONDS: Final = 3.0


class Submitter:
    """Takes requests through claim, send, and wait. Safe to share between threads.

    Args:
        store: the bucket; its ledger has every step before the next is taken.
        account: who buys.
        slots: how many requests may be at the provider at once.
        run_id: written into every attempt.
        purse: what may be spent.
        stop: once set, nothing new is sent.
        give_up: once set, nothing is waited for.
        rebuy: send requests in doubt or lost again.
        metrics: is told of what happens.

    Attributes:
        under_way: what is between two writes.
        accepted: how many the provider accepted.
        provider_seconds: summed over requests, from sending to noticing that it is done.
        served: requests over which that is summed.
    """

    def __init__(
        self,
        store: ObjectStore,
        account: Account,
        slots: Slots,
        *,
        run_id: str,
        purse: ShardBudget,
        stop: threading.Event,
        give_up: threading.Event,
        rebuy: bool = False,
        metrics: Metrics = NO_METRICS,
    ) -> None:
        self._ledger = Ledger(store)
        self._references = KeptReferences(store)
        self._provider = account.provider
        self._webhooks = account.webhooks
        self._slots = slots
        self._purse = purse
        self._realm = account.realm
        self._run_id = run_id
        self._rebuy = rebuy
        self._metrics = metrics
        self._stop = stop
        self._give_up = give_up
        inbox = Inbox(store)
        self._evidence = Reconciler(self._ledger, account.provider, inbox)
        self.under_way = InFlight(self._ledger)
        self._waiter = Poller(account.provider, inbox, slots, give_up=give_up)
        self._lease_seconds = account.provider.submit_seconds + 2 * LEASE_MARGIN_SECONDS
        self._lock = threading.Lock()
        self._waiting_told = False
        self.accepted = 0
        self.provider_seconds = 0.0
        self.served = 0

    def advance(self, work: Work) -> Step:
        """Do the next thing for a request, as its entry allows.

        Raises:
            ProviderHalt: the provider refuses the account; nothing more should be sent.
            StorageUnavailable: S3 stayed silent; `work.held` is what was last written.
        """
        if work.held is None and not work.planned.buy:
            work.held = self._ledger.read(work.planned.request_key)
        held = work.held
        if held is not None and held.entry.state is State.SUBMITTING:
            return self._await_other(work)
        if held is not None and held.entry.state is State.ACCEPTED:
            return self._resume(work, held)
        if held is not None and held.entry.state in UNSURE and not work.looked:
            work.looked = True
            step = self._evidence.look(held)
            if not isinstance(step, Ended):
                work.held = self._ledger.read(work.planned.request_key)
                return step
        if held is not None and not held.entry.may_claim(rebuy=self._rebuy):
            return ended(held)
        if held is not None and (wait := _rebuy_wait(held)) > 0:
            return Ended(
                held.entry.state,
                f"{held.entry.reason}; a late answer may still come: it may be bought again in "
                f"{time_text(wait)}",
            )
        if not self._slots.acquire(self._stop):
            return Ended(State.OPEN, "stopped before it was sent")
        try:
            return self._buy(work)
        finally:
            self._slots.release()

    def _buy(self, work: Work) -> Step:
        """Claim a request and send it, as far as the budget goes."""
        planned = work.planned
        # Before the claim: once that stands, nothing may come between it and the sending.
        references = []
        for sha256 in planned.request.ref_sha256:
            data = self._references.read(sha256)
            if data is None:
                return Ended(work.state, f"reference {sha256} is gone: make the prompt set again")
            references.append(data)
        images = planned.request.samples
        if not self._purse.take(images):
            if work.held is None:
                # Somebody may have bought it since it was planned: that costs nothing here.
                work.held = self._ledger.read(planned.request_key)
            if work.held is not None and not work.held.entry.may_claim(rebuy=self._rebuy):
                return Later(0)
            return Ended(work.state, self._purse.reason, over_budget=True)
        nonce = new_nonce()
        try:
            held = self._ledger.claim(
                work.held,
                Entry.new(planned.request, planned.request_key, realm=self._realm),
                run_id=self._run_id,
                nonce=nonce,
                lease_seconds=self._lease_seconds,
                rebuy=self._rebuy,
            )
            if held is None:
                work.held = self._ledger.read(planned.request_key)
                return Later(0)
            work.held = held
            self.under_way.sending(nonce, held)
            try:
                return self._send(work, held, nonce, references)
            finally:
                self.under_way.answered(nonce)
        finally:
            if _may_have_cost(work.held, nonce):
                self._metrics.spent(images)
            else:
                self._purse.give_back(images)

    def _send(self, work: Work, held: Held, nonce: str, references: Sequence[bytes]) -> Step:
        """Send a claimed request, if the claim will outlast the answer."""
        needed = self._provider.submit_seconds + LEASE_MARGIN_SECONDS
        if held.lease_left < needed:
            held = self._ledger.record(held, lambda entry: entry.renew(nonce))
        lease_holds = (
            held.entry.attempt(nonce).outcome is Outcome.SUBMITTING and held.lease_left >= needed
        )
        # A claim that was stored while the shard was surely alive is counted by whoever buries it.
        in_time = lease_holds and self._purse.is_awake
        if self._stop.is_set() or not in_time:
            reason = "stopped" if self._stop.is_set() else "S3 was too slow for the claim"
            work.held = self._ledger.record(held, lambda entry: entry.not_sent(nonce, reason))
            return Later(0)
        request = self._addressed(work.planned, nonce)
        sent = boot_clock()
        return self._answered(work, held, nonce, sent, self._provider.submit(request, references))

    def _addressed(self, planned: PlannedRequest, nonce: str) -> ImageRequest:
        """The request with what tells this attempt from any other."""
        name, label = attempt_id(planned.request_key, nonce), planned.request.track_id
        webhook = planned.request.webhook
        if webhook is None and self._webhooks is not None:
            webhook = self._webhooks.address(name)
        track_id = f"{name}.{label}" if label else name
        return planned.request.model_copy(update={"track_id": track_id, "webhook": webhook})

    def _answered(
        self, work: Work, held: Held, nonce: str, sent: float, outcome: SubmitOutcome
    ) -> Step:
        """Write down what the provider said before anything else happens."""
        work.unsent = work.unsent + 1 if isinstance(outcome, NotSent) else 0
        match outcome:
            case Queued() | Done():
                work.held = held = self._accept(held, nonce, outcome)
                self.under_way.answered(nonce)
                if held.entry.attempt(nonce).outcome is not Outcome.ACCEPTED:
                    return ended(held)
                if isinstance(outcome, Queued):
                    return self._wait(work, held, nonce, sent)
                self._note_served(sent)
                return Bought(held, nonce, outcome)
            case Unknown(reason, provider_id):
                work.held = self._ledger.record(held, lambda e: e.doubt(nonce, reason, provider_id))
                return ended(work.held)
            case Refused(reason):
                work.held = self._ledger.record(held, lambda e: e.refuse(nonce, reason))
                return ended(work.held)
            case Failed(reason):
                return self._failed(work, held, nonce, reason)
            case RateLimited(retry_after, reason):
                work.held = self._ledger.record(held, lambda e: e.not_sent(nonce, reason))
                self._slots.refused(retry_after)
                self._metrics.rate_limited()
                return Later(0)
            case Halted(reason):
                work.held = self._ledger.record(held, lambda e: e.not_sent(nonce, reason))
                raise ProviderHalt(reason)
            case NotSent(reason):
                work.held = self._ledger.record(held, lambda e: e.not_sent(nonce, reason))
                if work.unsent >= UNSENT_TRIES:
                    return Ended(State.OPEN, f"could not be sent: {reason}")
                return Later(min(2.0**work.unsent / 2, MAX_BACKOFF_SECONDS))

    def _accept(self, held: Held, nonce: str, outcome: Queued | Done) -> Held:
        provider_id = outcome.provider_id
        log.info("request %s has provider id %s", held.entry.request_key, provider_id)
        with self._lock:
            self.accepted += 1
        self._metrics.accepted()
        self.under_way.bought(nonce, held.entry.request_key, provider_id)
        output = outcome.output if isinstance(outcome, Done) else ()
        if provider_id is not None and not all(map(is_url, output)):
            output = ()  # pictures sent inline are too large to note; the id brings them again
        try:
            accepted = self._ledger.record(
                held, lambda e: e.accept(nonce, provider_id, output, outcome.seed)
            )
        except StorageError:
            self.under_way.tell_unwritten(0)
            raise
        self.under_way.written(nonce)
        return accepted

    def _resume(self, work: Work, held: Held) -> Step:
        """Go on with what was accepted before, perhaps by a worker that is dead."""
        attempt = held.entry.deciding
        if attempt is None:
            raise AssertionError  # an accepted entry has an accepted attempt
        if attempt.output:
            done = Done(attempt.provider_id, attempt.output, attempt.seed_reported)
            return Bought(held, attempt.nonce, done)
        if not self._slots.acquire(self._give_up):
            return ended(held)
        try:
            return self._wait(work, held, attempt.nonce, None)
        finally:
            self._slots.release()

    def _wait(self, work: Work, held: Held, nonce: str, sent: float | None) -> Step:
        """Wait until the provider is done with an accepted attempt.

        Args:
            work: whose request it is.
            held: the entry.
            nonce: of its accepted attempt.
            sent: `boot_clock` when it was sent; None if somebody else sent it.
        """
        provider_id = held.entry.attempt(nonce).provider_id
        if provider_id is None:
            return self._lost(work, held, nonce, "the provider gave it no id")
        is_told = sent and self._webhooks and work.planned.request.webhook is None
        mail = attempt_id(held.entry.request_key, nonce) if is_told else None
        ready = self._waiter.wait_for(provider_id, sent=sent, mail=mail)
        if isinstance(ready, Ended):
            return ready
        match ready.outcome:
            case Done() as done:
                if sent is not None:
                    self._note_served(sent)
                return Bought(held, nonce, done)
            case Failed(reason):
                return self._failed(work, held, nonce, reason)
            case Missing(reason):
                return self._lost(work, held, nonce, reason)

    def _failed(self, work: Work, held: Held, nonce: str, reason: str) -> Step:
        """The provider drew nothing, and says so: try again a few times."""
        work.held = held = self._ledger.record(held, lambda entry: entry.fail(nonce, reason))
        return Later(FAILED_PAUSE_SECONDS) if held.entry.may_claim() else ended(held)

    def _lost(self, work: Work, held: Held, nonce: str, reason: str) -> Ended:
        work.held = held = self._ledger.record(held, lambda entry: entry.lose(nonce, reason))
        return ended(held)

    def _await_other(self, work: Work) -> Step:
        """Somebody else is sending this request: wait for the outcome, without a slot.

        Bounded by the claim's own lease: when that runs out, it is in doubt.
        """
        held = self._ledger.read(work.planned.request_key)
        if held is not None:
            held = self._ledger.expire(held)
        work.held = held
        if held is None or held.entry.state is not State.SUBMITTING:
            return Later(0)
        if self._stop.is_set():
            return Ended(State.SUBMITTING, "stopped while another run was sending it")
        with self._lock:
            if not self._waiting_told:
                self._waiting_told = True
                log.warning(
                    "another run is sending, or died while it was sending, request %s: waiting for "
                    "it, at most %.0f s; others may follow",
                    held.entry.request_key,
                    held.lease_left,
                )
        return Later(min(OTHERS_CLAIM_POLL_SECONDS, max(0.2, held.lease_left + 0.2)))

    def _note_served(self, sent: float) -> None:
        seconds = boot_clock() - sent
        with self._lock:
            self.provider_seconds += seconds
            self.served += 1
        self._slots.served(seconds)
        self._metrics.took("provider", seconds)


def _rebuy_wait(held: Held) -> float:
    """Seconds until a request in doubt may be sent again: its first answer may be on the way."""
    if held.entry.state is not State.IN_DOUBT:
        return 0.0
    return REBUY_AFTER_LEASE_SECONDS + held.lease_left


def _may_have_cost(held: Held | None, nonce: str) -> bool:
    """Whether an attempt counts as spent: all do that did not surely buy nothing."""
    if held is None:
        return False
    return any(a.nonce == nonce and a.outcome in COSTING for a in held.entry.attempts)
