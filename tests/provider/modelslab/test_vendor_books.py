"""The vendor's books of the account: read from the emulator, and from answers of every shape."""

import json
from decimal import Decimal
from itertools import islice

import pytest
from pydantic import SecretStr

from nanobanana_pipeline.errors import OperationFailed, SettingsError
from nanobanana_pipeline.provider.modelslab.vendor_books import open_books
from nanobanana_pipeline.provider.protocol import Balance, Books, Sale
from nanobanana_pipeline.settings import VendorBook
from nanobanana_pipeline.storage import ObjectStore
from tests.conftest import API_KEY, Emulators, account_for
from tests.launching import admin, keep_prompts, launch, prompts
from tests.provider.servers import always, answer, in_turn, serving

BASE = "/api/v1/enterprise/nano_banana/"


def books_at(url: str, path: str = BASE) -> Books:
    return open_books(url + path, SecretStr(API_KEY), tuple(VendorBook))


def test_unasked_for_there_are_no_books(store: ObjectStore, emulators: Emulators) -> None:
    assert account_for(emulators().base_url, store).books == Books()


def test_all_that_was_sold_is_listed_over_pages_and_the_balance_and_count_are_read(
    store: ObjectStore, emulators: Emulators
) -> None:
    emulator = emulators(price_per_image=0.5, wallet=100, cap=40)
    account = account_for(emulator.base_url, store, vendor_books="assets, Balance,count")
    books = account.books
    assert books.sold
    assert books.balance
    assert books.processing
    assert (list(books.sold()), books.processing()) == ([], 0)
    keep_prompts(store, "set", [*prompts(30), {"prompt": "two of them", "samples": 2}])
    rows = launch(store, account).rows
    sold = list(books.sold())
    assert {sale.provider_id for sale in sold} == set(rows["provider_id"])
    assert sorted(len(sale.output) for sale in sold) == [1] * 30 + [2]
    assert books.balance() == Balance(Decimal(84), "USD")
    assert admin(emulator, "stats")["calls"]["assets_generated"] == {"200": 3}


def test_only_what_is_switched_on_can_be_asked() -> None:
    books = open_books(f"http://127.0.0.1:9{BASE}", SecretStr(API_KEY), [VendorBook.BALANCE])
    assert (books.sold, books.processing) == (None, None)
    assert books.balance is not None


def page(number: int, last: int | None, *ids: object) -> bytes:
    body: dict[str, object] = {"status": "success", "data": [{"id": n, "output": []} for n in ids]}
    if last is not None:
        body["pagination"] = {"current_page": number, "last_page": last}
    return answer(body)


def ids_of(*pages: bytes) -> tuple[list[str], int]:
    with serving(in_turn(*pages)) as server:
        sold = books_at(server.url).sold
        assert sold
        return [sale.provider_id for sale in islice(sold(), 20)], len(server.requests)


def test_sales_that_move_to_a_later_page_come_once_and_a_list_without_pages_ends() -> None:
    assert ids_of(page(1, 2, 5, "4", 3), page(2, 2, 3, 2)) == (["5", "4", "3", "2"], 2)
    assert ids_of(page(1, None, 2, 1), page(2, None)) == (["2", "1"], 2)
    # A server that ignores `page`.
    assert ids_of(page(1, None, 2, 1), page(1, None, 2, 1)) == (["2", "1"], 2)
    assert ids_of(page(1, 9, 7, None, {}), page(2, 9)) == (["7"], 2)


def test_each_is_one_post_to_its_documented_address() -> None:
    found: dict[str, object] = {
        "status": "success",
        "data": {"balance": "43.60", "currency": "EUR"},
    }
    with serving(always(answer(found))) as server:
        books = books_at(server.url)
        assert books.balance
        assert books.balance() == Balance(Decimal("43.60"), "EUR")
        assert books.sold
        with pytest.raises(OperationFailed, match="leave assets out of NANOBANANA_VENDOR_BOOKS"):
            list(books.sold())
        assert books.processing
        with pytest.raises(OperationFailed, match="leave count out of NANOBANANA_VENDOR_BOOKS"):
            books.processing()
    heads = [request.partition(b" HTTP/1.1")[0].decode() for request in server.requests]
    assert heads == [
        "POST /api/wallet_balance",
        "POST /api/v6/assets_generated",
        "POST /api/v6/processing/request_count",
    ]
    bodies = [json.loads(request.partition(b"\r\n\r\n")[2]) for request in server.requests]
    assert bodies == [
        {"key": API_KEY},
        {"key": API_KEY, "type": "image", "per_page": 30, "page": 1},
        {"key": API_KEY},
    ]


@pytest.mark.parametrize(
    "body",
    [
        {"status": "error", "message": f"no such call for {API_KEY}"},
        b"<html>404</html>",
        {"status": "success"},
        {"status": "success", "data": {"balance": True}},
        {"status": "success", "data": {"balance": "NaN"}},
        {"status": "success", "data": {"balance": None}},
    ],
)
def test_an_answer_that_names_no_balance_says_how_to_switch_it_off(
    body: bytes | dict[str, object],
) -> None:
    with serving(always(answer(body))) as server:
        balance = books_at(server.url).balance
        assert balance
        with pytest.raises(OperationFailed, match="leave balance out") as told:
            balance()
    assert API_KEY not in str(told.value)


def test_thirty_counts_a_minute_and_then_the_providers_words(emulators: Emulators) -> None:
    processing = books_at(emulators().root_url).processing
    assert processing
    assert [processing() for _ in range(30)] == [0] * 30
    with pytest.raises(OperationFailed, match="Rate limit exceeded"):
        processing()


def test_a_base_url_that_hides_the_books_is_refused_before_anything_is_sent() -> None:
    with serving(always(answer({"status": "success"}))) as server:
        for path in ("/proxy/", "/proxy/nano_banana/"):
            balance = books_at(server.url, path).balance
            assert balance
            with pytest.raises(SettingsError, match="NANOBANANA_BASE_URL"):
                balance()
        assert server.requests == []


def test_a_sale_is_its_id_and_its_pictures() -> None:
    listed = {"id": 9, "output": "https://cdn.test/a.png"}
    with serving(always(answer({"status": "success", "data": [listed]}))) as server:
        sold = books_at(server.url).sold
        assert sold
        assert list(sold()) == [Sale("9", ("https://cdn.test/a.png",))]
