"""The commands that use the vendor's own books."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from nanobanana_pipeline.emulator import EmulatorThread
from nanobanana_pipeline.ledger import State
from nanobanana_pipeline.storage import ObjectStore
from tests.cli.conftest import Command
from tests.conftest import Emulators
from tests.launching import admin, bought, states, tell


def today() -> str:
    return datetime.now(UTC).date().isoformat()


@pytest.fixture
def emulator(emulators: Emulators) -> EmulatorThread:
    return emulators(wallet=1, price_per_image=0.25)


@pytest.fixture
def booked(nanobanana: Command, monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.setenv("NANOBANANA_VENDOR_BOOKS", "assets,balance")
    return nanobanana


def test_a_day_is_compared_and_each_difference_named(
    booked: Command, table: Path, emulator: EmulatorThread
) -> None:
    assert booked("generate", table, "--seeds", "1").exit_code == 0
    same = booked("reconcile", "--day", today())
    assert (same.exit_code, "books agree" in same.output) == (0, True), same.output
    tell(emulator, "reset")
    differs = booked("reconcile", "--day", today())
    assert differs.exit_code == 1
    assert "they differ: 2 not_in_books" in differs.output
    told = json.loads(booked("reconcile", "--day", today(), "--json").output)
    assert told["agrees"] is False
    assert [each["kind"] for each in told["differences"]] == ["not_in_books"] * 2
    assert bought(emulator) == 0


def test_without_the_setting_or_with_no_day_it_says_what_to_do(nanobanana: Command) -> None:
    off = nanobanana("reconcile", "--day", today())
    assert off.exit_code == 2
    assert "export NANOBANANA_VENDOR_BOOKS=assets" in " ".join(off.output.split())
    for wrong in ("yesterday", "2026-13-01", "2999-01-01"):
        assert nanobanana("reconcile", "--day", wrong).exit_code == 2


def test_doubts_are_settled_by_the_books_where_these_name_them(
    booked: Command, table: Path, store: ObjectStore, emulator: EmulatorThread
) -> None:
    tell(emulator, "moods", lost_answer_after=1)
    assert booked("generate", table, "--seeds", "1").exit_code == 1
    tell(emulator, "moods", lost_answer_after=0)
    unnamed = booked("doubts", "resolve")
    assert (unnamed.exit_code, states(store)) == (1, {State.IN_DOUBT: 2})
    assert unnamed.output.count("and no request is known to be it") == 2
    tell(emulator, "moods", fetch_meta=1)
    named = booked("doubts", "resolve")
    assert (named.exit_code, states(store)) == (0, {State.SETTLED: 2}), named.output
    assert named.output.count("by the vendor's books") == 2
    assert bought(emulator) == 2


def test_before_a_rebuy_the_books_are_asked(
    booked: Command, table: Path, store: ObjectStore, emulator: EmulatorThread
) -> None:
    tell(emulator, "moods", lost_answer_after=1)
    assert booked("generate", table, "--seeds", "1").exit_code == 1
    tell(emulator, "moods", lost_answer_after=0, fetch_meta=1)
    assert booked("doubts", "resolve", "--rebuy", "--yes").exit_code == 0
    assert (bought(emulator), states(store)) == (2, {State.SETTLED: 2})


def test_the_wallet_is_shown_with_a_quote_and_its_bill_after_a_launch(
    booked: Command, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NANOBANANA_PRICE_PER_IMAGE", "0.25")
    enough = " ".join(booked("quote", table, "--seeds", "1-2").output.split())
    assert "the wallet holds 1.0 USD" in enough
    assert "less than" not in enough
    short = " ".join(booked("quote", table, "--seeds", "1-3").output.split())
    assert "the wallet holds 1.0 USD, less than the cost of 1.50" in short
    told = " ".join(booked("generate", table, "--seeds", "1").output.split())
    assert "0.5 USD left the wallet, as the ledger counts" in told
    monkeypatch.setenv("NANOBANANA_PRICE_PER_IMAGE", "0.2")
    other = " ".join(booked("generate", table, "--seeds", "2").output.split())
    assert "0.5 USD left the wallet, and the ledger counts 0.40" in other
    assert "less than the cost" not in told + other
    monkeypatch.setenv("NANOBANANA_PRICE_PER_IMAGE", "0.25")
    too_dear = " ".join(booked("generate", table, "--seeds", "3").output.split())
    assert "the wallet holds 0.0 USD, less than the cost of 0.50" in too_dear


def test_a_wallet_that_cannot_be_read_stops_nothing(
    booked: Command, table: Path, emulator: EmulatorThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NANOBANANA_VENDOR_BOOKS", "count")
    silent = booked("generate", table, "--seeds", "1")
    assert (silent.exit_code, "wallet" in silent.output) == (0, False)
    assert "wallet_balance" not in admin(emulator, "stats")["calls"]
