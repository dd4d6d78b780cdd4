"""`Submitter`, the engine's first stage: claims a request, sends it and polls until it is done.

Each step is in the ledger before the next is taken: claimed before it is sent, accepted before it
is polled. So a process may die between any two lines here, and the ledger tells the next one what
may be done.
"""

import logging
import threading
from collections.abc import Callable, Sequence

from nanobanana_pipeline.errors import ProviderHalt, StorageError
from nanobanana_pipeline.generation.budget.reservations import ShardBudget
from nanobanana_pipeline.generation.engine.in_flight import InFlight, Submission
from nanobanana_pipeline.generation.engine.metrics import NO_METRICS, Duration, Metrics
from nanobanana_pipeline.generation.engine.poll import Poller
from nanobanana_pipeline.generation.engine.reconcile import Reconciler
from nanobanana_pipeline.generation.engine.reference_reader import StoredReferences
from nanobanana_pipeline.generation.engine.thread_group import StopEvents
from nanobanana_pipeline.generation.engine.timing import DEFAULT_TIMING, Timing
from nanobanana_pipeline.generation.engine.work_queue import (
    Downloadable,
    Finished,
    Requeue,
    Step,
    WorkItem,
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
)
from nanobanana_pipeline.provider.account import Account
from nanobanana_pipeline.provider.downloads import is_url
from nanobanana_pipeline.provider.outcomes import (
    Done,
    Echo,
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


class Submitter:
    """Claims, sends and polls requests. Safe to share between threads.

    Attributes:
        accepted: how many the provider accepted.
        provider_seconds: summed over `served` requests, from sending to seeing that they are done.
    """

    def __init__(
        self,
        store: ObjectStore,
        account: Account,
        slots: Slots,
        *,
        budget: ShardBudget,
        stopping: StopEvents,
        rebuy: bool = False,
        metrics: Metrics = NO_METRICS,
        timing: Timing = DEFAULT_TIMING,
    ) -> None:
        self.ledger = Ledger(
            store,
            patience_seconds=timing.patience_seconds,
            paid_patience_seconds=timing.paid_patience_seconds,
        )
        self._references = StoredReferences(store)
        self._provider = account.provider
        self._webhooks = account.webhooks
        self._slots = slots
        self._budget = budget
        self._realm = account.realm
        self._rebuy = rebuy
        self._metrics = metrics
        self._timing = timing
        self._stop = stopping.stop
        self._give_up = stopping.give_up
        inbox = Inbox(store)
        self._reconciler = Reconciler(self.ledger, account.provider, inbox)
        self.in_flight = InFlight(self.ledger, timing)
        self._poller = Poller(
            account.provider, inbox, slots, give_up=stopping.give_up, timing=timing
        )
        self._lease_seconds = account.provider.submit_seconds + 2 * timing.lease_margin_seconds
        self._lock = threading.Lock()
        self._warned_of_other_run = False
        self.accepted = 0
        self.provider_seconds = 0.0
        self.served = 0

    def advance(self, item: WorkItem) -> Step:
        """Take the next step for a request, as its entry allows.

        Raises:
            ProviderHalt: the provider refuses the account; nothing more should be sent.
            StorageUnavailable: S3 stayed silent; `item.held` is what was last written.
        """
        if item.held is None and not item.planned.buy:
            item.held = self.ledger.read(item.planned.request_key)
        held = item.held
        if held is not None:
            if held.entry.state is State.SUBMITTING:
                return self._wait_for_other_run(item)
            if held.entry.state is State.ACCEPTED:
                return self._resume(item, held)
            if held.entry.state in UNSURE and not item.reconciled:
                item.reconciled = True
                step = self._reconciler.reconcile(held)
                if not isinstance(step, Finished):
                    item.held = self.ledger.read(item.planned.request_key)
                    return step
            if not held.entry.may_claim(rebuy=self._rebuy):
                return Finished.of(held)
            if (wait := self._rebuy_wait(held)) > 0:
                return Finished(
                    held.entry.state,
                    f"{held.entry.reason}; a late answer may still come: it may be bought again in "
                    f"{time_text(wait)}",
                )
        if not self._slots.acquire(self._stop):
            return Finished(State.OPEN, "stopped before it was sent")
        try:
            return self._claim_and_send(item)
        finally:
            self._slots.release()

    def _claim_and_send(self, item: WorkItem) -> Step:
        """Claim a request and send it, if the budget allows."""
        planned = item.planned
        # Read before the claim: a claim's lease must not run while S3 is read.
        references = []
        for sha256 in planned.request.ref_sha256:
            data = self._references.read(sha256)
            if data is None:
                return Finished(
                    item.state, f"reference {sha256} is gone: make the prompt set again"
                )
            references.append(data)
        images = planned.request.samples
        permit = self._budget.take(images)
        if permit is None:
            if item.held is None:
                # Another run may have bought it since it was planned: that costs nothing here.
                item.held = self.ledger.read(planned.request_key)
            may_claim = item.held is None or item.held.entry.may_claim(rebuy=self._rebuy)
            if self._budget.reason is None or not may_claim:
                return Requeue(0)
            return Finished(item.state, self._budget.reason, over_budget=True)
        submission = Submission(item, permit.nonce, permit)
        try:
            held = self.ledger.claim(
                item.held,
                Entry.new(planned.request, planned.request_key, realm=self._realm),
                run_id=self._budget.run_id,
                nonce=submission.nonce,
                lease_seconds=self._lease_seconds,
                rebuy=self._rebuy,
            )
            if held is None:
                item.held = self.ledger.read(planned.request_key)
                return Requeue(0)
            item.held = held
            self.in_flight.claimed(submission)
            try:
                return self._send(submission, references)
            finally:
                self.in_flight.answered(submission)
        finally:
            if _may_have_cost(item.held, submission.nonce):
                self._metrics.spent(images)
            else:
                self._budget.give_back(permit)

    def _send(self, submission: Submission, references: Sequence[bytes]) -> Step:
        """Send a claimed request, if claim and permit hold until its first byte leaves."""
        needed = self._provider.submit_seconds + self._timing.lease_margin_seconds
        if submission.held.lease_left < needed:
            self._record(submission, Entry.renew)
        lapsed: str | None = None

        def may_send() -> bool:
            """Called by the provider in the last moment: this process may have stood still."""
            nonlocal lapsed
            if self._stop.is_set():
                lapsed = "stopped"
            elif (
                submission.attempt.outcome is not Outcome.SUBMITTING
                or submission.held.lease_left < needed
            ):
                lapsed = "its claim did not last until it was sent"
            elif submission.permit is None or not submission.permit.holds():
                lapsed = "its day ended, or its shard was silent, before it was sent"
            submission.sent = boot_clock()
            return lapsed is None

        request = self._with_attempt_id(submission)
        outcome = self._provider.submit(request, references, may_send=may_send)
        if lapsed is not None and isinstance(outcome, NotSent):
            reason = lapsed
            self._record(submission, lambda e, n: e.not_sent(n, reason))
            return Requeue(0)
        return self._record_outcome(submission, outcome)

    def _with_attempt_id(self, submission: Submission) -> ImageRequest:
        """The request with a `track_id` and a webhook that name this attempt."""
        planned = submission.item.planned
        name, label = attempt_id(planned.request_key, submission.nonce), planned.request.track_id
        webhook = planned.request.webhook
        if webhook is None and self._webhooks is not None:
            webhook = self._webhooks.address(name)
        track_id = f"{name}.{label}" if label else name
        return planned.request.model_copy(update={"track_id": track_id, "webhook": webhook})

    def _record(self, submission: Submission, step: Callable[[Entry, str], Entry]) -> None:
        """Write a step of this attempt; it is given the entry and the nonce."""
        submission.item.held = self.ledger.record(
            submission.held, lambda entry: step(entry, submission.nonce)
        )

    def _record_outcome(self, submission: Submission, outcome: SubmitOutcome) -> Step:
        """Write what the provider answered before anything else is done."""
        item = submission.item
        item.unsent = item.unsent + 1 if isinstance(outcome, NotSent) else 0
        match outcome:
            case Queued() | Done():
                self._record_accepted(submission, outcome)
                self.in_flight.answered(submission)
                if submission.attempt.outcome is not Outcome.ACCEPTED:
                    return Finished.of(submission.held)
                if isinstance(outcome, Queued):
                    return self._poll(submission)
                self._count_served(submission)
                return Downloadable(submission.held, submission.nonce, outcome)
            case Unknown(reason, provider_id):
                self._record(submission, lambda e, n: e.doubt(n, reason, provider_id))
                return Finished.of(submission.held)
            case Refused(reason):
                self._record(submission, lambda e, n: e.refuse(n, reason))
                return Finished.of(submission.held)
            case Failed(reason):
                return self._record_failed(submission, reason)
            case RateLimited(retry_after, reason):
                self._record(submission, lambda e, n: e.not_sent(n, reason))
                self._slots.refused(retry_after)
                self._metrics.rate_limited()
                return Requeue(0)
            case Halted(reason):
                self._record(submission, lambda e, n: e.not_sent(n, reason))
                raise ProviderHalt(reason)
            case NotSent(reason):
                self._record(submission, lambda e, n: e.not_sent(n, reason))
                if item.unsent >= self._timing.unsent_tries:
                    return Finished(State.OPEN, f"could not be sent: {reason}")
                return Requeue(min(2.0**item.unsent / 2, self._timing.max_backoff_seconds))

    def _record_accepted(self, submission: Submission, outcome: Queued | Done) -> None:
        provider_id = outcome.provider_id
        log.info("request %s has provider id %s", submission.item.planned.request_key, provider_id)
        with self._lock:
            self.accepted += 1
        self._metrics.accepted()
        self.in_flight.accepted(submission, provider_id)
        output = outcome.output if isinstance(outcome, Done) else ()
        if provider_id is not None and not all(map(is_url, output)):
            output = ()  # pictures sent inline are too large to note; the id brings them again
        try:
            self._record(
                submission, lambda e, n: e.accept(n, provider_id, output, outcome.echo.seed)
            )
        except StorageError:
            self.in_flight.log_unwritten(0)
            raise
        self.in_flight.written(submission)

    def _resume(self, item: WorkItem, held: Held) -> Step:
        """Go on with a request that was accepted before, perhaps in another run."""
        attempt = held.entry.deciding
        if attempt is None:
            raise AssertionError  # an accepted entry has an accepted attempt
        if attempt.output:
            done = Done(attempt.provider_id, attempt.output, Echo(seed=attempt.seed_reported))
            return Downloadable(held, attempt.nonce, done)
        if not self._slots.acquire(self._give_up):
            return Finished.of(held)
        try:
            return self._poll(Submission(item, attempt.nonce))
        finally:
            self._slots.release()

    def _poll(self, submission: Submission) -> Step:
        """Wait until the provider is done with an accepted attempt."""
        request, provider_id = submission.item.planned.request, submission.attempt.provider_id
        if provider_id is None:
            return self._record_lost(submission, "the provider gave it no id")
        webhook_id = None
        if submission.sent and self._webhooks and request.webhook is None:
            webhook_id = attempt_id(submission.held.entry.request_key, submission.nonce)
        outcome = self._poller.poll(provider_id, sent=submission.sent, webhook_id=webhook_id)
        match outcome:
            case Done():
                self._count_served(submission)
                return Downloadable(submission.held, submission.nonce, outcome)
            case Failed(reason):
                return self._record_failed(submission, reason)
            case Missing(reason):
                return self._record_lost(submission, reason)
            case Finished():
                return outcome

    def _record_failed(self, submission: Submission, reason: str) -> Step:
        """The provider says that it drew nothing: try again a few times."""
        self._record(submission, lambda e, n: e.fail(n, reason))
        if submission.held.entry.may_claim():
            return Requeue(self._timing.failed_pause_seconds)
        return Finished.of(submission.held)

    def _record_lost(self, submission: Submission, reason: str) -> Finished:
        self._record(submission, lambda e, n: e.lose(n, reason))
        return Finished.of(submission.held)

    def _wait_for_other_run(self, item: WorkItem) -> Step:
        """Requeue, without a slot, what another run is sending.

        Bounded by the lease of its claim: the request is in doubt once that has expired.
        """
        held = self.ledger.read(item.planned.request_key)
        if held is not None:
            held = self.ledger.expire(held)
        item.held = held
        if held is None or held.entry.state is not State.SUBMITTING:
            return Requeue(0)
        if self._stop.is_set():
            return Finished(State.SUBMITTING, "stopped while another run was sending it")
        with self._lock:
            is_first, self._warned_of_other_run = not self._warned_of_other_run, True
        if is_first:
            log.warning(
                "another run is sending, or died while it was sending, request %s: waiting for "
                "it, at most %.0f s; others may follow",
                held.entry.request_key,
                held.expires_in,
            )
        poll_seconds = self._timing.others_claim_poll_seconds
        return Requeue(min(poll_seconds, max(0.2, held.expires_in + 0.2)))

    def _rebuy_wait(self, held: Held) -> float:
        """Seconds until a request in doubt may be sent again: its answer may be on the way."""
        if held.entry.state is not State.IN_DOUBT:
            return 0.0
        return self._timing.rebuy_after_lease_seconds + held.expires_in

    def _count_served(self, submission: Submission) -> None:
        """Count the provider's latency, if this run has sent the request."""
        if submission.sent is None:
            return
        seconds = boot_clock() - submission.sent
        with self._lock:
            self.provider_seconds += seconds
            self.served += 1
        self._slots.served(seconds)
        self._metrics.record(Duration.PROVIDER, seconds)


def _may_have_cost(held: Held | None, nonce: str) -> bool:
    """Whether an attempt counts as spent: all do that did not surely buy nothing."""
    attempts = held.entry.attempts if held else ()
    return any(a.nonce == nonce and a.outcome in COSTING for a in attempts)
