"""Words that people read."""

import pytest

from nanobanana_pipeline.wording import counted


@pytest.mark.parametrize(
    ("count", "said"), [(0, "0 rows"), (1, "1 row"), (2, "2 rows"), (12_345, "12,345 rows")]
)
def test_one_is_not_many(count: int, said: str) -> None:
    assert counted(count, "row") == said
