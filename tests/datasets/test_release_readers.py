from pathlib import Path

import pytest

from tests.datasets.conftest import Published
from tests.datasets.release_readers import READERS


@pytest.mark.parametrize("reader", READERS)
def test_every_reader_finds_the_same_rows_captions_and_pictures(
    published: Published, tmp_path: Path, reader: str
) -> None:
    rows = published.rows
    expected = dict(
        zip(rows["key"], zip(rows["prompt"], rows["image_sha256"], strict=True), strict=True)
    )
    assert len(expected) == 40
    assert READERS[reader](published, tmp_path) == expected
