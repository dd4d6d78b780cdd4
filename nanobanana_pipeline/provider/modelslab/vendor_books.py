"""ModelsLab's own books of the account, read into `protocol.Books`.

The calls are documented for the account and unknown for enterprise servers, so each is used only
where it is switched on.
"""

import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from decimal import Decimal, InvalidOperation
from functools import partial
from typing import Any, TypeVar

from pydantic import SecretStr

from nanobanana_pipeline.errors import OperationFailed
from nanobanana_pipeline.provider.modelslab.operations import Operations
from nanobanana_pipeline.provider.protocol import Balance, Books, Sale
from nanobanana_pipeline.settings import VendorBook

__all__ = ["open_books"]

log = logging.getLogger(__name__)

Told = TypeVar("Told")


def open_books(base_url: str, api_key: SecretStr, parts: Collection[VendorBook]) -> Books:
    """The books, with those parts that are switched on. Nothing is asked yet."""
    if not parts:
        return Books()
    operations = Operations(base_url, api_key)
    return Books(
        sold=partial(_sold, operations) if VendorBook.ASSETS in parts else None,
        balance=partial(_balance, operations) if VendorBook.BALANCE in parts else None,
        processing=partial(_processing, operations) if VendorBook.COUNT in parts else None,
    )


def _sold(operations: Operations) -> Iterator[Sale]:
    """Every sale once: while pages are read, new sales move others to later pages."""
    seen: set[str] = set()
    page = 1
    while True:
        answer = _asked(VendorBook.ASSETS, partial(operations.assets_generated, page))
        data, pages = answer.get("data"), answer.get("pagination")
        if not isinstance(data, list):
            raise _unreadable(VendorBook.ASSETS, "data is no list")
        sales = [sale for each in data if (sale := _sale(each)) and sale.provider_id not in seen]
        yield from sales
        seen.update(sale.provider_id for sale in sales)
        last = pages.get("last_page") if isinstance(pages, dict) else None
        # A server that does not know `page` answers the first one again and again.
        if not sales or (isinstance(last, int) and page >= last):
            return
        page += 1


def _sale(listed: object) -> Sale | None:
    """One entry of the list; None if it names no id, by which alone it could be used."""
    entry = listed if isinstance(listed, dict) else {}
    provider_id, output = entry.get("id"), entry.get("output")
    if isinstance(provider_id, bool) or not isinstance(provider_id, int | str):
        log.warning("the provider lists a sale without an id: it is left out")
        return None
    links = [output] if isinstance(output, str) else output if isinstance(output, list) else []
    return Sale(str(provider_id).strip(), tuple(link for link in links if isinstance(link, str)))


def _balance(operations: Operations) -> Balance:
    answer = _asked(VendorBook.BALANCE, operations.wallet_balance)
    inner = answer.get("data")
    told: Mapping[str, Any] = inner if isinstance(inner, dict) else answer
    amount = told.get("balance")
    try:
        money = Decimal("NaN" if isinstance(amount, bool) else str(amount))
    except InvalidOperation:
        money = Decimal("NaN")
    if not money.is_finite():
        raise _unreadable(VendorBook.BALANCE, "balance is no number")
    return Balance(money, str(told.get("currency") or "of an unnamed currency"))


def _processing(operations: Operations) -> int:
    answer = _asked(VendorBook.COUNT, operations.request_count)
    count = answer.get("processing_count")
    if isinstance(count, bool) or not isinstance(count, int) or count < 0:
        raise _unreadable(VendorBook.COUNT, "processing_count is no number")
    return count


def _asked(book: VendorBook, ask: Callable[[], Told]) -> Told:
    """Ask, and say how to switch the call off where the provider does not know it."""
    try:
        return ask()
    except OperationFailed as error:
        raise OperationFailed(f"{error}; {_switch_off(book)}") from None


def _unreadable(book: VendorBook, what: str) -> OperationFailed:
    return OperationFailed(f"the provider's books cannot be read: {what}; {_switch_off(book)}")


def _switch_off(book: VendorBook) -> str:
    return f"try again later, or leave {book} out of NANOBANANA_VENDOR_BOOKS"
