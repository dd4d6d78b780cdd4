"""Words that people read."""

import re
from pathlib import Path

import pytest

from nanobanana_pipeline.wording import counted, shortened

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
