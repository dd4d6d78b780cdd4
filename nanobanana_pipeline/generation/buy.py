"""The engine's first stage: one request from its ledger entry to pictures ready to be fetched.

The order of writes is the promise: claim, then send; accepted, then wait. Whatever dies between
two lines here, the ledger tells the next worker what may be done.
"""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from nanobanana_pipeline.errors import ForbiddenTransition, ProviderHalt, StorageError
from nanobanana_pipeline.generation.work import Work
from nanobanana_pipeline.ledger import Entry, Held, Ledger, Outcome, State, boot_clock, new_nonce
from nanobanana_pipeline.provider.answers import (
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
from nanobanana_pipeline.provider.client import ProviderClient
from nanobanana_pipeline.provider.delivery import is_url
from nanobanana_pipeline.provider.slots import Slots

__all__ = ["Bought", "Buyer", "Ended", "Later", "Step"]

log = logging.getLogger(__name__)

LEASE_MARGIN_SECONDS: Final = 30.0
FIRST_POLL_SECONDS: Final = 0.1
POLL_SHARE: Final = 0.08
"""Each wait is this share of the time since sending: noticed within 8 %, whatever the latency."""
MAX_POLL_SECONDS: Final = 5.0
POLL_UNTIL_SECONDS: Final = 1800.0
FAILED_PAUSE_SECONDS: Final = 1.0
MISSING_TRIES: Final = 3
UNSENT_TRIES: Final = 6
MAX_BACKOFF_SECONDS: Final = 10.0
OTHERS_CLAIM_POLL_SECONDS: Final = 3.0


@dataclass(frozen=True)
class Bought:
    """The pictures of an accepted attempt are ready."""

    held: Held
    nonce: str
    done: Done


@dataclass(frozen=True)
class Later:
    """Look again in so many seconds."""

    seconds: float


@dataclass(frozen=True)
class Ended:
    """Nothing more to do in this run. `state` is the entry's; open if it was never tried."""

    state: State
    reason: str | None = None


Step = Bought | Later | Ended


class Buyer:
    """Takes requests through claim, send, and wait. Safe to share between threads.

    Args:
        ledger: where every step is written before the next is taken.
        provider: the account.
        slots: how many requests may be there at once.
        realm: whose pictures these are.
        run_id: written into every attempt.
        rebuy: send requests in doubt or lost again.
        stop: once set, nothing new is sent.
        give_up: once set, nothing is waited for.
    """

    def __init__(
        self,
        ledger: Ledger,
        provider: ProviderClient,
        slots: Slots,
        *,
        realm: str,
        run_id: str,
        stop: threading.Event,
        give_up: threading.Event,
        rebuy: bool = False,
    ) -> None:
        self._ledger = ledger
        self._provider = provider
        self._slots = slots
        self._realm = realm
        self._run_id = run_id
        self._rebuy = rebuy
        self._stop = stop
        self._give_up = give_up
        self._lease_seconds = provider.submit_seconds + 2 * LEASE_MARGIN_SECONDS
        self._lock = threading.Lock()
        self._sending: dict[str, Held] = {}  # by nonce
        self._waiting_told = False
        self.accepted = 0
        self.provider_seconds = 0.0

    def advance(self, work: Work) -> Step:
        """Do the next thing for a request, as its entry allows.

        Raises:
            ProviderHalt: the provider refuses the account; nothing more should be sent.
            StorageUnavailable: S3 stayed silent; `work.held` is what was last written.
        """
        held = work.held
        if held is not None and held.entry.state is State.SUBMITTING:
            return self._await_other(work)
        if held is not None and held.entry.state is State.ACCEPTED:
            return self._resume(work, held)
        if held is not None and not held.entry.may_claim(rebuy=self._rebuy):
            return _ended(held)
        if not self._slots.acquire(self._stop):
            return Ended(State.OPEN, "stopped before it was sent")
        try:
            return self._buy(work)
        finally:
            self._slots.release()

    def doubt_unanswered(self) -> None:
        """At the end of a stop's grace: put in doubt what was sent and not answered."""
        with self._lock:
            sending = list(self._sending.items())
        for nonce, held in sending:
            try:
                self._ledger.apply(held, _doubt_of(nonce))
            except ForbiddenTransition:
                log.info("request %s was answered meanwhile", held.entry.request_key)
            except StorageError as error:
                # Whoever meets these claims next finds their lease run out.
                log.warning("what was not answered stays marked as being sent: %s", error)
                return

    def _buy(self, work: Work) -> Step:
        planned, nonce = work.planned, new_nonce()
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
        with self._lock:
            self._sending[nonce] = held
        try:
            return self._send(work, held, nonce)
        finally:
            self._answer_is_written(nonce)

    def _send(self, work: Work, held: Held, nonce: str) -> Step:
        """Send a claimed request, if the claim will outlast the answer."""
        needed = self._provider.submit_seconds + LEASE_MARGIN_SECONDS
        if held.lease_left < needed:
            held = self._ledger.record(held, lambda entry: entry.renew(nonce))
        lease_holds = (
            held.entry.attempt(nonce).outcome is Outcome.SUBMITTING and held.lease_left >= needed
        )
        if self._stop.is_set() or not lease_holds:
            reason = "stopped" if self._stop.is_set() else "S3 was too slow for the claim"
            work.held = self._ledger.record(held, lambda entry: entry.not_sent(nonce, reason))
            return Later(0)
        track_id = f"{work.planned.request_key}.{nonce}"
        request = work.planned.request.model_copy(update={"track_id": track_id})
        sent = boot_clock()
        return self._answered(work, held, nonce, sent, self._provider.submit(request))

    def _answered(
        self, work: Work, held: Held, nonce: str, sent: float, outcome: SubmitOutcome
    ) -> Step:
        """Write down what the provider said before anything else happens."""
        work.unsent = work.unsent + 1 if isinstance(outcome, NotSent) else 0
        match outcome:
            case Queued() | Done():
                work.held = held = self._accept(held, nonce, outcome)
                self._answer_is_written(nonce)
                if held.entry.attempt(nonce).outcome is not Outcome.ACCEPTED:
                    return _ended(held)
                if isinstance(outcome, Queued):
                    return self._wait(work, held, nonce, sent)
                self._note_served(sent)
                return Bought(held, nonce, outcome)
            case Unknown(reason, provider_id):
                work.held = self._ledger.record(held, lambda e: e.doubt(nonce, reason, provider_id))
                return _ended(work.held)
            case Refused(reason):
                work.held = self._ledger.record(held, lambda e: e.refuse(nonce, reason))
                return _ended(work.held)
            case Failed(reason):
                return self._failed(work, held, nonce, reason)
            case RateLimited(retry_after, reason):
                work.held = self._ledger.record(held, lambda e: e.not_sent(nonce, reason))
                self._slots.refused(retry_after)
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
        output = outcome.output if isinstance(outcome, Done) else ()
        if provider_id is not None and not all(map(is_url, output)):
            output = ()  # pictures sent inline are too large to note; the id brings them again
        return self._ledger.record(
            held, lambda e: e.accept(nonce, provider_id, output, outcome.seed)
        )

    def _answer_is_written(self, nonce: str) -> None:
        with self._lock:
            self._sending.pop(nonce, None)

    def _resume(self, work: Work, held: Held) -> Step:
        """Go on with what was accepted before, perhaps by a worker that is dead."""
        attempt = held.entry.deciding
        if attempt is None:
            raise AssertionError  # an accepted entry has an accepted attempt
        if attempt.output:
            done = Done(attempt.provider_id, attempt.output, attempt.seed_reported)
            return Bought(held, attempt.nonce, done)
        if not self._slots.acquire(self._give_up):
            return _ended(held)
        try:
            return self._wait(work, held, attempt.nonce, None)
        finally:
            self._slots.release()

    def _wait(self, work: Work, held: Held, nonce: str, sent: float | None) -> Step:
        """Ask until the provider is done.

        Args:
            work: whose request it is.
            held: the entry.
            nonce: of its accepted attempt.
            sent: `boot_clock` when it was sent; None if somebody else sent it.
        """
        provider_id = held.entry.attempt(nonce).provider_id
        if provider_id is None:
            return self._lost(work, held, nonce, "the provider gave it no id")
        began = sent or boot_clock()
        missing, pause = 0, 0.0 if sent is None else FIRST_POLL_SECONDS
        while not self._give_up.wait(pause):
            outcome = self._provider.fetch(provider_id)
            elapsed = boot_clock() - began
            pause = min(max(FIRST_POLL_SECONDS, POLL_SHARE * elapsed), MAX_POLL_SECONDS)
            missing = missing + 1 if isinstance(outcome, Missing) else 0
            match outcome:
                case Done():
                    if sent is not None:
                        self._note_served(sent)
                    return Bought(held, nonce, outcome)
                case Failed(reason):
                    return self._failed(work, held, nonce, reason)
                case Missing(reason) if missing >= MISSING_TRIES:
                    return self._lost(work, held, nonce, reason)
                case Halted(reason):
                    raise ProviderHalt(reason)
                case RateLimited(retry_after, _):
                    pause = max(pause, retry_after or 1.0)
                case Missing() | Unknown():
                    pause = max(pause, 1.0)
            if elapsed > POLL_UNTIL_SECONDS:
                return Ended(State.ACCEPTED, f"not ready after {elapsed:.0f} s")
        return Ended(State.ACCEPTED, "stopped while it was being drawn")

    def _failed(self, work: Work, held: Held, nonce: str, reason: str) -> Step:
        """The provider drew nothing, and says so: try again a few times."""
        work.held = held = self._ledger.record(held, lambda entry: entry.fail(nonce, reason))
        return Later(FAILED_PAUSE_SECONDS) if held.entry.may_claim() else _ended(held)

    def _lost(self, work: Work, held: Held, nonce: str, reason: str) -> Ended:
        work.held = held = self._ledger.record(held, lambda entry: entry.lose(nonce, reason))
        return _ended(held)

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
        self._slots.served(seconds)


def _doubt_of(nonce: str) -> Callable[[Entry], Entry]:
    return lambda entry: entry.doubt(nonce, "stopped before an answer came")


def _ended(held: Held) -> Ended:
    return Ended(held.entry.state, held.entry.reason)
