"""Compares the ledger with the vendor's own list of what it sold on a UTC day: `reconcile`."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from enum import StrEnum

from nanobanana_pipeline.audit.vendor_books import (
    A_DAY,
    KNOWN_OUTCOMES,
    MAX_FETCHES,
    AttemptOf,
    LedgerIds,
    ask,
    claims_of,
    read_sales,
    text_of,
)
from nanobanana_pipeline.errors import SettingsError
from nanobanana_pipeline.ledger import Outcome
from nanobanana_pipeline.provider.account import Account
from nanobanana_pipeline.provider.outcomes import Queued
from nanobanana_pipeline.provider.protocol import Sale
from nanobanana_pipeline.storage import ObjectStore

__all__ = ["Reconciliation", "reconcile"]


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
    ids = LedgerIds(store, account.realm)
    sales = read_sales(sold, ids, begin - A_DAY)
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
    told = dict(ask(account.provider, asked[:MAX_FETCHES]))
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
                f"id, it says: {text_of(outcome)}. Ask the vendor whether it was charged",
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


def _unknown_of(sales: Sequence[Sale], ids: LedgerIds, first: float, end: float) -> Iterator[Sale]:
    """Sales without an entry that may be of the time from `first` to `end`, by their neighbours."""
    times = [ids.time_of(sale) for sale in sales]
    known = [each for each in times if each is not None]
    newest_first = not known or known[0] >= known[-1]
    newest, oldest = (math.inf, -math.inf) if newest_first else (-math.inf, math.inf)
    before = _last_known(times, newest)
    after = reversed(list(_last_known(reversed(times), oldest)))
    for sale, near in zip(sales, map(sorted, zip(before, after, strict=True)), strict=True):
        if sale.provider_id not in ids.held and near[0] < end and near[1] >= first:
            yield sale


def _last_known(times: Iterable[float | None], last: float) -> Iterator[float]:
    """For each time the last known one before it."""
    for each in times:
        yield last
        last = last if each is None else each


def _compare_strangers(
    strangers: Iterable[Sale], told: Mapping[str, object], ids: LedgerIds
) -> Iterator[Difference]:
    """Sales that no entry holds: each is a difference, unless an attempt without an id made it."""
    claims = claims_of(ids, told)
    for sale in strangers:
        outcome = told.get(sale.provider_id)
        attempt = ids.only_attempt(sale.provider_id, outcome)
        if attempt is None or claims[attempt] != [sale.provider_id]:
            yield Difference(
                DifferenceKind.NOT_IN_LEDGER,
                sale.provider_id,
                None,
                f"sold ({len(sale.output):,} pictures), and no entry holds the id; asked for it, "
                f"the provider says: {text_of(outcome)}. It may be a purchase of another bucket "
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
    of_day: dict[str, list[AttemptOf]], listed: dict[str, Sale]
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
