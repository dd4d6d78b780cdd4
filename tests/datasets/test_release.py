import hashlib
import io
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest

from nanobanana_pipeline.datasets import row_images
from nanobanana_pipeline.datasets.formats.gallery import GALLERY
from nanobanana_pipeline.datasets.publish import build_release
from nanobanana_pipeline.datasets.release import (
    CHANGELOG,
    MANIFEST,
    REJECTED,
    Format,
    Release,
    all_releases,
    dataset_names,
    find_release,
    read_latest,
    read_release,
    read_release_table,
)
from nanobanana_pipeline.errors import ReleaseError, StorageUnavailable
from nanobanana_pipeline.storage import ObjectStore, abort_uploads
from tests.datasets.release_rows import NOTHING_REJECTED, read, recipe, row, rows_of, table

BOTH = ("webdataset", "parquet")
CHILD = (sys.executable, "-m", "tests.datasets.release_child")


def writes(store: ObjectStore) -> list[str]:
    """The keys that are written through this store from now on, as they come."""
    written: list[str] = []

    def note(params: dict[str, Any], **_: object) -> None:
        written.append(params["Key"].removeprefix(store.prefix))

    for call in ("PutObject", "CreateMultipartUpload"):
        store.client.meta.events.register(f"provide-client-params.s3.{call}", note)
    return written


def built(
    store: ObjectStore, rows: pd.DataFrame, *formats: str, parent: Release | None = None
) -> Release:
    return build_release(store, recipe(*formats), rows, NOTHING_REJECTED, parent=parent)


def bodies(store: ObjectStore, release: Release) -> dict[str, bytes]:
    return {file.path: read(store, file.key) for file in release.files}


def placeless_bodies(store: ObjectStore, release: Release) -> dict[str, bytes]:
    """All files; the gallery names pictures by their addresses, which are left out here."""
    here = store.uri("").encode()
    return {path: body.replace(here, b"") for path, body in bodies(store, release).items()}


def placeless(release: Release) -> Release:
    """What is the same wherever and whenever it is built."""
    files = tuple(file for file in release.files if file.path != GALLERY)
    return replace(release, created="", files=files)


def test_a_release_names_every_file_with_its_size_and_hash(store: ObjectStore) -> None:
    rows = rows_of(store, 21)
    release = built(store, rows, *BOTH)
    assert (release.version, release.parent, release.rows) == ("v1", None, 21)
    assert (release.images, release.size) == (21, rows["bytes"].sum())
    assert (dict(release.splits), dict(release.kinds)) == ({"test": 4, "train": 17}, {"png": 21})
    for file in release.files:
        body = read(store, file.key)
        assert (len(body), hashlib.sha256(body).hexdigest()) == (file.size, file.sha256)
        assert file.key == f"datasets/pets/v1/{file.path}"
    assert sum(f.rows or 0 for f in release.shards(Format.WEBDATASET, ".tar")) == 21
    assert sum(f.rows or 0 for f in release.shards(Format.PARQUET, ".parquet")) == 21
    assert read_latest(store, "pets") == release
    assert (dataset_names(store), list(all_releases(store, "pets"))) == (["pets"], [release])


def test_the_manifest_has_every_row_with_its_shard_key_and_checksums(store: ObjectStore) -> None:
    rows = rows_of(store, 21)
    release = built(store, rows, *BOTH)
    manifest = read_release_table(store, release, MANIFEST)
    assert manifest["row_id"].tolist() == rows["row_id"].tolist()
    assert manifest["key"].tolist() == [f"{n:09d}" for n in range(21)]
    assert manifest["image_sha256"].tolist() == rows["image_sha256"].tolist()
    assert manifest["row_sha256"].is_unique
    counted = manifest.groupby(["split", "shard"]).size().to_dict()
    assert counted == {
        ("train", 0): 4, ("train", 1): 4, ("train", 2): 4, ("train", 3): 4, ("train", 4): 1,
        ("test", 0): 4,
    }  # fmt: skip
    for shard in release.shards(Format.PARQUET, ".parquet"):
        keys = pq.read_table(io.BytesIO(read(store, shard.key)), columns=["key"])["key"]
        here = manifest[(manifest["split"] == shard.split) & (manifest["shard"] == shard.shard)]
        assert keys.to_pylist() == here["key"].tolist()


def test_a_shard_ends_at_its_bytes_too_and_holds_one_image_format(store: ObjectStore) -> None:
    kinds = ["png", "jpg", "webp", "png"] * 4
    rows = table([row(store, n, kind=kind) for n, kind in enumerate(kinds)])
    rows["split"] = pd.array(["train"] * len(rows), dtype="string")
    small = {"bytes": int(rows["bytes"].max()) * 2, "images": 100}
    release = build_release(store, recipe(shard_size=small), rows, NOTHING_REJECTED, parent=None)
    manifest = read_release_table(store, release, MANIFEST)
    for _, shard in manifest.groupby("shard"):
        assert len(set(shard["format"])) == 1
        assert shard["bytes"].sum() <= small["bytes"]
    assert len(release.shards(Format.WEBDATASET, ".tar")) == manifest["shard"].nunique() >= 7


def test_the_same_rows_give_the_same_bytes_wherever_they_are_built(store: ObjectStore) -> None:
    rows = rows_of(store, 21)
    elsewhere = store.at(store.bucket, f"{store.prefix}elsewhere")
    rows_of(elsewhere, 21)
    assert placeless_bodies(store, built(store, rows, *BOTH)) == placeless_bodies(
        elsewhere, built(elsewhere, rows, *BOTH)
    )


def test_building_the_same_again_gives_the_same_release_and_writes_nothing(
    store: ObjectStore,
) -> None:
    rows = rows_of(store, 9)
    first = built(store, rows)
    written = writes(store)
    assert built(store, rows, parent=first) == first
    # Nor where its builder has not seen the first one.
    assert built(store, rows, parent=None) == first
    assert written == []


def test_the_next_release_refers_to_shards_that_are_unchanged(store: ObjectStore) -> None:
    rows = rows_of(store, 21)
    first = built(store, rows, *BOTH)
    more = rows_of(store, 30)
    gone = rows["row_id"][[4, 5]].tolist()
    left = more[~more["row_id"].isin(gone)].reset_index(drop=True)
    rejected = pd.DataFrame({"row_id": gone, "reason": ["near-uniform", "near-uniform"]})
    written = writes(store)
    second = build_release(store, recipe(*BOTH), left, rejected, parent=first)
    assert (second.version, second.parent, second.rows) == ("v2", "v1", 28)
    assert dict(second.changes) == {"added": 9, "removed": 2}

    old = {file.path: file for file in first.files if file.digest}
    kept = [file for file in second.files if file.key.startswith("datasets/pets/v1/")]
    assert all(old[file.path] == file for file in kept)
    # Of five shards in train the one with rows 4 and 5 is made anew.
    assert sorted({(f.split, f.shard) for f in kept}) == [
        ("test", 0), ("train", 0), ("train", 2), ("train", 3), ("train", 4),
    ]  # fmt: skip
    assert not [key for key in written if key.startswith("datasets/pets/v1/")]
    before = read_release_table(store, first, MANIFEST).set_index("row_id")["key"]
    after = read_release_table(store, second, MANIFEST).set_index("row_id")["key"]
    assert after[before.index.difference(gone)].equals(before[before.index.difference(gone)])
    assert sorted(after.drop(before.index, errors="ignore")) == [f"{n:09d}" for n in range(21, 30)]

    changes = read_release_table(store, second, CHANGELOG)
    removed = changes[changes["change"] == "removed"]
    assert (sorted(removed["row_id"]), set(removed["reason"])) == (sorted(gone), {"near-uniform"})
    assert read_release_table(store, second, REJECTED)["reason"].tolist() == ["near-uniform"] * 2
    # A key that was given once is never given again.
    third = built(store, rows_of(store, 31), *BOTH, parent=second)
    keys = read_release_table(store, third, MANIFEST)["key"].astype(int)
    assert keys.is_unique
    assert keys.max() == 32
    assert [release.version for release in all_releases(store, "pets")] == ["v3", "v2", "v1"]
    assert find_release(store, "pets", "v1") == first


def test_a_row_whose_metadata_change_keeps_its_key_and_its_shard(store: ObjectStore) -> None:
    rows = rows_of(store, 12)
    first = built(store, rows)
    rows.loc[5, "entropy"] = 1.5
    second = built(store, rows, parent=first)
    assert dict(second.changes) == {"changed": 1}
    tars = second.shards(Format.WEBDATASET, ".tar")
    anew = [file for file in tars if file.key.startswith("datasets/pets/v2/")]
    assert [(file.split, file.shard) for file in anew] == [("train", 1)]
    for release in (first, second):
        assert read_release_table(store, release, MANIFEST)["key"].tolist() == [
            f"{n:09d}" for n in range(12)
        ]


def test_a_format_that_is_asked_for_later_is_built_for_old_shards_too(store: ObjectStore) -> None:
    rows = rows_of(store, 9)
    first = built(store, rows, "webdataset")
    second = built(store, rows, *BOTH, parent=first)
    assert all(f.key.startswith("datasets/pets/v1/") for f in second.shards(Format.WEBDATASET, ""))
    assert sum(f.rows or 0 for f in second.shards(Format.PARQUET, ".parquet")) == 9


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda rows: rows.iloc[:0], "no row to release"),
        (lambda rows: pd.concat([rows, rows.iloc[:1]]), "comes twice"),
        (lambda rows: rows.assign(image_key="images/ff/gone.png"), "is missing"),
        (lambda rows: rows.assign(image_sha256="0" * 64), "is damaged"),
        (lambda rows: rows.assign(prompt=pd.NA), "without prompt"),
    ],
)
def test_what_cannot_be_released_is_refused_and_leaves_no_release(
    store: ObjectStore, spoil: Callable[[pd.DataFrame], pd.DataFrame], says: str
) -> None:
    rows = spoil(rows_of(store, 9))
    with pytest.raises(ReleaseError, match=says):
        built(store, rows, *BOTH)
    assert read_latest(store, "pets") is None
    assert not [key for key in store.keys("datasets/") if key.endswith("release.json")]
    with pytest.raises(ReleaseError, match="no release of 'pets'"):
        find_release(store, "pets")


def test_a_build_that_fails_does_not_pack_the_other_shards_first(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_of(store, 60)
    bad, fetch = rows["row_id"][0], row_images.read_image

    def slowly_or_not_at_all(store: ObjectStore, row: dict[str, Any]) -> bytes:
        if row["row_id"] == bad:
            raise ReleaseError("gone")
        time.sleep(0.3)
        return fetch(store, row)

    monkeypatch.setattr(row_images, "read_image", slowly_or_not_at_all)
    with pytest.raises(ReleaseError, match="gone"):
        built(store, rows, *BOTH)
    assert len(list(store.keys("datasets/pets/v1/build/"))) < 8
    assert abort_uploads(store, "datasets/", 0) == 0


def test_rows_chosen_before_somebody_else_published_are_refused(store: ObjectStore) -> None:
    first = built(store, rows_of(store, 4))
    built(store, rows_of(store, 6), parent=first)
    with pytest.raises(ReleaseError, match=r"follow v1 of pets, and s3://.* names v2 now"):
        built(store, rows_of(store, 8), parent=first)
    with pytest.raises(ReleaseError, match="follow no release of pets"):
        built(store, rows_of(store, 8), parent=None)


@pytest.mark.parametrize("alike", [True, False])
def test_of_two_builders_at_once_one_wins_and_the_other_adopts_or_refuses(
    store: ObjectStore, *, alike: bool
) -> None:
    barrier = threading.Barrier(2)
    rows = rows_of(store, 12)

    def build(number: int) -> Release | ReleaseError:
        mine = rows if alike else rows.iloc[: 10 + number]
        barrier.wait()
        try:
            return built(store, mine, *BOTH)
        except ReleaseError as error:
            return error

    with ThreadPoolExecutor(2) as pool:
        made = list(pool.map(build, range(2)))
    latest = read_latest(store, "pets")
    assert latest is not None
    winners = [each for each in made if isinstance(each, Release)]
    assert set(map(id, made)) == set(map(id, winners)) if alike else len(winners) == 1
    assert all(each == latest for each in winners)
    assert all("has published in the meantime" in str(e) for e in made if e not in winners)
    for path, body in bodies(store, latest).items():
        assert hashlib.sha256(body).hexdigest() == latest.file(path).sha256


def test_a_pointer_whose_answer_is_lost_is_read_again(store: ObjectStore) -> None:
    class Mute(ObjectStore):
        lost = 0

        def create(self, key: str, body: bytes, **more: object) -> str | None:
            done = super().create(key, body, **more)  # type: ignore[arg-type]
            if done is not None and key.startswith("datasets/") and self.lost < 100:
                self.lost += 1
                raise StorageUnavailable("no answer")
            return done

    mute = Mute(store.client, store.bucket, store.prefix)
    release = built(mute, rows_of(store, 9))
    assert mute.lost > 3
    assert release.version == "v1"
    assert read_latest(store, "pets") == release


def test_a_format_of_a_newer_version_asks_for_an_upgrade(store: ObjectStore) -> None:
    build_release(store, recipe(), rows_of(store, 2), NOTHING_REJECTED, parent=None)
    key = "datasets/pets/v1/release.json"
    store.put(key, read(store, key).replace(b'"format": "webdataset"', b'"format": "lance"'))
    with pytest.raises(ReleaseError, match=r"a format .* not know: upgrade nanobanana-pipeline"):
        read_release(store, "pets", "v1")


@pytest.mark.parametrize("leaf", ["latest.json", "v1/release.json"])
def test_what_a_newer_version_wrote_is_left_alone(store: ObjectStore, leaf: str) -> None:
    built(store, rows_of(store, 4))
    key = f"datasets/pets/{leaf}"
    said = json.loads(read(store, key))
    store.put(key, json.dumps({**said, "schema": 99}).encode())
    with pytest.raises(ReleaseError, match=r"upgrade nanobanana-pipeline|not what was published"):
        built(store, rows_of(store, 6))


def test_a_build_that_was_killed_goes_on_and_gives_the_same_bytes(
    store: ObjectStore, tmp_path: Path
) -> None:
    rows = rows_of(store, 40)
    rows.to_pickle(tmp_path / "pets.pickle")
    command = [*CHILD, store.prefix, "0.2", "4", ",".join(BOTH), str(tmp_path / "pets.pickle")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        try:
            while not (receipts := list(store.keys("datasets/pets/v1/build/"))):
                assert child.poll() is None
                time.sleep(0.02)
        finally:
            child.kill()
    assert 0 < len(receipts) < 10
    assert read_latest(store, "pets") is None
    # What was finished up to the kill itself.
    receipts = list(store.keys("datasets/pets/v1/build/"))
    finished = {file["key"] for key in receipts for file in json.loads(read(store, key))}

    written = writes(store)
    release = built(store, rows, *BOTH)
    assert release.version == "v1"
    assert not finished & set(written)
    assert {file.key for file in release.files} - finished <= set(written)

    elsewhere = store.at(store.bucket, f"{store.prefix}elsewhere")
    rows_of(elsewhere, 40)
    undisturbed = built(elsewhere, rows, *BOTH)
    assert placeless(release) == placeless(undisturbed)
    assert placeless_bodies(store, release) == placeless_bodies(elsewhere, undisturbed)


def test_a_shard_whose_file_is_not_whole_is_built_anew(store: ObjectStore) -> None:
    rows = rows_of(store, 9)
    first = built(store, rows)
    store.delete("datasets/pets/latest.json")
    store.delete("datasets/pets/v1/release.json")
    cut, lost = (
        first.shards(Format.WEBDATASET, ".tar")[0],
        first.shards(Format.WEBDATASET, ".tar")[1],
    )
    store.put(cut.key, read(store, cut.key)[:-1])
    store.delete(lost.key)
    written = writes(store)
    assert built(store, rows) == first
    assert {cut.key, lost.key} <= set(written)
    assert first.shards(Format.WEBDATASET, ".tar")[2].key not in written
    assert len(read(store, cut.key)) == cut.size


def test_memory_does_not_grow_with_the_number_of_pictures(
    store: ObjectStore, tmp_path: Path
) -> None:
    with ThreadPoolExecutor(8) as pool:
        rows = table(list(pool.map(lambda n: row(store, n, side=224), range(1_000))))
    assert rows["bytes"].sum() > 150e6
    files = [tmp_path / "pets_200.pickle", tmp_path / "pets_1000.pickle"]
    for count, file in zip((200, 1_000), files, strict=True):
        rows.iloc[:count].to_pickle(file)
    # One process: what imports and first calls take is in the first peak, and in both.
    command = [*CHILD, store.prefix, "0", "50", ",".join(BOTH), *map(str, files)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    small, large = (int(peak) * 1024 for peak in done.stdout.split())
    # The other 800 pictures alone have 120 MB.
    assert large - small < 50e6, (small, large)
