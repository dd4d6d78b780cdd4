import io
import json
import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image, ImageChops

from nanobanana_pipeline.datasets.layouts import Layout
from nanobanana_pipeline.datasets.publish import build_release
from nanobanana_pipeline.datasets.pull import PullResult, pull, verify
from nanobanana_pipeline.datasets.release import MANIFEST, Format, ReleaseFile, read_release_table
from nanobanana_pipeline.errors import ReleaseError
from nanobanana_pipeline.storage import ObjectStore
from tests.datasets.conftest import Published
from tests.datasets.release_readers import sha256
from tests.datasets.release_rows import NOTHING_REJECTED, read, recipe, row, rows_of, table, tree


@pytest.mark.parametrize(
    ("layout", "files"),
    [
        (Layout.WEBDATASET, r"(webdataset|index)/(train|test)/\d{5}-[0-9a-f]{12}\.(tar|parquet)"),
        (Layout.PARQUET, r"parquet/(train|test)/\d{5}-[0-9a-f]{12}\.parquet"),
        (Layout.HUGGINGFACE, r"README\.md|preview\.png|croissant\.json|parquet/.*\.parquet"),
    ],
)
def test_a_layout_has_the_files_that_were_published(
    published: Published, tmp_path: Path, layout: Layout, files: str
) -> None:
    pulled = pull(published.store, published.release, tmp_path, layout)
    found = tree(tmp_path)
    size = sum(map(len, found.values()))
    if layout is Layout.WEBDATASET:
        # Made for this layout alone.
        assert b"webdataset/train/*.tar" in found.pop("README.md")
    wanted = rf"{files}|gallery\.html"
    expected = {f.path: f.sha256 for f in published.release.files if re.fullmatch(wanted, f.path)}
    assert {path: sha256(body) for path, body in found.items()} == expected
    assert pulled == PullResult(len(tree(tmp_path)), 0, size)


def test_one_split_is_pulled_alone(published: Published, tmp_path: Path) -> None:
    pull(published.store, published.release, tmp_path, Layout.WEBDATASET, "test")
    shards = set(tree(tmp_path)) - {"README.md"}
    assert {path.split("/")[1] for path in shards} == {"test"}
    with pytest.raises(ReleaseError, match="no split 'val'; there are test, train"):
        pull(published.store, published.release, tmp_path, Layout.WEBDATASET, "val")


def test_a_pull_goes_on_and_mends_what_is_not_whole(published: Published, tmp_path: Path) -> None:
    store, release = published.store, published.release
    whole = pull(store, release, tmp_path, Layout.PARQUET)
    before = tree(tmp_path)
    assert pull(store, release, tmp_path, Layout.PARQUET) == replace(
        whole, written=0, kept=whole.written
    )
    cut, changed, gone = list(before)[:3]
    (tmp_path / cut).write_bytes(before[cut][:-1])
    (tmp_path / changed).write_bytes(before[changed][:-1] + b"!")
    (tmp_path / gone).rename(tmp_path / f"{gone}.part")
    assert pull(store, release, tmp_path, Layout.PARQUET).written == 3
    assert tree(tmp_path) == before


def test_files_of_another_release_are_not_mixed_with_those_of_this(
    store: ObjectStore, tmp_path: Path
) -> None:
    rows = rows_of(store, 9)
    first = build_release(store, recipe(), rows, NOTHING_REJECTED, parent=None)
    second = build_release(store, recipe(), rows.iloc[1:], NOTHING_REJECTED, parent=first)
    pull(store, first, tmp_path, Layout.WEBDATASET)
    before = tree(tmp_path)
    with pytest.raises(ReleaseError, match="which is no part of this release"):
        pull(store, second, tmp_path, Layout.WEBDATASET)
    assert tree(tmp_path) == before


def test_a_release_that_refers_to_its_parents_shards_is_pulled_whole(
    store: ObjectStore, tmp_path: Path
) -> None:
    rows = rows_of(store, 12)
    first = build_release(store, recipe(), rows.iloc[:9], NOTHING_REJECTED, parent=None)
    second = build_release(store, recipe(), rows, NOTHING_REJECTED, parent=first)
    pull(store, second, tmp_path, Layout.WEBDATASET)
    assert set(tree(tmp_path)) == {
        *("README.md", "gallery.html"),
        *(file.path for file in second.shards(Format.WEBDATASET, "")),
    }
    assert list(verify(store, second)) == []


def test_what_is_not_there_or_leads_out_of_the_folder_is_refused(
    published: Published, store: ObjectStore, tmp_path: Path
) -> None:
    only = build_release(store, recipe(), rows_of(store, 4), NOTHING_REJECTED, parent=None)
    told = r"as huggingface: that .* huggingface, parquet, and it was built as webdataset\."
    with pytest.raises(ReleaseError, match=told):
        pull(store, only, tmp_path, Layout.HUGGINGFACE)
    astray = ReleaseFile("../x.tar", "x", 1, "0" * 64, Format.WEBDATASET, "train", 0, 1, "d")
    with pytest.raises(ReleaseError, match="would lie outside"):
        pull(published.store, replace(only, files=(astray,)), tmp_path, Layout.WEBDATASET)
    assert tree(tmp_path) == {}


def test_damage_on_the_way_leaves_no_file(store: ObjectStore, tmp_path: Path) -> None:
    release = build_release(store, recipe(), rows_of(store, 4), NOTHING_REJECTED, parent=None)
    shard = release.shards(Format.WEBDATASET, ".tar")[0]
    store.put(shard.key, read(store, shard.key)[:-1] + b"!")
    remedy = "run nanobanana release verify pets --version v1 --mend"
    with pytest.raises(ReleaseError, match=f"is damaged.*{remedy}"):
        pull(store, release, tmp_path, Layout.WEBDATASET)
    assert shard.path not in tree(tmp_path)
    assert f"{shard.path}.part" not in tree(tmp_path)
    store.put(shard.key, b"")
    with pytest.raises(ReleaseError, match=f"{shard.key}.*{remedy}"):
        pull(store, release, tmp_path, Layout.WEBDATASET)
    store.delete(shard.key)
    with pytest.raises(ReleaseError, match=f"is missing: {remedy}"):
        pull(store, release, tmp_path, Layout.WEBDATASET)
    image = read_release_table(store, release, MANIFEST)["image_key"][0]
    store.delete(image)
    with pytest.raises(ReleaseError, match=f"{image} is missing: run nanobanana audit"):
        pull(store, release, tmp_path / "flat", Layout.PARTIPROMPTS)


@pytest.mark.parametrize("damage", ["damaged", "missing"])
def test_a_manifest_that_is_not_as_published_says_where_and_how_to_mend_it(
    store: ObjectStore, tmp_path: Path, damage: str
) -> None:
    release = build_release(store, recipe(), rows_of(store, 4), NOTHING_REJECTED, parent=None)
    key = release.file(MANIFEST).key
    whole = read(store, key)
    if damage == "damaged":
        store.put(key, whole[:-1] + b"!")
    else:
        store.delete(key)
    remedy = f"{store.uri(key)} is {damage}.*restore it .*nanobanana release verify pets --version"
    with pytest.raises(ReleaseError, match=remedy):
        pull(store, release, tmp_path, Layout.PARTIPROMPTS)
    assert tree(tmp_path) == {}
    assert [fault.path for fault in verify(store, release)] == [MANIFEST]
    # The other layouts do without it, and a restored one is good again.
    pull(store, release, tmp_path / "tars", Layout.WEBDATASET)
    store.put(key, whole)
    assert list(verify(store, release)) == []
    pull(store, release, tmp_path / "flat", Layout.PARTIPROMPTS)


def test_verify_names_what_is_missing_shorter_or_damaged(store: ObjectStore) -> None:
    wanted = recipe("webdataset", "parquet")
    release = build_release(store, wanted, rows_of(store, 9), NOTHING_REJECTED, parent=None)
    assert list(verify(store, release)) == []
    damaged, cut, gone = release.files[0], release.files[1], release.file("manifest.parquet")
    store.put(damaged.key, b"!" + read(store, damaged.key)[1:])
    store.put(cut.key, read(store, cut.key)[:-1])
    store.delete(gone.key)
    faults = {fault.path: fault.what for fault in verify(store, release)}
    assert faults == {
        damaged.path: "damaged: its SHA-256 differs",
        cut.path: f"{cut.size - 1:,} bytes instead of {cut.size:,}",
        gone.path: "missing",
    }


def test_geneval_gets_its_folders(store: ObjectStore, tmp_path: Path) -> None:
    kinds = ["png", "jpg", "webp", "png"]
    asked = [{"class": "cat", "count": 1}]
    rows = table([row(store, n, kind=kinds[n % 4]) for n in range(8)]).assign(
        include=json.dumps(asked), tag="single_object"
    )
    release = build_release(store, recipe(), rows, NOTHING_REJECTED, parent=None)
    pull(store, release, tmp_path, Layout.GENEVAL)
    found = tree(tmp_path)
    assert sorted(found) == sorted(
        f"{n:05d}/{leaf}"
        for n in range(4)
        for leaf in ("metadata.jsonl", "samples/0000.png", "samples/0001.png")
    )
    for place, each in enumerate(rows.to_dict("records")):
        image = found[f"{place // 2:05d}/samples/{place % 2:04d}.png"]
        original = read(store, each["image_key"])
        if each["format"] == "png":
            assert image == original
        with Image.open(io.BytesIO(image)) as drawn, Image.open(io.BytesIO(original)) as first:
            assert drawn.format == "PNG"
            assert ImageChops.difference(drawn, first).getbbox() is None
        # As its scorer reads it.
        said = json.loads(found[f"{place // 2:05d}/metadata.jsonl"])
        assert (said["prompt"], said["include"], said["tag"]) == (
            each["prompt"],
            asked,
            "single_object",
        )
    again = pull(store, release, tmp_path, Layout.GENEVAL)
    assert again.written == 0


def test_partiprompts_gets_flat_pictures_and_their_prompts(
    published: Published, tmp_path: Path
) -> None:
    pull(published.store, published.release, tmp_path, Layout.PARTIPROMPTS, "train")
    found = tree(tmp_path)
    rows = published.rows[published.rows["split"] == "train"]
    said = pd.read_csv(tmp_path / "prompts.tsv", sep="\t")
    assert list(said.columns) == [
        *("Prompt", "Category", "Challenge", "Note"),
        *("file_name", "prompt_id", "seed", "sample"),
    ]
    assert said[["Challenge", "Note"]].isna().all(axis=None)
    assert said["Prompt"].tolist() == rows["prompt"].tolist()
    assert said["Category"].isna().tolist() == rows["Category"].isna().tolist()
    assert set(found) == {"prompts.tsv", *said["file_name"]}
    assert [sha256(found[name]) for name in said["file_name"]] == rows["image_sha256"].tolist()
    assert said["file_name"].tolist() == [f"{n:05d}.png" for n in range(30)]


def test_columns_of_partiprompts_are_known_in_any_case(store: ObjectStore, tmp_path: Path) -> None:
    rows = rows_of(store, 2).assign(challenge="Basic", legs="4", NOTE="none")
    release = build_release(store, recipe(), rows, NOTHING_REJECTED, parent=None)
    pull(store, release, tmp_path, Layout.PARTIPROMPTS)
    said = pd.read_csv(tmp_path / "prompts.tsv", sep="\t", keep_default_na=False)
    assert list(said.columns) == [
        *("Prompt", "Category", "Challenge", "Note"),
        *("file_name", "legs", "prompt_id", "seed", "sample"),
    ]
    assert said[["Category", "Challenge", "Note", "legs"]].astype(str).to_numpy().tolist() == [
        ["", "Basic", "none", "4"],
        ["Animals", "Basic", "none", "4"],
    ]
