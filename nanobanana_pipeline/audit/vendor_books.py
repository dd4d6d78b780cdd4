"""Settles doubts by the vendor's own list of what it sold: `settle_by_books`.

The list names ids and outputs, and neither prompt nor time. An id that no ledger entry holds is
read by `fetch`. It is evidence for a request only where the answer names the prompt and the seed of
exactly one attempt whose id is unknown; every other such id is listed for people.
"""

import itertools
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from nanobanana_pipeline.audit.read_ahead import list_entries, read_ahead, read_entries
from nanobanana_pipeline.errors import (
    OperationFailed,
    PlanError,
    ProviderHalt,
)
from nanobanana_pipeline.generation.recovery.doubts import Doubt, name_id
from nanobanana_pipeline.ledger import Attempt, Entry, Held, Outcome, State
from nanobanana_pipeline.provider.account import Account
from nanobanana_pipeline.provider.outcomes import Done, Echo, Halted, Missing, Queued
from nanobanana_pipeline.provider.protocol import Provider, Sale
from nanobanana_pipeline.storage import ObjectStore
from nanobanana_pipeline.webhooks.inbox import attempt_id
from nanobanana_pipeline.wording import shortened

__all__ = [
    "A_DAY",
    "KNOWN_OUTCOMES",
    "MAX_FETCHES",
    "AttemptOf",
    "BookMatches",
    "LedgerIds",
    "ask",
    "claims_of",
    "read_sales",
    "settle_by_books",
    "text_of",
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
UNDECIDED: Final = frozenset({Outcome.SUBMITTING, Outcome.IN_DOUBT})


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


class AttemptOf(NamedTuple):
    """An attempt of the ledger, as far as the books concern it; `when` in Unix seconds."""

    request_key: str
    nonce: str
    outcome: Outcome
    samples: int
    when: float


class LedgerIds:
    """What the ledger knows by the provider's ids, and which attempts have none.

    Attributes:
        held: attempts by the id that they hold.
        without_id: attempts that may be sold under an id that the ledger does not hold, by prompt
            and seed.
    """

    def __init__(self, store: ObjectStore, realm: str) -> None:
        self.held: dict[str, list[AttemptOf]] = defaultdict(list)
        self.without_id: dict[tuple[str, int], list[AttemptOf]] = defaultdict(list)
        for _, held in read_entries(store, list_entries(store, lambda _key: None)):
            if isinstance(held, Held) and held.entry.realm == realm:
                self._add(held.entry)
            elif held is not None and not isinstance(held, Held):
                log.warning("not compared with the books, since it cannot be read: %s", held)

    def _add(self, entry: Entry) -> None:
        for attempt in entry.attempts:
            known = AttemptOf(
                entry.request_key, attempt.nonce, attempt.outcome, entry.samples, _when(attempt)
            )
            if attempt.provider_id is not None:
                self.held[attempt.provider_id].append(known)
            unnamed = attempt.outcome in KNOWN_OUTCOMES and attempt.provider_id is None
            seed = entry.request.get("seed")
            if isinstance(seed, int) and (unnamed or attempt.outcome in UNDECIDED):
                self.without_id[entry.prompt, seed].append(known)

    def time_of(self, sale: Sale) -> float | None:
        """When the ledger says that a sale was accepted; None if it does not know the id."""
        return max((each.when for each in self.held.get(sale.provider_id, ())), default=None)

    def only_attempt(self, provider_id: str, outcome: object) -> AttemptOf | None:
        """The one attempt without an id whose prompt and seed the answer to a `fetch` names.

        Where the answer names an id or a `track_id` too, they have to be this sale's and this
        attempt's.
        """
        echo = outcome.echo if isinstance(outcome, Done | Queued) else Echo()
        names_another = bool(echo.ids) and provider_id not in echo.ids
        if echo.prompt is None or echo.seed is None or names_another:
            return None
        found = [
            each
            for each in self.without_id.get((echo.prompt, echo.seed), ())
            if echo.track_id is None
            or echo.track_id.startswith(attempt_id(each.request_key, each.nonce))
        ]
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
    ids = LedgerIds(store, account.realm)
    try:
        sales = read_sales(sold, ids, min(each.since for each in in_doubt.values()) - A_DAY)
    except OperationFailed as error:
        return BookMatches(fault=str(error))
    unknown = [sale for sale in sales if sale.provider_id not in ids.held]
    told = dict(ask(account.provider, unknown[:MAX_FETCHES]))
    if any(ids.only_attempt(*each) for each in told.items()):
        ids = LedgerIds(store, account.realm)
    claims = claims_of(ids, told)
    matches = BookMatches()
    for provider_id, outcome in told.items():
        attempt = ids.only_attempt(provider_id, outcome)
        doubt = in_doubt.get(attempt.request_key) if attempt else None
        if provider_id in ids.held:
            continue
        if (
            attempt is None
            or doubt is None
            or doubt.nonce != attempt.nonce
            or attempt.outcome is not Outcome.IN_DOUBT
            or claims[attempt] != [provider_id]
        ):
            matches.unknown.append(UnknownSale(provider_id, text_of(outcome)))
            continue
        try:
            name_id(store, account, doubt, provider_id)
            matches.named[doubt.request_key] = provider_id
        except PlanError as error:
            matches.unknown.append(UnknownSale(provider_id, str(error)))
    return matches


def read_sales(sold: Callable[[], Iterator[Sale]], ids: LedgerIds, since: datetime) -> list[Sale]:
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


def claims_of(ids: LedgerIds, told: Mapping[str, object]) -> dict[AttemptOf, list[str]]:
    """Which unknown ids may be each attempt's; those that name its `track_id` go before others."""
    found: dict[AttemptOf, list[str]] = defaultdict(list)
    marked: dict[AttemptOf, list[str]] = defaultdict(list)
    for provider_id, outcome in told.items():
        attempt = ids.only_attempt(provider_id, outcome)
        if attempt is not None and provider_id not in ids.held:
            found[attempt].append(provider_id)
            if isinstance(outcome, Done | Queued) and outcome.echo.track_id is not None:
                marked[attempt].append(provider_id)
    return found | marked


def ask(provider: Provider, sales: Iterable[Sale]) -> Iterator[tuple[str, object]]:
    """What `fetch` says of each.

    Raises:
        ProviderHalt: the provider refuses the account.
    """

    def fetch(sale: Sale) -> tuple[str, object]:
        return sale.provider_id, provider.fetch(sale.provider_id)

    for provider_id, outcome in read_ahead(fetch, sales, FETCHERS):
        if isinstance(outcome, Halted) and outcome.is_sure:
            raise ProviderHalt(outcome.reason)
        yield provider_id, outcome


def text_of(outcome: object) -> str:
    """What the answer to a `fetch` says, for people."""
    if isinstance(outcome, Done):
        if outcome.echo.prompt is None:
            return "done, without naming the prompt"
        return f"done, {shortened(outcome.echo.prompt)!r}, seed {outcome.echo.seed}"
    if isinstance(outcome, Queued):
        return "still being drawn"
    if isinstance(outcome, Missing):
        return "it does not know the id"
    return str(getattr(outcome, "reason", "it was not asked"))


def _when(attempt: Attempt) -> float:
    return datetime.fromisoformat(attempt.accepted or attempt.started).timestamp()
