"""Words that people read."""

import re
from pathlib import Path

import pytest

from nanobanana_pipeline.wording import counted, shortened, size_text, time_text

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("count", "said"), [(0, "0 rows"), (1, "1 row"), (2, "2 rows"), (12_345, "12,345 rows")]
)
def test_one_is_not_many(count: int, said: str) -> None:
    assert counted(count, "row") == said


@pytest.mark.parametrize(
    ("verb", "one", "many"), [("is", "is", "are"), ("was", "was", "were"), ("has", "has", "have")]
)
def test_a_verb_follows_its_number(verb: str, one: str, many: str) -> None:
    said = [counted(count, "cell", verb) for count in (0, 1, 2)]
    assert said == [f"0 cells {many}", f"1 cell {one}", f"2 cells {many}"]


def test_no_message_puts_a_plural_behind_a_number_that_may_be_one() -> None:
    """Such as f"{count:,} cells are missing": `counted` says it right for 1 too."""
    words = r"\"?\s*f?\"? ?(?:[a-z]+ ){1,3}(?:are|were|have)\b"
    plural = re.compile(r"\{[^{}]*:,\}" + words)
    found = [
        f"{path.relative_to(ROOT)}: {each[0]}"
        for folder in ("nanobanana_pipeline", "dagster_nanobanana")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for each in plural.finditer(path.read_text("utf-8"))
    ]
    assert not found


def test_a_long_text_is_shown_by_its_beginning_in_one_line() -> None:
    assert shortened("a fox,\n\tasleep ") == "a fox, asleep"
    assert shortened("x" * 60) == "x" * 60
    assert shortened("x" * 61) == f"{'x' * 59}…"
    assert shortened("一" * 9, 5) == "一一一一…"


def test_a_size_is_told_in_megabytes() -> None:
    assert [size_text(n) for n in (0, 49_999, 1_234_567_890)] == ["0.0 MB", "0.0 MB", "1,234.6 MB"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (119.4, "119 s"),
        (120, "2 min"),
        (7199, "119 min"),
        (7200, "2 h 0 min"),
        (83_400, "23 h 10 min"),
        (48 * 3600 - 1, "47 h 59 min"),
        (48 * 3600, "48 h"),
        (3_600_000, "1,000 h"),
    ],
)
def test_a_time_is_told_in_the_units_that_fit(seconds: float, text: str) -> None:
    assert time_text(seconds) == text
