"""The table of a partition: real pictures, bought from the emulator, in a real bucket."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagehash
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from nanobanana_pipeline.errors import PlanError, StorageError
from nanobanana_pipeline.features import table as features_table
from nanobanana_pipeline.features import workers
from nanobanana_pipeline.features.table import (
    FEATURE_COLUMNS,
    read_current_features,
    read_features,
    refresh_features,
)
from nanobanana_pipeline.features.workers import _process as new_process
from nanobanana_pipeline.provider.account import Account
from nanobanana_pipeline.storage import ObjectStore
from nanobanana_pipeline.storage.versioned import swap_pointer
from tests.conftest import Emulators, account_for
from tests.features.counting import FOLDER, counted
from tests.launching import keep_prompts, launch, prompts

POINTER = "features/set/seed=1/current.json"
Counter = Callable[[], int]


@pytest.fixture
def decodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Counter:
    """How many pictures were decoded since it was last asked, in whatever process."""
    monkeypatch.setenv(FOLDER, str(tmp_path))
    monkeypatch.setattr(workers, "measure", counted)
    monkeypatch.setattr(workers, "_process", new_process)  # one that knows the folder
    before = 0

    def count() -> int:
        nonlocal before
        now = len(list(tmp_path.iterdir()))
        new, before = now - before, now
        return new

    return count


@pytest.fixture
def account(store: ObjectStore, emulators: Emulators) -> Account:
    """Some of its pictures are WebP, some bear marks of provenance."""
    emulator = emulators(moods={"webp": 0.4, "provenance": 0.5})
    keep_prompts(store, "set", prompts(6))
    return account_for(emulator.base_url, store)


def pointer(store: ObjectStore) -> dict[str, Any]:
    found = store.get(POINTER)
    assert found is not None
    told: dict[str, Any] = json.loads(found.body)
    return told


def test_every_picture_is_measured_as_its_bytes_say(store: ObjectStore, account: Account) -> None:
    bought = launch(store, account).rows.set_index("image_sha256")
    done = refresh_features(store, "set", 1)
    table = read_features(store, "set", 1)
    assert table is not None
    assert list(table.columns) == list(FEATURE_COLUMNS)
    assert (done.measured, done.current.rows, done.gaps) == (6, 6, 0)
    assert sorted(table["image_sha256"]) == sorted(bought.index)
    assert len(set(table["format"])) > 1
    assert table["provenance"].notna().any()
    for row in table.to_dict("records"):
        of = bought.loc[row["image_sha256"]]
        for name in ("format", "width", "height", "bytes"):
            assert row[name] == of[name]
        assert row["provenance"] == of["provenance"] or pd.isna(of["provenance"])
        stored = store.open_url(of["image_uri"])
        with Image.open(io.BytesIO(stored)) as image:
            assert row["phash"] == str(imagehash.phash(image))
            grey = np.asarray(image.convert("L"))
        assert row["mean"] == pytest.approx(grey.mean())
        assert row["blank"] is False
    assert table.dtypes.astype(str).to_dict() == {
        "image_sha256": "str",
        "format": "str",
        "mode": "str",
        "width": "Int32",
        "height": "Int32",
        "bytes": "Int64",
        "mean": "Float32",
        "entropy": "Float32",
        "sharpness": "Float32",
        "blank": "boolean",
        "phash": "str",
        "provenance": "str",
        "error": "str",
        "thumbnail": "object",
    }
    assert done.current.sheet == "features/set/seed=1/contact_sheet.webp"
    sheet = store.get(done.current.sheet)
    assert sheet is not None
    with Image.open(io.BytesIO(sheet.body)) as image:
        assert image.format == "WEBP"
        # Four beside each other, which fit a partition's page.
        assert 4 * 112 < image.width < 500


def test_only_new_pictures_are_decoded(
    store: ObjectStore, account: Account, decodes: Counter
) -> None:
    launch(store, account, limit=2)
    first = refresh_features(store, "set", 1)
    assert (decodes(), first.current.rows) == (2, 2)
    objects = list(store.keys("features/"))
    again = refresh_features(store, "set", 1)
    assert (decodes(), again.measured, again.current) == (0, 0, first.current)
    assert list(store.keys("features/")) == objects
    launch(store, account)
    whole = refresh_features(store, "set", 1)
    assert (decodes(), whole.current.rows, whole.measured) == (4, 6, 4)
    assert whole.current.content != first.current.content
    taken_over = whole.rows[whole.rows["image_sha256"].isin(first.rows["image_sha256"])]
    pd.testing.assert_frame_equal(taken_over.reset_index(drop=True), first.rows)


def test_the_content_is_the_same_however_it_came_about(
    store: ObjectStore, account: Account
) -> None:
    launch(store, account, limit=2)
    refresh_features(store, "set", 1)
    launch(store, account)
    bit_by_bit = refresh_features(store, "set", 1).current
    store.delete(POINTER)
    at_once = refresh_features(store, "set", 1).current
    assert at_once.content == bit_by_bit.content
    assert at_once.table != bit_by_bit.table


def test_a_broken_picture_has_a_reason_until_it_is_mended(
    store: ObjectStore, account: Account, decodes: Counter
) -> None:
    rows = launch(store, account).rows
    broken, gone = (str(uri).removeprefix(store.uri("")) for uri in rows["image_uri"].head(2))
    kept = {key: store.get(key) for key in (broken, gone)}
    store.put(broken, b"no picture")
    store.delete(gone)
    done = refresh_features(store, "set", 1)
    assert (decodes(), done.current.rows, done.current.errors) == (5, 6, 2)
    table = read_features(store, "set", 1)
    assert table is not None
    bad = table[table["error"].notna()]
    assert sorted(bad["image_sha256"]) == sorted(rows["image_sha256"].head(2))
    assert bad.drop(columns=["image_sha256", "error"]).isna().all(axis=None)
    assert set(bad["error"].str.contains("missing|not its name")) == {True}
    for key, found in kept.items():
        assert found is not None
        store.put(key, found.body)
    mended = refresh_features(store, "set", 1)
    assert (decodes(), mended.current.errors, mended.measured) == (2, 0, 2)


def test_of_two_at_once_one_takes_over_what_the_other_has_measured(
    store: ObjectStore, account: Account, decodes: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch(store, account, limit=2)

    def overtaken(*given: Any) -> bool:
        monkeypatch.setattr(features_table, "swap_pointer", swap_pointer)
        launch(store, account)
        refresh_features(store, "set", 1)
        assert decodes() == 8
        return swap_pointer(*given)

    monkeypatch.setattr(features_table, "swap_pointer", overtaken)
    slower = refresh_features(store, "set", 1)
    assert (decodes(), slower.current.rows) == (0, 6)
    assert slower.current == read_current_features(store, "set", 1)[0]


def test_a_launch_that_dies_before_its_end_leaves_what_was_there(
    store: ObjectStore, account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch(store, account, limit=2)
    before = refresh_features(store, "set", 1).current
    launch(store, account)

    class Killed(BaseException):
        pass

    def die(*_given: Any) -> None:
        raise Killed

    with pytest.raises(Killed):
        refresh_features(store, "set", 1, on_progress=die)
    assert read_current_features(store, "set", 1)[0] == before
    with monkeypatch.context() as patch:
        patch.setattr(features_table, "swap_pointer", die)
        with pytest.raises(Killed):
            refresh_features(store, "set", 1)
    assert read_current_features(store, "set", 1)[0] == before
    table = read_features(store, "set", 1)
    assert table is not None
    assert len(table) == 2
    assert refresh_features(store, "set", 1).current.rows == 6


def test_figures_of_an_older_version_are_measured_anew(
    store: ObjectStore, account: Account, decodes: Counter
) -> None:
    launch(store, account, limit=2)
    refresh_features(store, "set", 1)
    store.put(POINTER, json.dumps({**pointer(store), "schema": 0}).encode())
    assert decodes() == 2
    assert refresh_features(store, "set", 1).current.schema == features_table.SCHEMA
    assert (decodes(), pointer(store)["schema"]) == (2, features_table.SCHEMA)


def test_what_a_newer_version_wrote_is_left_alone(store: ObjectStore, account: Account) -> None:
    launch(store, account, limit=1)
    refresh_features(store, "set", 1)
    newer = {**pointer(store), "schema": features_table.SCHEMA + 1, "more": 1}
    store.put(POINTER, json.dumps(newer).encode())
    with pytest.raises(StorageError, match="upgrade"):
        refresh_features(store, "set", 1)
    assert pointer(store) == newer


def test_a_partition_without_pictures_says_what_comes_first(
    store: ObjectStore, account: Account
) -> None:
    assert read_features(store, "set", 1) is None
    with pytest.raises(PlanError, match="launch generated_images"):
        refresh_features(store, "set", 1)
    assert account
