"""What a shard has sent, and what it has bought that the ledger does not say yet.

Only a stop and a silent bucket ask for it: nothing here decides whether a request is sent.
"""

import logging
import threading
from collections.abc import Callable

from nanobanana_pipeline.errors import ForbiddenTransition, StorageError
from nanobanana_pipeline.generation.engine.timing import DEFAULT_TIMING, Timing
from nanobanana_pipeline.ledger import Entry, Held, Ledger, boot_clock

__all__ = ["InFlight"]

log = logging.getLogger(__name__)


class InFlight:
    """The attempts of one shard that are between two writes. Safe to share between threads.

    Args:
        ledger: where they are put in doubt.
        timing: when an acceptance that is not written counts as late.
    """

    def __init__(self, ledger: Ledger, timing: Timing = DEFAULT_TIMING) -> None:
        self._ledger = ledger
        self._timing = timing
        self._lock = threading.Lock()
        self._sent: dict[str, Held] = {}  # by nonce
        self._bought: dict[str, tuple[float, str, str | None]] = {}  # since, key, provider id

    def sending(self, nonce: str, held: Held) -> None:
        """An attempt is claimed, and may be sent from now on."""
        with self._lock:
            self._sent[nonce] = held

    def answered(self, nonce: str) -> None:
        """What became of an attempt is in the ledger, or for another worker to find out."""
        with self._lock:
            self._sent.pop(nonce, None)

    def bought(self, nonce: str, request_key: str, provider_id: str | None) -> None:
        """The provider accepted an attempt, which the ledger is about to be told."""
        with self._lock:
            self._bought[nonce] = (boot_clock(), request_key, provider_id)

    def written(self, nonce: str) -> None:
        """The ledger knows that an attempt was accepted."""
        with self._lock:
            self._bought.pop(nonce, None)

    def doubt_unanswered(self) -> None:
        """At the end of a stop's grace: put in doubt what was sent and not answered."""
        self.tell_unwritten(self._timing.unwritten_seconds)
        with self._lock:
            sent = list(self._sent.items())
        for nonce, held in sent:
            try:
                self._ledger.apply(held, _doubt_of(nonce))
            except ForbiddenTransition:
                log.info("request %s was answered meanwhile", held.entry.request_key)
            except StorageError as error:
                # Whoever meets these claims next finds their lease run out.
                log.warning("what was not answered stays marked as being sent: %s", error)
                return

    def tell_unwritten(self, seconds: float) -> None:
        """Tell of what was bought and has not been written down for so long: once, with its id."""
        with self._lock:
            late = {n: u for n, u in self._bought.items() if boot_clock() - u[0] >= seconds}
            for nonce in late:
                del self._bought[nonce]
        for _, key, provider_id in late.values():
            log.error(
                "request %s was bought, and the ledger does not take it: keep its provider id %s. "
                "Once S3 is back and the claim has run out: nanobanana doubts resolve %s "
                "--provider-id %s",
                *(key, provider_id, key, provider_id),
            )


def _doubt_of(nonce: str) -> Callable[[Entry], Entry]:
    return lambda entry: entry.doubt(nonce, "stopped before an answer came")
