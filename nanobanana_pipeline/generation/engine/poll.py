"""Waiting for what was accepted: by webhook where there is one, else by asking again and again."""

import logging
import threading
from typing import Final

from nanobanana_pipeline.errors import ProviderHalt, StorageUnavailable
from nanobanana_pipeline.generation.engine.work_queue import Ended, Ready
from nanobanana_pipeline.ledger import State, boot_clock
from nanobanana_pipeline.provider.outcomes import (
    Done,
    Failed,
    Halted,
    Missing,
    RateLimited,
    Unknown,
)
from nanobanana_pipeline.provider.protocol import Provider
from nanobanana_pipeline.provider.slots import Slots
from nanobanana_pipeline.webhooks.inbox import Inbox

__all__ = ["Poller"]

log = logging.getLogger(__name__)

FIRST_POLL_SECONDS: Final = 0.1
POLL_SHARE: Final = 0.08
"""Each wait is this share of the time since sending: noticed within 8 %, whatever the latency."""
USUAL_POLLS: Final = 40
"""In the time in which most requests are done each is asked for more often: a slot that nobody
knows to be free is capacity that is paid for."""
LEAST_POLL_SECONDS: Final = 0.03
MAX_POLL_SECONDS: Final = 5.0
POLL_UNTIL_SECONDS: Final = 1800.0
MISSING_TRIES: Final = 3
MAIL_PATIENCE_SECONDS: Final = 10.0
MAIL_PATIENCE_LATENCIES: Final = 2.0
"""A webhook that has not come after twice the usual time, and 10 s at least, is not waited for."""


class Poller:
    """Waits until the provider is done with a request. Safe to share between threads.

    Args:
        provider: the account.
        inbox: where webhooks' payloads lie.
        slots: knows how long the provider usually takes.
        give_up: once set, nothing is waited for.
    """

    def __init__(
        self, provider: Provider, inbox: Inbox, slots: Slots, *, give_up: threading.Event
    ) -> None:
        self._provider = provider
        self._inbox = inbox
        self._slots = slots
        self._give_up = give_up

    def wait_for(
        self, provider_id: str, *, sent: float | None = None, mail: str | None = None
    ) -> Ready | Ended:
        """Ask until the provider is done.

        Args:
            provider_id: the provider's id of the request.
            sent: `boot_clock` when it was sent; None if somebody else sent it.
            mail: the attempt's id in the inbox; None where no webhook will come. A payload is a
                hint: what counts is what the provider says when it is asked.

        Returns:
            What the provider came to; or why nothing is waited for any more.

        Raises:
            ProviderHalt: the provider refuses the account.
        """
        began = sent or boot_clock()
        missing, pause = 0, 0.0 if sent is None else FIRST_POLL_SECONDS
        if mail is not None and self._is_told(mail, began):
            pause = 0.0
        while not self._give_up.wait(pause):
            outcome = self._provider.fetch(provider_id)
            elapsed = boot_clock() - began
            pause = _pause(elapsed, self._slots.usual)
            missing = missing + 1 if isinstance(outcome, Missing) else 0
            match outcome:
                case Done() | Failed():
                    return Ready(outcome)
                case Missing() if missing >= MISSING_TRIES:
                    return Ready(outcome)
                case Halted(reason):
                    raise ProviderHalt(reason)
                case RateLimited(retry_after, _):
                    pause = max(pause, retry_after or 1.0)
                case Missing() | Unknown():
                    pause = max(pause, 1.0)
            if elapsed > POLL_UNTIL_SECONDS:
                return Ended(State.ACCEPTED, f"not ready after {elapsed:.0f} s")
        return Ended(State.ACCEPTED, "stopped while it was being drawn")

    def _is_told(self, mail: str, began: float) -> bool:
        """Wait for a webhook instead of asking; False if none came in good time."""
        usual = MAIL_PATIENCE_LATENCIES * self._slots.latency
        deadline = began + max(MAIL_PATIENCE_SECONDS, usual)
        while boot_clock() < deadline and not self._give_up.wait(_pause(boot_clock() - began)):
            try:
                if self._inbox.has_mail(mail):
                    return True
            except StorageUnavailable as error:
                log.warning("no webhook can be read, so the provider is asked: %s", error)
                return False
        return False


def _pause(elapsed: float, usual: tuple[float, float] | None = None) -> float:
    """Seconds until it is worth asking again.

    Args:
        elapsed: seconds since it was sent.
        usual: between which most requests are done, if that is known.
    """
    pause = min(max(FIRST_POLL_SECONDS, POLL_SHARE * elapsed), MAX_POLL_SECONDS)
    if usual is None:
        return pause
    first, last = usual
    if elapsed + pause < first or elapsed > last:
        return pause
    dense = max(LEAST_POLL_SECONDS, (last - first) / USUAL_POLLS)
    return min(pause, max(first - elapsed, dense))
