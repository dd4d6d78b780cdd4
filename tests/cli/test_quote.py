"""`nanobanana quote`: what a launch would cost is told before it costs."""

from pathlib import Path

import pytest

from nanobanana_pipeline.emulator import EmulatorThread
from nanobanana_pipeline.storage import ObjectStore
from tests.cli.conftest import Command
from tests.launching import bought


def rows_of(output: str) -> dict[str, list[str]]:
    """The table's rows by their seed."""
    lines = (line.split() for line in output.splitlines())
    return {
        words[0]: words
        for words in lines
        if len(words) > 6 and words[0] in {"1", "2", "all"} and words[1] != "of"
    }


def test_a_quote_of_a_new_table_writes_and_buys_nothing(
    nanobanana: Command, table: Path, store: ObjectStore, emulator: EmulatorThread
) -> None:
    result = nanobanana("quote", table, "--seeds", "1-2")
    assert result.exit_code == 0, result.output
    rows = rows_of(result.output)
    assert rows["1"][1:6] == ["2", "2", "2", "unknown", "0"]
    assert rows["all"][1:6] == ["4", "4", "4", "unknown", "0"]
    assert "4 images to buy at an unknown price" in result.output
    assert "today (UTC) no image bought or reserved; the day's cap: no cap" in result.output
    assert list(store.keys("")) == []
    assert bought(emulator) == 0


def test_a_quote_knows_the_price_what_is_there_and_how_long_it_took(
    nanobanana: Command, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NANOBANANA_PRICE_PER_IMAGE", "0.05")
    monkeypatch.setenv("NANOBANANA_MAX_IMAGES_PER_DAY", "3")
    assert nanobanana("generate", table, "--seeds", "1").exit_code == 0
    result = nanobanana("quote", table, "--seeds", "1-2", "--param", "samples=2")
    assert result.exit_code == 0, result.output
    assert "--change-parameters" in result.output
    plain = nanobanana("quote", table, "--seeds", "1-2").output
    rows = rows_of(plain)
    assert rows["1"][1:6] == ["2", "0", "0", "0.00", "0"]
    assert rows["2"][1:6] == ["2", "2", "2", "0.10", "0"]
    assert "MB" in plain
    assert "0.10" in nanobanana("status").output
    assert "2 images for 0.10 bought or reserved" in plain
    assert "1 of 2 images would be over today's budget" in plain


def test_what_was_bought_at_an_unknown_price_is_told_apart(
    nanobanana: Command, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert nanobanana("generate", table, "--seeds", "1").exit_code == 0
    plain = nanobanana("quote", table, "--seeds", "1").output
    assert "today (UTC) 2 images at an unknown price bought or reserved" in plain
    assert "to buy at" not in plain
    monkeypatch.setenv("NANOBANANA_PRICE_PER_IMAGE", "0.05")
    assert nanobanana("generate", table, "--seeds", "2").exit_code == 0
    told = "4 images (2 for 0.10 and 2 at an unknown price) bought or reserved"
    assert told in nanobanana("quote", table, "--seeds", "3").output


def test_caps_hold_for_the_command(
    nanobanana: Command, table: Path, monkeypatch: pytest.MonkeyPatch, emulator: EmulatorThread
) -> None:
    unpriced = nanobanana("generate", table, "--seeds", "1", "--max-cost", "1")
    assert (unpriced.exit_code, "NANOBANANA_PRICE_PER_IMAGE" in unpriced.output) == (2, True)
    monkeypatch.setenv("NANOBANANA_MAX_COST_PER_DAY", "1")
    refused = nanobanana("status")
    assert (refused.exit_code, "NANOBANANA_MAX_IMAGES_PER_DAY" in refused.output) == (2, True)
    monkeypatch.delenv("NANOBANANA_MAX_COST_PER_DAY")
    capped = nanobanana("generate", table, "--seeds", "1-3", "--max-images", "3")
    assert capped.exit_code == 1
    assert "over_budget" in capped.output
    assert bought(emulator) == 3
