"""Shards that were damaged after they were published."""

from dataclasses import replace

import pytest

from nanobanana_pipeline.datasets.publish import build_release
from nanobanana_pipeline.datasets.pull import verify
from nanobanana_pipeline.datasets.release import MANIFEST, Format, Release
from nanobanana_pipeline.datasets.repair import repair
from nanobanana_pipeline.errors import ReleaseError
from nanobanana_pipeline.storage import ObjectStore, abort_uploads
from tests.datasets.release_rows import NOTHING_REJECTED, read, recipe, rows_of

BOTH = ("webdataset", "parquet")


def built(store: ObjectStore, count: int, parent: Release | None = None) -> Release:
    rows = rows_of(store, count)
    return build_release(store, recipe(*BOTH), rows, NOTHING_REJECTED, parent=parent)


def test_damaged_shards_are_made_again_as_they_were_published(store: ObjectStore) -> None:
    release = built(store, 21)
    shards = [file for file in release.files if file.digest]
    assert {file.path.split("/")[0] for file in shards} == {"webdataset", "index", "parquet"}
    before = {file.path: read(store, file.key) for file in shards}
    for number, file in enumerate(shards):
        if number % 2:
            store.put(file.key, b"?" * file.size)
        else:
            store.delete(file.key)
    assert {fault.path for fault in verify(store, release)} == set(before)
    for path in before:
        repair(store, release, path)
    assert list(verify(store, release)) == []
    assert {file.path: read(store, file.key) for file in shards} == before


def test_what_would_come_out_differently_is_not_written(store: ObjectStore) -> None:
    release = built(store, 9)
    shards = [file for file in release.files if file.digest]
    for file in shards:
        store.delete(file.key)
        changed = replace(file, sha256="0" * 64)
        other = replace(release, files=(release.file(MANIFEST), changed))
        with pytest.raises(ReleaseError, match=r"Use the version that release\.json names"):
            repair(store, other, file.path)
        assert store.get(file.key) is None
    assert abort_uploads(store, "datasets/", 0) == 0


def test_a_shard_whose_picture_is_gone_and_a_file_that_is_no_shard_say_so(
    store: ObjectStore,
) -> None:
    rows = rows_of(store, 4)
    release = build_release(store, recipe(*BOTH), rows, NOTHING_REJECTED, parent=None)
    with pytest.raises(ReleaseError, match=r"manifest\.parquet is no shard"):
        repair(store, release, MANIFEST)
    store.delete(rows["image_key"][0])
    for file in (file for file in release.files if file.digest):
        with pytest.raises(ReleaseError, match="is missing, and row"):
            repair(store, release, file.path)


def test_the_next_release_makes_anew_what_has_gone_from_its_parent(store: ObjectStore) -> None:
    first = built(store, 21)
    gone = first.shards(Format.WEBDATASET, ".tar")[0]
    store.delete(gone.key)
    second = built(store, 30, parent=first)
    assert list(verify(store, second)) == []
    assert second.file(gone.path).key == f"datasets/pets/v2/{gone.path}"
    assert second.file(gone.path).sha256 == gone.sha256
