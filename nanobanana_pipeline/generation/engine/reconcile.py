"""`Reconciler`: settles requests in doubt or lost by evidence, before they may be bought again.

Evidence bears an attempt's own id and is confirmed by `fetch`: the provider id that a broken answer
held, or one that a webhook named. An object in a bucket that bears no id is none.
"""

import functools
import logging

from nanobanana_pipeline.errors import ProviderHalt
from nanobanana_pipeline.generation.engine.work_queue import Downloadable, Finished, Requeue, Step
from nanobanana_pipeline.ledger import Attempt, Entry, Held, Ledger, Outcome
from nanobanana_pipeline.provider.outcomes import Done, Echo, Failed, Halted, Queued
from nanobanana_pipeline.provider.protocol import Provider
from nanobanana_pipeline.webhooks.inbox import Inbox, attempt_id

__all__ = ["Reconciler"]

log = logging.getLogger(__name__)


class Reconciler:
    """Looks for evidence of earlier attempts. Safe to share between threads."""

    def __init__(self, ledger: Ledger, provider: Provider, inbox: Inbox) -> None:
        self._ledger = ledger
        self._provider = provider
        self._inbox = inbox

    def reconcile(self, held: Held) -> Step:
        """Look for evidence of an entry's attempts that are in doubt or lost.

        Returns:
            `Downloadable` where pictures can be downloaded, `Requeue` where the entry has changed,
            else `Finished`, with the reason why it stays as it is.

        Raises:
            ProviderHalt: the provider refuses the account.
            StorageUnavailable: S3 stays silent.
        """
        for attempt in held.entry.attempts:
            if attempt.outcome not in {Outcome.IN_DOUBT, Outcome.LOST}:
                continue
            for provider_id, is_sure in self._candidate_ids(held.entry, attempt):
                step = self.check_id(held, attempt, provider_id, is_sure=is_sure)
                if step is not None:
                    return step
        return _by_noted_urls(held, self._provider.kept_seconds) or Finished.of(held)

    def check_id(
        self, held: Held, attempt: Attempt, provider_id: str, *, is_sure: bool
    ) -> Step | None:
        """Fetch an id that may be that of an attempt in doubt or lost; None if it settles nothing.

        `is_sure` says that the source of the id named the attempt too; else the fetch must show the
        request's own prompt.
        """
        outcome = self._provider.fetch(provider_id)
        if isinstance(outcome, Halted):
            raise ProviderHalt(outcome.reason)
        drawn = outcome.echo.prompt if isinstance(outcome, Done) else None
        if not is_sure and drawn != held.entry.prompt:
            return None
        match outcome:
            case Done() if attempt.outcome is Outcome.LOST:
                return Downloadable(held, attempt.nonce, outcome)
            case Done() | Queued() if attempt.outcome is Outcome.IN_DOUBT:
                step = functools.partial(Entry.accept, nonce=attempt.nonce, provider_id=provider_id)
            case Failed(reason) if attempt.outcome is Outcome.IN_DOUBT:
                step = functools.partial(Entry.fail, nonce=attempt.nonce, reason=reason)
            case _:
                return None
        log.info("request %s: id %s says %s", held.entry.request_key, provider_id, outcome)
        self._ledger.record(held, step)
        return Requeue(0)

    def _candidate_ids(self, entry: Entry, attempt: Attempt) -> list[tuple[str, bool]]:
        """Provider ids that may be this attempt's, and whether that is sure."""
        own = [] if attempt.provider_id is None else [(attempt.provider_id, True)]
        if attempt.outcome is Outcome.LOST:
            return own if attempt.is_still_kept(self._provider.kept_seconds) else []
        name = attempt_id(entry.request_key, attempt.nonce)
        from_webhooks = [
            (payload.provider_id, payload.track_id is not None)
            for payload in self._inbox.read(name)
            if payload.provider_id is not None
            and (payload.track_id is None or payload.track_id.startswith(name))
        ]
        return list(dict.fromkeys(own + from_webhooks))


def _by_noted_urls(held: Held, kept_seconds: float) -> Downloadable | None:
    """A lost attempt without a provider id, whose output URLs are in its entry."""
    for attempt in held.entry.attempts:
        is_lost = attempt.outcome is Outcome.LOST and attempt.provider_id is None
        if is_lost and attempt.is_still_kept(kept_seconds):
            return Downloadable(
                held, attempt.nonce, Done(None, attempt.output, Echo(seed=attempt.seed_reported))
            )
    return None
