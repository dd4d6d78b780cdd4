"""Doubts are settled by the vendor's books only where these leave no choice."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import requests

from nanobanana_pipeline.audit.vendor_books import BookMatches, settle_by_books
from nanobanana_pipeline.errors import OperationFailed
from nanobanana_pipeline.generation.recovery.doubts import Action, find_doubts, settle_doubts
from nanobanana_pipeline.ledger import State
from nanobanana_pipeline.provider.account import Account
from nanobanana_pipeline.provider.outcomes import Done
from nanobanana_pipeline.provider.protocol import Books, Sale
from nanobanana_pipeline.storage import ObjectStore
from tests.conftest import API_KEY, Emulators, account_for
from tests.launching import admin, bought, entries, keep_prompts, launch, states, tell

PROMPT = "a heron at dawn"
OTHER_SIZE = {"width": 1056, "height": 1024}


def opened(
    store: ObjectStore, emulators: Emulators, rows: Sequence[Any], **moods: float
) -> tuple[Any, Account]:
    """A launch while some moods are on, by an account whose books may be read."""
    emulator = emulators(moods=moods)
    account = account_for(emulator.base_url, store, vendor_books="assets")
    keep_prompts(store, "set", rows)
    launch(store, account)
    tell(emulator, "moods", **dict.fromkeys(moods, 0) | {"fetch_meta": 1})
    return emulator, account


def buy_elsewhere(emulator: Any, **fields: object) -> str:
    """A purchase of the same account that this bucket knows nothing of."""
    body = {"key": API_KEY, "prompt": PROMPT, "seed": 1, "width": 1024, "height": 1024}
    answer = requests.post(f"{emulator.base_url}text2img", json=body | fields, timeout=30)
    return str(answer.json()["id"])


def matched(store: ObjectStore, account: Account) -> BookMatches:
    return settle_by_books(store, account, find_doubts(store, None))


def ids_sold(emulator: Any) -> set[str]:
    groups = admin(emulator, "purchases")["groups"]
    return {str(each) for group in groups for each in group["ids"]}


def test_a_doubt_is_settled_by_the_id_that_names_its_prompt_and_seed(
    store: ObjectStore, emulators: Emulators
) -> None:
    rows = [PROMPT, "a whale"]
    emulator, account = opened(store, emulators, rows, lost_answer_after=1)
    doubts = find_doubts(store, None)
    matches = settle_by_books(store, account, doubts)
    assert set(matches.named.values()) == ids_sold(emulator)
    assert (matches.unknown, matches.fault) == ([], None)
    (settled,) = settle_doubts(store, account, doubts, Action.LOOK)
    assert settled.current.cells == {"settled": 2}
    assert bought(emulator) == 2
    prompts_by_id = {str(g["ids"][0]): g["prompt"] for g in admin(emulator, "purchases")["groups"]}
    for entry in entries(store):
        assert prompts_by_id[str(entry.attempts[0].provider_id)] == entry.prompt


@pytest.mark.parametrize("mood", [{"fetch_meta": 0}, {"no_meta": 1}, {"forget": 1}])
def test_an_id_whose_fetch_names_no_prompt_is_listed_and_settles_nothing(
    store: ObjectStore, emulators: Emulators, mood: dict[str, float]
) -> None:
    emulator, account = opened(store, emulators, [PROMPT], lost_answer_after=1)
    tell(emulator, "moods", **mood)
    matches = matched(store, account)
    assert matches.named == {}
    assert [sale.provider_id for sale in matches.unknown] == list(ids_sold(emulator))
    assert states(store) == {State.IN_DOUBT: 1}


def without_track_ids(account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the provider name no `track_id`, as the documented answers to a fetch do not."""
    fetch = account.provider.fetch

    def told(provider_id: str) -> object:
        outcome = fetch(provider_id)
        if isinstance(outcome, Done):
            return replace(outcome, echo=replace(outcome.echo, track_id=None))
        return outcome

    monkeypatch.setattr(account.provider, "fetch", told)


def test_where_two_requests_in_doubt_share_prompt_and_seed_only_a_track_id_settles_them(
    store: ObjectStore, emulators: Emulators, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"prompt": PROMPT, "negative_prompt": word} for word in ("fog", "rain")]
    _, account = opened(store, emulators, rows, lost_answer_after=1)
    with monkeypatch.context() as patch:
        without_track_ids(account, patch)
        matches = matched(store, account)
    assert (matches.named, len(matches.unknown)) == ({}, 2)
    assert states(store) == {State.IN_DOUBT: 2}
    assert len(matched(store, account).named) == 2
    assert states(store) == {State.ACCEPTED: 2}


def test_an_id_that_another_request_holds_settles_nothing(
    store: ObjectStore, emulators: Emulators
) -> None:
    emulator, account = opened(store, emulators, [PROMPT], http_500_before=1)
    keep_prompts(store, "other", [PROMPT])
    launch(store, account, "other", parameters=OTHER_SIZE)
    assert matched(store, account) == BookMatches()
    assert (bought(emulator), states(store)) == (1, {State.SETTLED: 1, State.IN_DOUBT: 1})


def test_a_request_that_is_bought_while_the_books_are_read_settles_no_doubt_of_another(
    store: ObjectStore, emulators: Emulators
) -> None:
    emulator, account = opened(store, emulators, [PROMPT], http_500_before=1)
    sold = account.books.sold
    assert sold

    def sold_meanwhile() -> Iterator[Sale]:
        keep_prompts(store, "other", [PROMPT])
        launch(store, account, "other", parameters=OTHER_SIZE)
        return sold()

    matches = matched(store, replace(account, books=Books(sold=sold_meanwhile)))
    assert matches.named == {}
    assert (bought(emulator), states(store)) == (1, {State.SETTLED: 1, State.IN_DOUBT: 1})


def test_of_two_sales_with_one_requests_prompt_and_seed_only_a_marked_one_settles_it(
    store: ObjectStore, emulators: Emulators, monkeypatch: pytest.MonkeyPatch
) -> None:
    emulator, account = opened(store, emulators, [PROMPT], lost_answer_after=1)
    (own,) = ids_sold(emulator)
    unmarked = buy_elsewhere(emulator)
    with monkeypatch.context() as patch:
        without_track_ids(account, patch)
        matches = matched(store, account)
    assert matches.named == {}
    assert {sale.provider_id for sale in matches.unknown} == {own, unmarked}
    assert states(store) == {State.IN_DOUBT: 1}
    matches = matched(store, account)
    assert list(matches.named.values()) == [own]
    assert [sale.provider_id for sale in matches.unknown] == [unmarked]


def test_a_sale_that_names_another_track_id_is_anothers(
    store: ObjectStore, emulators: Emulators
) -> None:
    emulator, account = opened(store, emulators, [PROMPT], lost_answer_after=1)
    others = buy_elsewhere(emulator, track_id="another team's")
    matches = matched(store, account)
    assert set(matches.named.values()) == ids_sold(emulator) - {others}
    assert [sale.provider_id for sale in matches.unknown] == [others]


def test_books_that_cannot_be_read_are_a_fault_and_change_nothing(
    store: ObjectStore, emulators: Emulators
) -> None:
    _, account = opened(store, emulators, [PROMPT], lost_answer_after=1)

    def broken() -> Iterator[Sale]:
        raise OperationFailed("no such call")

    assert matched(store, replace(account, books=Books(sold=broken))) == BookMatches(
        fault="no such call"
    )
    assert matched(store, replace(account, books=Books())) == BookMatches()
    assert states(store) == {State.IN_DOUBT: 1}
