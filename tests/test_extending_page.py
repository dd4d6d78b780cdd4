"""`docs/extending.md` is held to its word: every example runs, and its product is used for real."""

import hashlib
import io
import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from nanobanana_pipeline.datasets import formats, layouts
from nanobanana_pipeline.datasets.formats import FORMATS
from nanobanana_pipeline.datasets.layouts import LAYOUTS, Layout
from nanobanana_pipeline.datasets.publish import build_release
from nanobanana_pipeline.datasets.pull import pull
from nanobanana_pipeline.datasets.recipe import ShardSize
from nanobanana_pipeline.datasets.release import MANIFEST, Format, read_release_table
from nanobanana_pipeline.datasets.release_rows import KEY_COLUMN, as_table, row_digests
from nanobanana_pipeline.datasets.shard_builder import build_shards
from nanobanana_pipeline.datasets.shard_layout import assign_shards
from nanobanana_pipeline.features.measure import Features
from nanobanana_pipeline.features.table import FEATURE_COLUMNS
from nanobanana_pipeline.prompts import readers
from nanobanana_pipeline.prompts.table import read_prompt_table as read_prompts
from nanobanana_pipeline.prompts.table_files import fault_of_name
from nanobanana_pipeline.storage import ObjectStore
from tests.datasets.release_rows import NOTHING_REJECTED, read, recipe, rows_of
from tests.test_provider_page import ROOT

PAGE = (ROOT / "docs" / "extending.md").read_text("utf-8")


def example(heading: str) -> dict[str, Any]:
    """What the example under a heading defines."""
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    (program,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    defined: dict[str, Any] = {}
    exec(compile(program, "docs/extending.md", "exec"), defined)  # noqa: S102 - it is the page's
    return defined


def test_a_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "READERS", list(readers.READERS))
    path = tmp_path / "pets.txt"
    path.write_text("a cat\n\n*** dogs ***\na dog\n")
    assert "no known format" in str(fault_of_name(str(path)))
    example("A reader of prompt tables")
    assert fault_of_name(str(path)) is None
    table = read_prompts(path)
    assert table.rows.to_pydict() == {"prompt": ["a cat", "a dog"]}
    assert table.numbers.to_pylist() == [1, 3]
    assert [(fault.row, fault.value) for fault in table.broken] == [(2, "*** dogs ***")]


def test_a_format(store: ObjectStore) -> None:
    defined = example("A format of releases")
    formats = {Format.PARQUET: defined["JSON_LINES"].shards}
    rows = rows_of(store, 6)
    table = as_table(rows)
    shards = assign_shards(table, row_digests(table), ShardSize(images=4))
    keyed = table.add_column(0, KEY_COLUMN, [shards.keys])
    files = build_shards(store, ("pets", "v1"), keyed, shards.shards, formats)
    assert {Path(file.path).suffix for file in files} == {".jsonl"}
    lines = [json.loads(line) for file in files for line in read(store, file.key).splitlines()]
    assert sorted(line["row_id"] for line in lines) == sorted(rows["row_id"])
    decoded = defined["base64"].b64decode(lines[0]["image"])
    assert hashlib.sha256(decoded).hexdigest() == lines[0]["image_sha256"]


def test_a_layout(store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay_out = example("A layout on disk")["lay_out_captions"]
    monkeypatch.setitem(LAYOUTS, Layout.GENEVAL, lay_out)
    release = build_release(store, recipe(), rows_of(store, 4), NOTHING_REJECTED, parent=None)
    pull(store, release, tmp_path, Layout.GENEVAL)
    rows = read_release_table(store, release, MANIFEST).set_index("key")
    assert {path.stem: path.read_text() for path in tmp_path.glob("*.txt")} == dict(rows["prompt"])
    for key, row in rows.iterrows():
        body = (tmp_path / f"{key}.{row['format']}").read_bytes()
        assert hashlib.sha256(body).hexdigest() == row["image_sha256"]


def test_a_feature() -> None:
    saturation = example("A feature")["saturation"]
    body = io.BytesIO()
    Image.new("RGB", (4, 4), (255, 0, 0)).save(body, "PNG")
    assert saturation(Image.open(body)) == 255
    assert saturation(Image.new("RGB", (4, 4), (7, 7, 7))) == 0


def test_every_entry_stands_in_its_table() -> None:
    assert list(FORMATS) == list(Format)
    assert list(LAYOUTS) == list(Layout)
    for package, entries in ((formats, FORMATS), (layouts, LAYOUTS)):
        folder = Path(str(package.__file__)).parent
        modules = {path.stem for path in folder.glob("*.py")} - {"__init__", "base", "gallery"}
        assert modules == {str(name) for name in entries}
    measured = [field.name.replace("size", "bytes") for field in fields(Features)]
    assert sorted(measured) == sorted(FEATURE_COLUMNS)
