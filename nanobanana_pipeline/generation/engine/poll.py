"""Waiting for what was accepted: by webhook where there is one, else by asking again and again."""

import logging
import threading

from nanobanana_pipeline.errors import ProviderHalt, StorageUnavailable
from nanobanana_pipeline.generation.engine.timing import DEFAULT_TIMING, Timing
from nanobanana_pipeline.generation.engine.work_queue import Ended, Ready
from nanobanana_pipeline.ledger import State, boot_clock
from nanobanana_pipeline.provider.modelslab.client import ProviderClient
from nanobanana_pipeline.provider.outcomes import (
    Done,
    Failed,
    Halted,
    Missing,
    RateLimited,
    Unknown,
)
from nanobanana_pipeline.provider.slots import Slots
from nanobanana_pipeline.webhooks.inbox import Inbox

__all__ = ["Poller"]

log = logging.getLogger(__name__)


class Poller:
    """Waits until the provider is done with a request. Safe to share between threads.

    Args:
        provider: the account.
        inbox: where webhooks' payloads lie.
        slots: knows how long the provider usually takes.
        give_up: once set, nothing is waited for.
        timing: how often it asks, and for how long.
    """

    def __init__(
        self,
        provider: ProviderClient,
        inbox: Inbox,
        slots: Slots,
        *,
        give_up: threading.Event,
        timing: Timing = DEFAULT_TIMING,
    ) -> None:
        self._provider = provider
        self._inbox = inbox
        self._slots = slots
        self._give_up = give_up
        self._timing = timing

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
        missing, pause = 0, 0.0 if sent is None else self._timing.first_poll_seconds
        if mail is not None and self._is_told(mail, began):
            pause = 0.0
        while not self._give_up.wait(pause):
            outcome = self._provider.fetch(provider_id)
            elapsed = boot_clock() - began
            pause = _pause(self._timing, elapsed, self._slots.usual)
            missing = missing + 1 if isinstance(outcome, Missing) else 0
            match outcome:
                case Done() | Failed():
                    return Ready(outcome)
                case Missing() if missing >= self._timing.missing_tries:
                    return Ready(outcome)
                case Halted(reason):
                    raise ProviderHalt(reason)
                case RateLimited(retry_after, _):
                    pause = max(pause, retry_after or 1.0)
                case Missing() | Unknown():
                    pause = max(pause, 1.0)
            if elapsed > self._timing.poll_until_seconds:
                return Ended(State.ACCEPTED, f"not ready after {elapsed:.0f} s")
        return Ended(State.ACCEPTED, "stopped while it was being drawn")

    def _is_told(self, mail: str, began: float) -> bool:
        """Wait for a webhook instead of asking; False if none came in good time."""
        timing = self._timing
        usual = timing.webhook_patience_latencies * self._slots.latency
        deadline = began + max(timing.webhook_patience_seconds, usual)
        while boot_clock() < deadline:
            if self._give_up.wait(_pause(timing, boot_clock() - began)):
                return False
            try:
                if self._inbox.has_mail(mail):
                    return True
            except StorageUnavailable as error:
                log.warning("no webhook can be read, so the provider is asked: %s", error)
                return False
        return False


def _pause(timing: Timing, elapsed: float, usual: tuple[float, float] | None = None) -> float:
    """Seconds until it is worth asking again.

    Args:
        timing: the bounds.
        elapsed: seconds since it was sent.
        usual: between which most requests are done, if that is known.
    """
    pause = max(timing.first_poll_seconds, timing.poll_share * elapsed)
    pause = min(pause, timing.max_poll_seconds)
    if usual is None:
        return pause
    first, last = usual
    if elapsed + pause < first or elapsed > last:
        return pause
    dense = max(timing.min_poll_seconds, (last - first) / timing.usual_polls)
    return min(pause, max(first - elapsed, dense))
