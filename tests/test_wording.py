"""Words that people read."""

import pytest

from nanobanana_pipeline.wording import counted, shortened


@pytest.mark.parametrize(
    ("count", "said"), [(0, "0 rows"), (1, "1 row"), (2, "2 rows"), (12_345, "12,345 rows")]
)
def test_one_is_not_many(count: int, said: str) -> None:
    assert counted(count, "row") == said


def test_a_long_text_is_shown_by_its_beginning_in_one_line() -> None:
    assert shortened("a fox,\n\tasleep ") == "a fox, asleep"
    assert shortened("x" * 60) == "x" * 60
    assert shortened("x" * 61) == f"{'x' * 59}…"
    assert shortened("一" * 9, 5) == "一一一一…"
