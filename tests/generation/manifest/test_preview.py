"""A few pictures of a partition on one, drawn once for what is in its manifest."""

import io

import pytest
from PIL import Image

from nanobanana_pipeline.bucket_keys import image_key
from nanobanana_pipeline.generation.manifest import preview
from nanobanana_pipeline.generation.manifest.manifest import CellState
from nanobanana_pipeline.generation.manifest.preview import (
    PICTURES,
    read_sample_rows,
    sample_pictures,
    write_preview,
)
from nanobanana_pipeline.storage import ObjectStore, versioned
from tests.conftest import Emulators, account_for
from tests.launching import keep_prompts, launch, prompts


def opened(store: ObjectStore, key: str | None) -> Image.Image:
    assert key is not None
    stored = store.get(key)
    assert stored is not None
    image = Image.open(io.BytesIO(stored.body))
    image.load()
    return image


def test_a_preview_is_drawn_once_and_anew_under_another_key_for_other_pictures(
    store: ObjectStore, emulators: Emulators
) -> None:
    account = account_for(emulators().base_url, store)
    keep_prompts(store, "set", prompts(20))
    pilot = launch(store, account, limit=3)
    first = write_preview(store, pilot.current, pilot.rows)
    assert opened(store, first).size == (3 * 120 + 8, 112 + 2 * 16 + 16 + 8)

    # What is there is not drawn again, though a picture may be gone by now.
    row = pilot.rows.dropna(subset="image_sha256").iloc[0]
    store.put(str(first), b"as it was drawn")
    assert write_preview(store, pilot.current, pilot.rows) == first
    stored = store.get(str(first))
    assert stored is not None
    assert stored.body == b"as it was drawn"

    whole = launch(store, account)
    second = write_preview(store, whole.current, whole.rows)
    assert second != first
    assert opened(store, second).width == 4 * 120 + 8

    shown = sample_pictures(store, whole.rows, PICTURES)
    # Twelve of twenty, from the first to nearly the last.
    expected = [whole.rows["prompt"][place * 20 // 12] for place in range(12)]
    assert [prompt for _, prompt in shown] == expected
    assert all(max(Image.open(io.BytesIO(small)).size) == 112 for small, _ in shown)

    # One that is gone and one that is broken leave the others to be seen.
    keys = [image_key(*each) for each in whole.rows[["image_sha256", "format"]].to_numpy()]
    assert image_key(row["image_sha256"], row["format"]) in keys
    store.delete(keys[0])
    store.put(keys[1], b"no picture at all")
    assert [prompt for _, prompt in sample_pictures(store, whole.rows, PICTURES)] == [
        prompt for _, prompt in shown[2:]
    ]


def test_where_nothing_is_settled_there_is_no_preview(
    store: ObjectStore, emulators: Emulators
) -> None:
    account = account_for(emulators(moods={"lost_answer_after": 1.0}).base_url, store)
    keep_prompts(store, "set", prompts(2))
    made = launch(store, account)
    assert write_preview(store, made.current, made.rows) is None


def test_of_many_rows_some_pictures_from_everywhere_and_all_gaps_are_read(
    store: ObjectStore, emulators: Emulators, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = ["prompt", "state", "image_sha256"]
    account = account_for(emulators().base_url, store)
    keep_prompts(store, "set", prompts(20))
    launch(store, account, limit=5)
    refuser = account_for(emulators(moods={"error_200": 1.0}).base_url, store)
    launch(store, refuser, limit=8)
    made = launch(store, account, limit=15)
    states = made.rows["state"]
    pictured = made.rows.index[states == CellState.SETTLED]
    refused = made.rows.index[states == CellState.REFUSED]
    assert (len(pictured), len(refused)) == (12, 3)

    # Where they are few, all that were asked for.
    read = read_sample_rows(store, made.current, columns)
    assert read["prompt"].to_list() == made.rows["prompt"][sorted([*pictured, *refused])].to_list()

    monkeypatch.setattr(preview, "SAMPLED_ROWS", 5)
    read = read_sample_rows(store, made.current, columns)
    expected = sorted([*pictured[::3], *refused])
    assert read["prompt"].to_list() == made.rows["prompt"][expected].to_list()

    # The same, however many rows are read at once.
    monkeypatch.setattr(versioned, "BATCH_ROWS", 4)
    assert read_sample_rows(store, made.current, columns).equals(read)
