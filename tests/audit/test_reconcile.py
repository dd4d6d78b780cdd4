"""Ledger and vendor's books, compared for a day: each difference is named, and no other."""

from datetime import UTC, datetime, timedelta

import pytest

from nanobanana_pipeline.audit.reconcile import Reconciliation, reconcile
from nanobanana_pipeline.bucket_keys import ledger_key
from nanobanana_pipeline.errors import SettingsError
from nanobanana_pipeline.ledger import Entry, Outcome
from nanobanana_pipeline.provider.account import Account
from nanobanana_pipeline.storage import ObjectStore
from tests.audit.test_vendor_books import PROMPT, buy_elsewhere, ids_sold, opened
from tests.conftest import Emulators, account_for
from tests.launching import entries, keep_prompts, launch, prompts, tell


def compared(store: ObjectStore, account: Account, days_ago: int = 0) -> Reconciliation:
    day = datetime.now(UTC).date() - timedelta(days=days_ago)
    return reconcile(store, account, day)


def differences(report: Reconciliation) -> set[tuple[str, str, str | None]]:
    return {(each.kind, each.provider_id, each.request_key) for each in report.differences}


def replace_entry(store: ObjectStore, entry: Entry, **attempt: object) -> None:
    changed = tuple(each.model_copy(update=attempt) for each in entry.attempts)
    entry = entry.model_copy(update={"attempts": changed})
    store.put(ledger_key(entry.request_key), entry.to_json())


def test_books_that_agree_have_no_difference(store: ObjectStore, emulators: Emulators) -> None:
    _, account = opened(store, emulators, [*prompts(3), {"prompt": "two", "samples": 2}])
    report = compared(store, account)
    assert report == Reconciliation(report.day, [], 4, 0, 0, 4)
    assert report.agrees
    assert compared(store, account, 1).sold_in_both == 0


def test_a_purchase_that_the_ledger_does_not_know_is_named_on_the_days_it_may_be_of(
    store: ObjectStore, emulators: Emulators
) -> None:
    emulator, account = opened(store, emulators, prompts(1))
    stranger = buy_elsewhere(emulator)
    keep_prompts(store, "later", prompts(1, "later"))
    launch(store, account, "later")
    report = compared(store, account)
    assert differences(report) == {("not_in_ledger", stranger, None)}
    assert PROMPT in report.differences[0].text
    # Between two purchases of today: it is of no other day.
    assert compared(store, account, 1).agrees
    oldest, newest = sorted(entries(store), key=lambda entry: str(entry.attempts[0].accepted))
    since = (datetime.now(UTC) - timedelta(days=3)).isoformat()
    replace_entry(store, oldest, accepted=since)
    assert newest.attempts[0].accepted
    for days_ago, agrees in ((4, True), (3, False), (1, False), (0, False)):
        assert compared(store, account, days_ago).agrees is agrees


def test_what_the_books_do_not_list_is_named_with_what_the_provider_says(
    store: ObjectStore, emulators: Emulators
) -> None:
    emulator, account = opened(store, emulators, prompts(2))
    tell(emulator, "reset")
    report = compared(store, account)
    assert differences(report) == {
        ("not_in_books", str(entry.attempts[0].provider_id), entry.request_key)
        for entry in entries(store)
    }
    assert all("settled in the ledger" in each.text for each in report.differences)
    assert all("does not know the id" in each.text for each in report.differences)


def test_what_is_still_being_drawn_is_no_difference(
    store: ObjectStore, emulators: Emulators
) -> None:
    emulator = emulators(latency_seconds=(1000, 1000))
    account = account_for(emulator.base_url, store, vendor_books="assets")
    drawing = buy_elsewhere(emulator)
    keep_prompts(store, "set", prompts(1))
    other = account_for(emulators().base_url, store)
    launch(store, other)
    replace_entry(store, *entries(store), provider_id=drawing, outcome=Outcome.ACCEPTED)
    report = compared(store, account)
    assert (report.agrees, report.being_drawn) == (True, 1)


def test_a_doubt_that_the_books_could_settle_is_named(
    store: ObjectStore, emulators: Emulators
) -> None:
    emulator, account = opened(store, emulators, [PROMPT], lost_answer_after=1)
    report = compared(store, account)
    (entry,) = entries(store)
    assert differences(report) == {("settles_doubt", ids_sold(emulator).pop(), entry.request_key)}
    assert report.in_doubt == 1


def test_an_id_that_two_requests_hold_and_a_wrong_number_of_pictures_are_named(
    store: ObjectStore, emulators: Emulators
) -> None:
    _, account = opened(store, emulators, [*prompts(1), {"prompt": "two", "samples": 2}])
    one, two = sorted(entries(store), key=lambda entry: entry.samples)
    shared = str(two.attempts[0].provider_id)
    replace_entry(store, one, provider_id=shared)
    report = compared(store, account)
    kinds = [each.kind for each in report.differences]
    assert sorted(kinds) == ["held_twice", "not_in_ledger", "outputs_differ"]
    (twice,) = [each for each in report.differences if each.kind == "held_twice"]
    assert one.request_key in twice.text
    assert two.request_key in twice.text


def test_entries_of_another_realm_are_not_the_accounts(
    store: ObjectStore, emulators: Emulators
) -> None:
    _, account = opened(store, emulators, prompts(1))
    (entry,) = entries(store)
    store.put(ledger_key(entry.request_key), entry.model_copy(update={"realm": "other"}).to_json())
    assert [each.kind for each in compared(store, account).differences] == ["not_in_ledger"]


def test_without_the_setting_it_says_how_to_switch_it_on(
    store: ObjectStore, emulators: Emulators
) -> None:
    account = account_for(emulators().base_url, store, vendor_books="balance,count")
    with pytest.raises(SettingsError, match="export NANOBANANA_VENDOR_BOOKS=assets"):
        compared(store, account)
