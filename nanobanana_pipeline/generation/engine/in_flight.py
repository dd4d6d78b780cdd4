"""`Submission`, one attempt between claim and outcome; `InFlight`, those of a shard.

`InFlight` is read at a stop and where S3 is silent; it does not decide whether a request is sent.
"""

import logging
import threading
from dataclasses import dataclass
from functools import partial
from typing import Final

from nanobanana_pipeline.errors import ForbiddenTransition, StorageError
from nanobanana_pipeline.generation.budget.incarnation import Permit
from nanobanana_pipeline.generation.engine.timing import DEFAULT_TIMING, Timing
from nanobanana_pipeline.generation.engine.work_queue import WorkItem
from nanobanana_pipeline.ledger import Attempt, Entry, Held, Ledger, boot_clock

__all__ = ["InFlight", "Submission"]

log = logging.getLogger(__name__)

STOPPED: Final = "stopped before an answer came"


@dataclass
class Submission:
    """One attempt of an item, from its claim to its outcome.

    The item holds the entry as last written. `permit` and `sent` (`boot_clock` when it was sent)
    are None if another run made it.
    """

    item: WorkItem
    nonce: str
    permit: Permit | None = None
    sent: float | None = None

    @property
    def held(self) -> Held:
        """The entry, which has this attempt."""
        if self.item.held is None:
            raise AssertionError  # an attempt is claimed in its entry
        return self.item.held

    @property
    def attempt(self) -> Attempt:
        """The attempt as last written."""
        return self.held.entry.attempt(self.nonce)


class InFlight:
    """The attempts of one shard that are between two writes. Safe to share between threads."""

    def __init__(self, ledger: Ledger, timing: Timing = DEFAULT_TIMING) -> None:
        self._ledger = ledger
        self._timing = timing
        self._lock = threading.Lock()
        self._claimed: dict[str, Held] = {}  # by nonce
        self._accepted: dict[str, tuple[float, str, str | None]] = {}  # since, key, provider id

    def claimed(self, submission: Submission) -> None:
        """An attempt is claimed, and may be sent from now on."""
        with self._lock:
            self._claimed[submission.nonce] = submission.held

    def answered(self, submission: Submission) -> None:
        """An attempt's outcome is in the ledger, or another run will look for it."""
        with self._lock:
            self._claimed.pop(submission.nonce, None)

    def accepted(self, submission: Submission, provider_id: str | None) -> None:
        """The provider accepted an attempt; the ledger does not say so yet."""
        with self._lock:
            key = submission.item.planned.request_key
            self._accepted[submission.nonce] = (boot_clock(), key, provider_id)

    def written(self, submission: Submission) -> None:
        """The ledger says that an attempt was accepted."""
        with self._lock:
            self._accepted.pop(submission.nonce, None)

    def doubt_unanswered(self) -> None:
        """At the end of a stop's grace, put in doubt what was sent and not answered."""
        self.log_unwritten(self._timing.unwritten_seconds)
        with self._lock:
            claimed = list(self._claimed.items())
        for nonce, held in claimed:
            try:
                self._ledger.apply(held, partial(Entry.doubt, nonce=nonce, reason=STOPPED))
            except ForbiddenTransition:
                log.info("request %s was answered meanwhile", held.entry.request_key)
            except StorageError as error:
                # The next run that reads these claims finds their lease expired.
                log.warning("what was not answered stays marked as being sent: %s", error)
                return

    def log_unwritten(self, seconds: float) -> None:
        """Log, once each, the provider ids of acceptances not written for so long."""
        with self._lock:
            now = boot_clock()
            late = {nonce: a for nonce, a in self._accepted.items() if now - a[0] >= seconds}
            for nonce in late:
                del self._accepted[nonce]
        for _, key, provider_id in late.values():
            log.error(
                "request %s was bought, and the ledger does not take it: keep its provider id %s. "
                "Once S3 is back and the claim has run out: nanobanana doubts resolve %s "
                "--provider-id %s",
                *(key, provider_id, key, provider_id),
            )
