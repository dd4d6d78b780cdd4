"""`Poller`: waits until the provider is done with an accepted request.

Where webhooks are configured it waits for one first; it polls where none comes, and to confirm one.
"""

import logging
import threading

from nanobanana_pipeline.errors import ProviderHalt, StorageUnavailable
from nanobanana_pipeline.generation.engine.timing import DEFAULT_TIMING, Timing
from nanobanana_pipeline.generation.engine.work_queue import Finished
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


class Poller:
    """Waits until the provider is done with a request. Safe to share between threads.

    Once `give_up` is set, nothing is waited for. The slots know the provider's usual latency.
    """

    def __init__(
        self,
        provider: Provider,
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

    def poll(
        self, provider_id: str, *, sent: float | None = None, webhook_id: str | None = None
    ) -> Done | Failed | Missing | Finished:
        """Poll until the provider is done: its outcome, or `Finished` where waiting ended before.

        `sent` is `boot_clock` when it was sent, or None if another run sent it; `webhook_id` the
        attempt's id in the inbox, or None where no webhook will come. A webhook is only a hint: its
        news are confirmed by a fetch.

        Raises:
            ProviderHalt: the provider refuses the account.
        """
        started = sent or boot_clock()
        missing, pause = 0, 0.0 if sent is None else self._timing.first_poll_seconds
        if webhook_id is not None and self._webhook_arrived(webhook_id, started):
            pause = 0.0
        while not self._give_up.wait(pause):
            outcome = self._provider.fetch(provider_id)
            elapsed = boot_clock() - started
            pause = _pause(self._timing, elapsed, self._slots.usual)
            missing = missing + 1 if isinstance(outcome, Missing) else 0
            match outcome:
                case Done() | Failed():
                    return outcome
                case Missing() if missing >= self._timing.missing_tries:
                    return outcome
                case Halted(reason):
                    raise ProviderHalt(reason)
                case RateLimited(retry_after, _):
                    pause = max(pause, retry_after or 1.0)
                case Missing() | Unknown():
                    pause = max(pause, 1.0)
            if elapsed > self._timing.poll_until_seconds:
                return Finished(State.ACCEPTED, f"not ready after {elapsed:.0f} s")
        return Finished(State.ACCEPTED, "stopped while it was being drawn")

    def _webhook_arrived(self, webhook_id: str, started: float) -> bool:
        """Wait for a webhook instead of polling; False if none came in time."""
        timing = self._timing
        usual = timing.webhook_patience_latencies * self._slots.latency
        deadline = started + max(timing.webhook_patience_seconds, usual)
        while boot_clock() < deadline:
            if self._give_up.wait(_pause(timing, boot_clock() - started)):
                return False
            try:
                if self._inbox.has_mail(webhook_id):
                    return True
            except StorageUnavailable as error:
                log.warning("no webhook can be read, so the provider is asked: %s", error)
                return False
        return False


def _pause(timing: Timing, elapsed: float, usual: tuple[float, float] | None = None) -> float:
    """Seconds until the next poll, after so many since it was sent.

    Most requests finish between the `usual` seconds, if those are known.
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
