"""What the account may be asked about itself: what it was sold, its wallet, what is under way."""

from collections.abc import Iterator
from typing import Any

import pytest
import requests
from pydantic import SecretStr

from nanobanana_pipeline.emulator import EmulatorConfig, running
from tests.emulator.account import KEY, Account
from tests.emulator.conftest import LATENCY

CALLS = {
    "assets_generated": "/api/v6/assets_generated",
    "wallet_balance": "/api/wallet_balance",
    "request_count": "/api/v6/processing/request_count",
}


def ask(account: Account, name: str, **fields: object) -> requests.Response:
    body = {"key": KEY} | fields
    return requests.post(f"{account.root_url}{CALLS[name]}", json=body, timeout=10)


def assets(account: Account, **fields: object) -> dict[str, Any]:
    response = ask(account, "assets_generated", type="image", **fields)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def test_assets_are_ids_and_outputs_of_what_was_drawn_the_newest_first(account: Account) -> None:
    first, second = account.buy(seed=1), account.buy(seed=2, samples=2)
    assert assets(account)["data"] == []
    account.advance(LATENCY)
    answer = assets(account)
    assert answer["data"] == [
        {"id": each["id"], "output": account.fetch(each["id"])["output"]}
        for each in (second, first)
    ]
    assert answer["pagination"] == {
        "current_page": 1,
        "per_page": 10,
        "total": 2,
        "last_page": 1,
        "from": 1,
        "to": 2,
    }


def test_what_failed_or_was_forgotten_was_not_generated(account: Account) -> None:
    account.buy(seed=1)
    account.post("clear_queue", {})
    account.tell("moods", failed=1)
    account.buy(seed=2)
    account.advance(LATENCY)
    assert assets(account)["pagination"]["total"] == 0


def test_a_page_has_thirty_at_most_and_the_pages_have_all(account: Account) -> None:
    ids = []
    for seed in range(1, 36):
        ids.append(account.buy(seed=seed)["id"])
        account.advance(LATENCY)
    pages = [assets(account, per_page=30, page=page) for page in (1, 2, 3)]
    assert [len(page["data"]) for page in pages] == [30, 5, 0]
    assert [each["id"] for page in pages for each in page["data"]] == ids[::-1]
    assert pages[1]["pagination"]["last_page"] == 2
    refused = ask(account, "assets_generated", type="image", per_page=31)
    assert (refused.status_code, refused.json()["status"]) == (400, "error")


def test_only_pictures_were_generated(account: Account) -> None:
    account.buy()
    account.advance(LATENCY)
    video = ask(account, "assets_generated", type="video").json()
    assert (video["data"], video["pagination"]["total"]) == ([], 0)
    for wrong in ({}, {"type": "poem"}, {"type": 3}):
        assert ask(account, "assets_generated", **wrong).status_code == 400


@pytest.fixture
def priced() -> Iterator[Account]:
    config = EmulatorConfig(
        latency_seconds=(LATENCY, LATENCY), wallet=5, price_per_image=0.25, currency="EUR"
    )
    with running(config) as base_url:
        yield Account(base_url)


def test_the_wallet_pays_for_each_picture_and_not_for_failures(priced: Account) -> None:
    def balance() -> dict[str, Any]:
        data: dict[str, Any] = ask(priced, "wallet_balance").json()["data"]
        return data

    assert balance() == {"balance": 5, "currency": "EUR"}
    priced.buy(samples=3)
    assert balance()["balance"] == 4.25
    priced.tell("moods", failed=1)
    priced.buy(seed=2)
    priced.advance(LATENCY)
    assert balance()["balance"] == 4.25


def test_what_is_under_way_is_counted_thirty_times_a_minute(account: Account) -> None:
    account.buy(seed=1)
    account.buy(seed=2)
    for _ in range(30):
        answer = ask(account, "request_count")
        assert answer.json() == {"status": "success", "processing_count": 2}
    refused = ask(account, "request_count")
    assert (refused.status_code, refused.json()["retry_after"]) == (429, 60)
    account.advance(LATENCY)
    assert ask(account, "request_count").json()["processing_count"] == 0


@pytest.mark.parametrize("name", CALLS)
def test_each_wants_the_key_and_is_counted(name: str) -> None:
    with running(EmulatorConfig(api_key=SecretStr(KEY))) as base_url:
        account = Account(base_url)
        assert ask(account, name, key="sk-wrong", type="image").status_code == 401
        assert ask(account, name, type="image").status_code == 200
        assert account.admin("stats")["calls"][name] == {"401": 1, "200": 1}
