import hashlib
import io
import json
import tarfile
from collections import Counter
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from nanobanana_pipeline.datasets.formats.webdataset import TarShard
from nanobanana_pipeline.datasets.publish import build_release
from nanobanana_pipeline.datasets.release import MANIFEST, Format, read_release_table
from nanobanana_pipeline.storage import ObjectStore
from tests.datasets.conftest import Published
from tests.datasets.release_readers import TARS
from tests.datasets.release_rows import NOTHING_REJECTED, read, recipe, row, table


def test_every_sample_of_a_shard_has_the_same_files_in_the_same_order(
    published: Published,
) -> None:
    for path in published.shards(TARS):
        with tarfile.open(path, "r:") as shard:
            names = shard.getnames()
        keys = [name.split(".")[0] for name in names[::3]]
        assert keys == sorted(keys)
        assert all(len(key) == 9 and key.isdecimal() for key in keys)
        assert names == [f"{key}.{end}" for key in keys for end in ("png", "json", "txt")]


def test_a_tar_says_nothing_of_when_or_by_whom_it_was_made(published: Published) -> None:
    for path in published.shards(TARS):
        with tarfile.open(path, "r:") as shard:
            for member in shard:
                owner = (member.uid, member.gid, member.uname, member.gname)
                assert (member.mtime, owner, member.mode) == (0, (0, 0, "", ""), 0o444)
                assert (member.type, member.pax_headers) == (tarfile.REGTYPE, {})
                shard.fileobj.seek(member.offset + 257)
                assert shard.fileobj.read(8) == b"ustar\x0000"


def test_the_index_finds_each_picture_in_its_tar(published: Published) -> None:
    release, store = published.release, published.store
    found = []
    for shard in release.shards(Format.WEBDATASET, ".tar"):
        index = release.file(f"index/{shard.split}/{Path(shard.path).stem}.parquet")
        rows = pq.read_table(io.BytesIO(read(store, index.key))).to_pylist()
        assert len(rows) == shard.rows
        for each in rows:
            image = store.get_range(shard.key, each["offset"], each["size"])
            assert image is not None
            assert hashlib.sha256(image).hexdigest() == each["sha256"]
            found.append((each["key"], each["row_id"], each["sha256"]))
    rows = published.rows[["key", "row_id", "image_sha256"]]
    assert sorted(found) == sorted(rows.itertuples(index=False, name=None))


def test_the_metadata_of_a_sample_are_its_row_without_what_is_unknown(
    published: Published,
) -> None:
    rows = published.rows.set_index("key")
    seen = Counter[str]()
    for path in published.shards(TARS):
        with tarfile.open(path, "r:") as shard:
            for name in shard.getnames()[1::3]:
                said = json.load(shard.extractfile(name))  # type: ignore[arg-type]
                seen.update(said.keys())
                for column in rows.columns.drop(["shard", "row_sha256"]):
                    stored = rows.loc[said["key"], column]
                    assert said[column] == stored if column in said else pd.isna(stored)
    assert seen["prompt"] == 40
    assert seen["seed_reported"] == 30
    assert "ref_sha256" not in seen


def test_pictures_of_different_formats_lie_in_different_shards(store: ObjectStore) -> None:
    rows = table([row(store, n, kind=["png", "jpg", "webp"][n % 3]) for n in range(9)])
    release = build_release(store, recipe(), rows, NOTHING_REJECTED, parent=None)
    kinds = read_release_table(store, release, MANIFEST).set_index("key")["format"]
    for shard in release.shards(Format.WEBDATASET, ".tar"):
        with tarfile.open(fileobj=io.BytesIO(read(store, shard.key)), mode="r:") as tar:
            names = tar.getnames()
        first = [name.split(".") for name in names[::3]]
        assert len({kind for _, kind in first}) == 1
        assert all(kinds[key] == kind for key, kind in first)


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 10_000])
def test_pictures_of_any_size_are_padded_as_tar_wants_it(size: int) -> None:
    sink = io.BytesIO()
    shard = TarShard(sink)
    image = bytes(range(256)) * 40
    said = {"key": "000000007", "row_id": "r", "format": "png", "prompt": "ä" * size}
    shard.add(said, image[:size])
    shard.finish()
    assert len(sink.getvalue()) % tarfile.RECORDSIZE == 0
    with tarfile.open(fileobj=io.BytesIO(sink.getvalue()), mode="r:") as tar:
        bodies = [tar.extractfile(name).read() for name in tar.getnames()]  # type: ignore[union-attr]
    assert bodies == [
        image[:size],
        json.dumps(said, ensure_ascii=False).encode(),
        b"\xc3\xa4" * size,
    ]
