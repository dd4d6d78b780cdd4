"""What may have been paid for and is not here: found, shown, and settled.

Doubts and losses are looked for in manifests and in the run files of runs that never came to their
end; never in the whole ledger. What looks often looks only at runs that ended not long ago.
"""

import itertools
import logging
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Final

from nanobanana_pipeline.bucket_keys import webhook_prefix
from nanobanana_pipeline.errors import EntryDamaged, PlanError, StorageError, StorageUnavailable
from nanobanana_pipeline.generation.engine.engine import Progress
from nanobanana_pipeline.generation.engine.reconcile import Reconciler
from nanobanana_pipeline.generation.engine.work_queue import Requeue
from nanobanana_pipeline.generation.launch_steps import Settled, settle_launch
from nanobanana_pipeline.generation.manifest.manifest import (
    CellState,
    CurrentManifest,
    read_all_current,
    read_current,
    read_manifest,
)
from nanobanana_pipeline.generation.planning.run_files import (
    list_unfinished,
    read_plan,
    read_request_keys,
    unfinished_plans,
)
from nanobanana_pipeline.generation.recovery.relaunch_partitions import relaunch
from nanobanana_pipeline.ledger import UNSURE, Entry, Held, Ledger, Outcome, State
from nanobanana_pipeline.money import cost_of
from nanobanana_pipeline.provider.account import Account
from nanobanana_pipeline.storage import ObjectStore
from nanobanana_pipeline.webhooks.inbox import Inbox, attempt_id

__all__ = [
    "Action",
    "Doubt",
    "DoubtFilter",
    "find_doubts",
    "find_mail",
    "fresh_doubts",
    "hints",
    "name_id",
    "settle_doubts",
]

log = logging.getLogger(__name__)

UNSURE_CELLS: Final = frozenset({CellState.IN_DOUBT, CellState.LOST})
HINT_WINDOW: Final = timedelta(minutes=30)
MAX_HINTS: Final = 3
LAST_KEY: Final = "~"
"""Behind every request key, which are of hexadecimal digits."""


class Action(StrEnum):
    """What is done about doubts.

    `LOOK` buys nothing: it asks for evidence, and brings what turns out to be bought. `REBUY` buys
    again where there is none. `ABANDON` gives up.
    """

    LOOK = "look"
    REBUY = "rebuy"
    ABANDON = "abandon"


@dataclass(frozen=True)
class Doubt:
    """A request in doubt or lost.

    Attributes:
        prompt_set, seed: a partition that asks for it.
        state: in doubt or lost.
        cause: why, in the provider's or our own words.
        since: when its attempt began, or was accepted (UTC).
        images: how many it asked for.
        cost: what they cost; None if the price is unknown.
        nonce: of the attempt.
        run_id: the run that made the attempt.
        provider_id: the provider's id, if it is known.
    """

    prompt_set: str
    seed: int
    request_key: str
    prompt: str
    state: State
    cause: str
    since: datetime
    images: int
    cost: Decimal | None
    nonce: str
    run_id: str
    provider_id: str | None

    @property
    def age(self) -> timedelta:
        """Since its attempt began, or was accepted."""
        return datetime.now(UTC) - self.since


@dataclass(frozen=True)
class DoubtFilter:
    """Which doubts are meant; what is left out allows all.

    Attributes:
        keys: request keys, or their first digits.
        state: in doubt or lost.
        cause: a part of the cause, in any case.
        run_id: the run that made the attempt.
        older: at least so old.
        cost: at least so dear; with an unknown price none is.
    """

    keys: tuple[str, ...] = ()
    state: State | None = None
    cause: str | None = None
    run_id: str | None = None
    older: timedelta | None = None
    cost: Decimal | None = None

    def allows(self, doubt: Doubt) -> bool:
        """Whether a doubt is meant."""
        return (
            (not self.keys or any(doubt.request_key.startswith(key) for key in self.keys))
            and self.state in {None, doubt.state}
            and (self.cause is None or self.cause.lower() in doubt.cause.lower())
            and self.run_id in {None, doubt.run_id}
            and (self.older is None or doubt.age >= self.older)
            and (self.cost is None or (doubt.cost is not None and doubt.cost >= self.cost))
        )


def find_doubts(store: ObjectStore, price: Decimal | None) -> list[Doubt]:
    """Every doubt and loss that nobody has given up, the oldest first.

    Raises:
        StorageError: S3 refuses or holds damaged objects.
    """
    return _doubts(store, dict(_suspects(store)), price)


def fresh_doubts(
    store: ObjectStore, after: tuple[str, str], *, runs: int, most: int
) -> tuple[list[Doubt], tuple[str, str]]:
    """Doubts of runs that ended not long ago, some at a time and in turn.

    They are those that the manifests of unfinished runs' partitions name; a run that died before
    its manifest is rescued first. What this reads does not grow with all that was ever bought: so
    many runs and requests at most.

    Returns:
        The doubts, their cost unknown, and where the look ended, from which the next one goes on
        `after`: a run and a request key; empty texts for the beginning.

    Raises:
        StorageError: S3 refuses or holds damaged objects.
    """
    left = [run_id for run_id in list_unfinished(store) if (run_id, LAST_KEY) > after][:runs]
    places = ((run_id, key, at) for run_id in left for key, at in _unsure_of_run(store, run_id))
    behind = (place for place in places if place[:2] > after)
    chosen = list(itertools.islice(behind, most))
    end = ("", "")
    if len(chosen) == most:
        end = chosen[-1][:2]
    elif len(left) == runs:
        end = (left[-1], LAST_KEY)
    return _doubts(store, {key: at for _, key, at in chosen}, None), end


def hints(store: ObjectStore, account: Account, doubts: Sequence[Doubt]) -> dict[str, list[str]]:
    """Objects in the customer's bucket that may be doubts' pictures: for people, no evidence.

    Returns:
        By request key, the first few ``s3://`` addresses that appeared within half an hour of its
        attempt. The customer's folders are listed once, and only where there are doubts.
    """
    found: dict[str, list[str]] = {doubt.request_key: [] for doubt in doubts}
    since = {doubt.request_key: doubt.since for doubt in doubts}
    for there in account.provider.folders(store) if found else ():
        for listed in there.listing(""):
            for key, begun in since.items():
                # S3 tells whole seconds.
                passed = listed.last_modified - begun.replace(microsecond=0)
                if timedelta(0) <= passed <= HINT_WINDOW and len(found[key]) < MAX_HINTS:
                    found[key].append(there.uri(listed.key))
    return found


def find_mail(store: ObjectStore, doubts: Iterable[Doubt]) -> dict[str, list[str]]:
    """What webhooks have brought for doubts: the keys of their bodies, by request key.

    One LIST a doubt. A webhook is a hint: settling asks the provider.

    Raises:
        StorageError: S3 refuses.
    """
    found = {
        doubt.request_key: sorted(
            store.keys(webhook_prefix(attempt_id(doubt.request_key, doubt.nonce)))
        )
        for doubt in doubts
    }
    return {key: letters for key, letters in found.items() if letters}


def name_id(store: ObjectStore, account: Account, doubt: Doubt, provider_id: str) -> None:
    """Somebody knows the provider's id of a request in doubt; the provider has to confirm it.

    Raises:
        PlanError: it is not in doubt any more, or the provider does not confirm the id.
        ProviderHalt: the provider refuses the account.
    """
    ledger = Ledger(store)
    held = ledger.read(doubt.request_key)
    held = held and ledger.expire(held)
    attempt = held.entry.attempt(doubt.nonce) if held else None
    if held is None or attempt is None or attempt.outcome is not Outcome.IN_DOUBT:
        raise PlanError(f"request {doubt.request_key} is not in doubt: no id can be named for it")
    reconciler = Reconciler(ledger, account.provider, Inbox(store))
    if not isinstance(reconciler.check_id(held, attempt, provider_id, is_sure=True), Requeue):
        raise PlanError(
            f"the provider does not say that it drew request {doubt.request_key} as "
            f"{provider_id!r}: look the id up again; nothing was changed"
        )


def settle_doubts(
    store: ObjectStore,
    account: Account,
    doubts: Iterable[Doubt],
    action: Action,
    *,
    run_id: Callable[[], str] = lambda: uuid.uuid4().hex,
    on_progress: Callable[[Progress], None] | None = None,
) -> Iterator[Settled]:
    """Do something about doubts, a partition at a time, and publish its manifest.

    `run_id` names the run of each partition; `on_progress` is called now and then from this thread.

    Raises:
        PlanError: a partition cannot be launched.
        StorageError: S3 refuses or holds damaged objects.
    """
    partitions: dict[tuple[str, int], list[Doubt]] = defaultdict(list)
    for doubt in doubts:
        partitions[doubt.prompt_set, doubt.seed].append(doubt)
    for (prompt_set, seed), mine in partitions.items():
        if action is Action.ABANDON:
            _abandon(Ledger(store), mine)
        launch = replace(
            relaunch(store, prompt_set, seed, run_id()),
            only=frozenset(doubt.request_key for doubt in mine),
            rebuy=action is Action.REBUY,
            max_images=None if action is Action.REBUY else 0,
        )
        yield settle_launch(store, account, launch, on_progress=on_progress)


def _suspects(store: ObjectStore) -> Iterator[tuple[str, tuple[str, int]]]:
    """Request keys that may be in doubt or lost, each with a partition that asks for it."""
    for current in read_all_current(store):
        for key in _unsure_keys(store, current):
            yield key, (current.prompt_set, current.seed)
    for made in unfinished_plans(store):
        for key in read_request_keys(store, made):
            yield key, (made.prompt_set, made.seed)


def _unsure_of_run(store: ObjectStore, run_id: str) -> Iterator[tuple[str, tuple[str, int]]]:
    """What the manifest of a run's partition says to be in doubt or lost, by request key."""
    try:
        made = read_plan(store, run_id)
    except StorageUnavailable:
        raise
    except StorageError as error:
        # Once a plan is gone nobody can mend it, and the other runs must not wait for it.
        log.warning("what run %s left in doubt cannot be known: %s", run_id, error)
        return
    current, _ = read_current(store, made.prompt_set, made.seed)
    for key in sorted(_unsure_keys(store, current)) if current else ():
        yield key, (made.prompt_set, made.seed)


def _unsure_keys(store: ObjectStore, current: CurrentManifest) -> list[str]:
    if not UNSURE_CELLS & set(current.cells):
        return []
    rows = read_manifest(store, current.manifest, columns=["request_key", "state"])
    unsure = rows.loc[rows["state"].isin(UNSURE_CELLS), "request_key"]
    return list(unsure.drop_duplicates())


def _doubts(
    store: ObjectStore, suspects: Mapping[str, tuple[str, int]], price: Decimal | None
) -> list[Doubt]:
    """Those of these requests that are in doubt or lost now, the oldest first."""
    found = []
    for held in Ledger(store).read_many(suspects):
        if isinstance(held, EntryDamaged):
            log.warning("not among the doubts, since its entry cannot be read: %s", held)
        elif _is_doubt(held):
            found.append(_doubt(*suspects[held.entry.request_key], held.entry, price))
    return sorted(found, key=lambda doubt: (doubt.since, doubt.request_key))


def _is_doubt(held: Held) -> bool:
    if held.entry.state is State.SUBMITTING:
        return held.expires_in <= 0
    return held.entry.state in UNSURE and not held.entry.is_abandoned


def _doubt(prompt_set: str, seed: int, entry: Entry, price: Decimal | None) -> Doubt:
    attempt = entry.deciding
    if attempt is None:
        raise AssertionError  # what is in doubt or lost was tried
    lost = entry.state is State.LOST
    return Doubt(
        prompt_set=prompt_set,
        seed=seed,
        request_key=entry.request_key,
        prompt=entry.prompt,
        state=State.LOST if lost else State.IN_DOUBT,
        cause=attempt.reason or f"run {attempt.run_id} ended while it was sending",
        since=datetime.fromisoformat(attempt.accepted or attempt.started),
        images=entry.samples,
        cost=cost_of(entry.samples, price),
        nonce=attempt.nonce,
        run_id=attempt.run_id,
        provider_id=attempt.provider_id,
    )


def _abandon(ledger: Ledger, doubts: Iterable[Doubt]) -> None:
    for doubt in doubts:
        held = ledger.read(doubt.request_key)
        if held is not None and held.entry.state is State.SUBMITTING:
            held = ledger.expire(held)
        if held is not None and held.entry.state in UNSURE:
            nonce, reason = doubt.nonce, f"abandoned by hand; it was {doubt.state}: {doubt.cause}"
            ledger.record(held, lambda e, n=nonce, r=reason: e.abandon(n, r))  # type: ignore[misc]
