"""Compares the ledger with the vendor's own list of what it sold: `reconcile`, `settle_by_books`.

The list names ids and outputs, and neither prompt nor time. An id that no ledger entry holds is
read by `fetch`. It is evidence for a request only where the answer names the prompt and the seed of
exactly one attempt whose id is unknown; every other such id is listed for people.
"""

import itertools
import logging
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from enum import StrEnum
from typing import Final, NamedTuple

from nanobanana_pipeline.audit.read_ahead import list_entries, read_ahead, read_entries
from nanobanana_pipeline.errors import (
    OperationFailed,
    PlanError,
    ProviderHalt,
    SettingsError,
)
from nanobanana_pipeline.generation.recovery.doubts import Doubt, name_id
from nanobanana_pipeline.ledger import Attempt, Entry, Held, Outcome, State
from nanobanana_pipeline.provider.account import Account
from nanobanana_pipeline.provider.outcomes import Done, Halted, Missing, Queued
from nanobanana_pipeline.provider.protocol import Provider, Sale
from nanobanana_pipeline.storage import ObjectStore

__all__ = [
    "BookMatches",
    "Difference",
    "Reconciliation",
    "UnknownSale",
    "reconcile",
    "settle_by_books",
]

log = logging.getLogger(__name__)

MAX_SALES: Final = 100_000
"""Of the list, read at most: 3,300 calls."""
MAX_FETCHES: Final = 1_000
"""Ids that are read by `fetch` at most; on a shared account others' purchases are among them."""
FETCHERS: Final = 4
A_PAGE: Final = 30
A_DAY: Final = timedelta(days=1)
"""How far requests may lie apart in the list and in the ledger: a queue may be that long."""
KNOWN_OUTCOMES: Final = frozenset({Outcome.ACCEPTED, Outcome.SETTLED, Outcome.LOST})
UNANSWERED: Final = frozenset({Outcome.SUBMITTING, Outcome.IN_DOUBT})


class DifferenceKind(StrEnum):
    """What may differ between the ledger and the books."""

    NOT_IN_LEDGER = "not_in_ledger"
    SETTLES_DOUBT = "settles_doubt"
    NOT_IN_BOOKS = "not_in_books"
    HELD_TWICE = "held_twice"
    OUTPUTS_DIFFER = "outputs_differ"


@dataclass(frozen=True)
class Difference:
    """One difference, with what to do about it.

    Attributes:
        provider_id: of the sale, or of the ledger's attempt.
        request_key: of the ledger entry, if there is one.
    """

    kind: DifferenceKind
    provider_id: str
    request_key: str | None
    text: str


@dataclass(frozen=True)
class Reconciliation:
    """What the ledger and the vendor's books say of one UTC day.

    Attributes:
        sold_in_both: ids of that day that both have.
        in_doubt: attempts of that day that are in doubt in the ledger.
        being_drawn: ids of that day in the ledger that the provider still draws; its books do not
            list them yet.
        sales_read: entries of the vendor's list that were read.
        not_asked: ids that were not read by `fetch`, since there were too many.
    """

    day: date
    differences: list[Difference]
    sold_in_both: int
    in_doubt: int
    being_drawn: int
    sales_read: int
    not_asked: int = 0

    @property
    def agrees(self) -> bool:
        """Whether there is no difference."""
        return not self.differences


@dataclass(frozen=True)
class UnknownSale:
    """A sale whose id no ledger entry holds, and that settles nothing.

    Attributes:
        told: what `fetch` says of it.
    """

    provider_id: str
    told: str


@dataclass(frozen=True)
class BookMatches:
    """What the vendor's books have done for doubts.

    Attributes:
        named: the provider's ids that were found, by request key.
        unknown: sales that settle nothing.
        fault: why the books could not be read.
    """

    named: dict[str, str] = field(default_factory=dict)
    unknown: list[UnknownSale] = field(default_factory=list)
    fault: str | None = None


class _AttemptOf(NamedTuple):
    """An attempt of the ledger, as far as the books concern it; `when` in Unix seconds."""

    request_key: str
    nonce: str
    outcome: Outcome
    samples: int
    when: float


class _LedgerIds:
    """What the ledger knows by the provider's ids, and which attempts have none.

    Attributes:
        held: attempts by the id that they hold.
        without_id: attempts that may be sold under an id that the ledger does not hold, by prompt
            and seed.
    """

    def __init__(self, store: ObjectStore, realm: str) -> None:
        self.held: dict[str, list[_AttemptOf]] = defaultdict(list)
        self.without_id: dict[tuple[str, int], list[_AttemptOf]] = defaultdict(list)
        for _, held in read_entries(store, list_entries(store, lambda _key: None)):
            if isinstance(held, Held) and held.entry.realm == realm:
                self._add(held.entry)
            elif held is not None and not isinstance(held, Held):
                log.warning("not compared with the books, since it cannot be read: %s", held)

    def _add(self, entry: Entry) -> None:
        for attempt in entry.attempts:
            known = _AttemptOf(
                entry.request_key, attempt.nonce, attempt.outcome, entry.samples, _when(attempt)
            )
            if attempt.provider_id is not None:
                self.held[attempt.provider_id].append(known)
            unnamed = attempt.outcome in KNOWN_OUTCOMES and attempt.provider_id is None
            seed = entry.request.get("seed")
            if isinstance(seed, int) and (unnamed or attempt.outcome in UNANSWERED):
                self.without_id[entry.prompt, seed].append(known)

    def time_of(self, sale: Sale) -> float | None:
        """When the ledger says that a sale was accepted; None if it does not know the id."""
        return max((each.when for each in self.held.get(sale.provider_id, ())), default=None)

    def only_attempt(self, prompt: str | None, seed: int | None) -> _AttemptOf | None:
        """The one attempt without an id that has this prompt and this seed."""
        if prompt is None or seed is None:
            return None
        found = self.without_id.get((prompt, seed), [])
        return found[0] if len(found) == 1 else None


def settle_by_books(store: ObjectStore, account: Account, doubts: Sequence[Doubt]) -> BookMatches:
    """Name the provider's ids of requests in doubt, where its books leave no choice.

    The ledger is read once to know which sales are unknown, and again before anything is changed:
    a sale of the list was claimed before it was listed, so that its entry is seen then.

    Raises:
        ProviderHalt: the provider refuses the account.
        StorageError: S3 refuses or holds damaged objects.
    """
    sold = account.books.sold
    in_doubt = {doubt.request_key: doubt for doubt in doubts if doubt.state is State.IN_DOUBT}
    if sold is None or not in_doubt:
        return BookMatches()
    ids = _LedgerIds(store, account.realm)
    try:
        sales = _read_sales(sold, ids, min(each.since for each in in_doubt.values()) - A_DAY)
    except OperationFailed as error:
        return BookMatches(fault=str(error))
    unknown = [sale for sale in sales if sale.provider_id not in ids.held]
    told = dict(_ask(account.provider, unknown[:MAX_FETCHES]))
    if any(ids.only_attempt(*_named(each)) for each in told.values()):
        ids = _LedgerIds(store, account.realm)
    claims = _claims(ids, told)
    matches = BookMatches()
    for provider_id, outcome in told.items():
        attempt = ids.only_attempt(*_named(outcome))
        doubt = in_doubt.get(attempt.request_key) if attempt else None
        if provider_id in ids.held:
            continue
        if (
            attempt is None
            or doubt is None
            or doubt.nonce != attempt.nonce
            or attempt.outcome is not Outcome.IN_DOUBT
            or len(claims[attempt]) != 1
        ):
            matches.unknown.append(UnknownSale(provider_id, _text_of(outcome)))
            continue
        try:
            name_id(store, account, doubt, provider_id)
            matches.named[doubt.request_key] = provider_id
        except PlanError as error:
            matches.unknown.append(UnknownSale(provider_id, str(error)))
    return matches


def reconcile(store: ObjectStore, account: Account, day: date) -> Reconciliation:
    """Compare the ledger with the vendor's books for a UTC day. Changes nothing.

    The books name no times: a sale that the ledger does not know counts for every day that lies
    between its neighbours in the list that the ledger does know.

    Raises:
        SettingsError: the books are not switched on.
        OperationFailed: the provider does not answer.
        ProviderHalt: the provider refuses the account.
        StorageError: S3 refuses.
    """
    sold = account.books.sold
    if sold is None:
        raise SettingsError(
            "NANOBANANA_VENDOR_BOOKS does not name assets: export NANOBANANA_VENDOR_BOOKS=assets "
            "to have the ledger compared with the vendor's list of what it sold; whether an "
            "enterprise server has such a list is not documented"
        )
    begin = datetime.combine(day, time(), UTC)
    first, end = begin.timestamp(), (begin + A_DAY).timestamp()
    ids = _LedgerIds(store, account.realm)
    sales = _read_sales(sold, ids, begin - A_DAY)
    listed = {sale.provider_id: sale for sale in sales}
    of_day = {
        provider_id: [each for each in attempts if first <= each.when < end]
        for provider_id, attempts in ids.held.items()
    }
    expected = {
        provider_id: [each for each in attempts if each.outcome in KNOWN_OUTCOMES]
        for provider_id, attempts in of_day.items()
    }
    missing = [Sale(each, ()) for each in expected if expected[each] and each not in listed]
    strangers = list(_unknown_of(sales, ids, first, end))
    asked = [*strangers, *missing]
    told = dict(_ask(account.provider, asked[:MAX_FETCHES]))
    differences = [
        *_compare_strangers(strangers, told, ids),
        *_compare_held(of_day, listed),
    ]
    being_drawn = 0
    for sale in missing:
        outcome = told.get(sale.provider_id)
        if isinstance(outcome, Queued):
            being_drawn += 1
            continue
        attempt = expected[sale.provider_id][0]
        differences.append(
            Difference(
                DifferenceKind.NOT_IN_BOOKS,
                sale.provider_id,
                attempt.request_key,
                f"{attempt.outcome} in the ledger, and not in the vendor's books; asked for the "
                f"id, it says: {_text_of(outcome)}. Ask the vendor whether it was charged",
            )
        )
    doubted = (each for attempts in ids.without_id.values() for each in attempts)
    return Reconciliation(
        day,
        differences,
        sold_in_both=sum(bool(expected[each]) and each in listed for each in expected),
        in_doubt=sum(
            each.outcome is Outcome.IN_DOUBT and first <= each.when < end for each in doubted
        ),
        being_drawn=being_drawn,
        sales_read=len(sales),
        not_asked=max(0, len(asked) - MAX_FETCHES),
    )


def _read_sales(sold: Callable[[], Iterator[Sale]], ids: _LedgerIds, since: datetime) -> list[Sale]:
    """Sales since then: pages until the known ones of a whole page are older.

    That the newest come first is not documented: a page of old ones ends the list only after a page
    with new ones.
    """
    sales: list[Sale] = []
    came_to_new = False
    listing = itertools.islice(sold(), MAX_SALES)
    while page := list(itertools.islice(listing, A_PAGE)):
        sales += page
        newest = max((known for each in page if (known := ids.time_of(each))), default=None)
        if newest is None:
            continue
        if newest >= since.timestamp():
            came_to_new = True
        elif came_to_new:
            return sales
    if len(sales) >= MAX_SALES:
        log.warning("only %s of the sales in the vendor's books were read", f"{MAX_SALES:,}")
    return sales


def _unknown_of(sales: Sequence[Sale], ids: _LedgerIds, first: float, end: float) -> Iterator[Sale]:
    """Sales without an entry that may be of the time from `first` to `end`, by their neighbours."""
    times = [ids.time_of(sale) for sale in sales]
    known = [each for each in times if each is not None]
    newest_first = not known or known[0] >= known[-1]
    outside = (math.inf, -math.inf) if newest_first else (-math.inf, math.inf)
    before = list(itertools.accumulate(times, lambda last, now: now or last, initial=outside[0]))
    after = list(
        itertools.accumulate(times[::-1], lambda last, now: now or last, initial=outside[1])
    )[::-1]
    for place, sale in enumerate(sales):
        near = sorted((before[place] or outside[0], after[place + 1] or outside[1]))
        if sale.provider_id not in ids.held and near[0] < end and near[1] >= first:
            yield sale


def _compare_strangers(
    strangers: Iterable[Sale], told: dict[str, object], ids: _LedgerIds
) -> Iterator[Difference]:
    """Sales that no entry holds: each is a difference, unless an attempt without an id made it."""
    claims = _claims(ids, told)
    for sale in strangers:
        outcome = told.get(sale.provider_id)
        attempt = ids.only_attempt(*_named(outcome))
        if attempt is None or len(claims[attempt]) != 1:
            yield Difference(
                DifferenceKind.NOT_IN_LEDGER,
                sale.provider_id,
                None,
                f"sold ({len(sale.output):,} pictures), and no entry holds the id; asked for it, "
                f"the provider says: {_text_of(outcome)}. It may be a purchase of another bucket "
                "or team; if it is a request in doubt: nanobanana doubts resolve KEY --provider-id "
                f"{sale.provider_id}",
            )
        elif attempt.outcome is Outcome.IN_DOUBT:
            yield Difference(
                DifferenceKind.SETTLES_DOUBT,
                sale.provider_id,
                attempt.request_key,
                "sold, with the prompt and the seed of this request in doubt alone: nanobanana "
                f"doubts resolve {attempt.request_key}",
            )


def _compare_held(
    of_day: dict[str, list[_AttemptOf]], listed: dict[str, Sale]
) -> Iterator[Difference]:
    """Ids of the ledger that several requests hold, or with more or fewer pictures than asked."""
    for provider_id, attempts in of_day.items():
        keys = sorted({each.request_key for each in attempts})
        if len(keys) > 1:
            yield Difference(
                DifferenceKind.HELD_TWICE,
                provider_id,
                keys[0],
                f"{len(keys):,} requests hold this id ({', '.join(keys)}): at most one of them was "
                "sold under it",
            )
        sale = listed.get(provider_id)
        for attempt in attempts:
            if sale is not None and sale.output and len(sale.output) != attempt.samples:
                yield Difference(
                    DifferenceKind.OUTPUTS_DIFFER,
                    provider_id,
                    attempt.request_key,
                    f"{len(sale.output):,} pictures in the vendor's books, {attempt.samples:,} "
                    "asked for",
                )


def _claims(ids: _LedgerIds, told: dict[str, object]) -> dict[_AttemptOf, list[str]]:
    """Which unknown ids name the prompt and the seed of each attempt."""
    found: dict[_AttemptOf, list[str]] = defaultdict(list)
    for provider_id, outcome in told.items():
        attempt = ids.only_attempt(*_named(outcome))
        if attempt is not None and provider_id not in ids.held:
            found[attempt].append(provider_id)
    return found


def _ask(provider: Provider, sales: Iterable[Sale]) -> Iterator[tuple[str, object]]:
    """What `fetch` says of each.

    Raises:
        ProviderHalt: the provider refuses the account.
    """

    def fetch(sale: Sale) -> tuple[str, object]:
        return sale.provider_id, provider.fetch(sale.provider_id)

    for provider_id, outcome in read_ahead(fetch, sales, FETCHERS):
        if isinstance(outcome, Halted):
            raise ProviderHalt(outcome.reason)
        yield provider_id, outcome


def _named(outcome: object) -> tuple[str | None, int | None]:
    """The prompt and the seed that an answer names."""
    return (outcome.prompt, outcome.seed) if isinstance(outcome, Done) else (None, None)


def _text_of(outcome: object) -> str:
    if isinstance(outcome, Done):
        prompt, seed = _named(outcome)
        if prompt is None:
            return "done, without naming the prompt"
        return f"done, {prompt!r}, seed {'unnamed' if seed is None else seed}"
    if isinstance(outcome, Queued):
        return "still being drawn"
    if isinstance(outcome, Missing):
        return "it does not know the id"
    return str(getattr(outcome, "reason", "it was not asked"))


def _when(attempt: Attempt) -> float:
    return datetime.fromisoformat(attempt.accepted or attempt.started).timestamp()
