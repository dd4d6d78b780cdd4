"""The page in which a release is looked at; `tests/browser/test_gallery.py` opens it."""

import base64
import hashlib
import json
import re
from typing import Any

import pandas as pd
import pyarrow as pa

from nanobanana_pipeline.datasets.formats.gallery import GALLERY, gallery, shown_places
from nanobanana_pipeline.datasets.publish import build_release, samples_path
from nanobanana_pipeline.datasets.release import Release
from nanobanana_pipeline.datasets.row_images import read_thumbnails
from nanobanana_pipeline.features.table import refresh_features
from nanobanana_pipeline.storage import ObjectStore
from tests.conftest import Emulators, account_for
from tests.datasets.conftest import Published
from tests.datasets.release_rows import NOTHING_REJECTED, read, recipe, row, rows_of, table
from tests.launching import keep_prompts, launch

HOSTILE = "</script><script>alert(1)</script><!-- “x” \u2028 & ]]>"


def block(page: bytes, name: str) -> Any:
    """What a block of JSON of the page says."""
    found = re.search(rf'id="{name}">(.*?)</script>', page.decode(), re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def as_told(page: bytes) -> list[dict[str, Any]]:
    columns = block(page, "about")["columns"]
    return [dict(zip(columns, values, strict=True)) for values in block(page, "rows")]


def test_every_release_has_one_with_all_rows_and_a_thumbnail_each(published: Published) -> None:
    file = published.release.file(GALLERY)
    page = read(published.store, file.key)
    assert hashlib.sha256(page).hexdigest() == file.sha256
    told = as_told(page)
    assert [row["row_id"] for row in told] == published.rows["row_id"].tolist()
    assert [row["prompt"] for row in told] == published.rows["prompt"].tolist()
    assert told[0]["seed_reported"] is None
    assert told[12]["seed_reported"] == 2**40 + 12
    thumbnails = block(page, "thumbnails")
    assert set(thumbnails) == set(published.rows["image_sha256"])
    assert all(base64.b64decode(each)[8:12] == b"WEBP" for each in thumbnails.values())
    for split in published.release.splits:
        sheet = published.release.file(samples_path(split))
        assert read(published.store, sheet.key)[8:12] == b"WEBP"


def test_what_comes_from_outside_cannot_break_out(store: ObjectStore) -> None:
    rows = table([{**row(store, 0), "prompt": HOSTILE, "seed_reported": 2**63 - 1}])
    wanted = recipe(description=f"Pets {HOSTILE}", licence=HOSTILE)
    release = build_release(store, wanted, rows, NOTHING_REJECTED, parent=None)
    page = read(store, release.file(GALLERY).key)
    assert b"<script>alert" not in page
    assert page.count(b"</script>") == 4
    [told] = as_told(page)
    assert told["prompt"] == HOSTILE
    # JavaScript's numbers would lose its last digits.
    assert told["seed_reported"] == str(2**63 - 1)
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page.decode())
    assert policy is not None
    assert policy[1].startswith("default-src 'none'; img-src data:;")
    assert "unsafe" not in policy[1]
    # Nothing in it leads anywhere else.
    assert not re.search(rb'(src|href)\s*=\s*"(?!data:)', page)


def test_the_same_rows_thumbnails_and_sources_give_the_same_bytes(store: ObjectStore) -> None:
    rows = rows_of(store, 9)
    first = build_release(store, recipe(), rows, NOTHING_REJECTED, parent=None)
    shown = pa.Table.from_pandas(rows)
    thumbnails = read_thumbnails(store, shown)
    backwards = dict(reversed(thumbnails.items()))
    pages = [gallery(first, shown, each, [], store.uri("")) for each in (thumbnails, backwards)]
    assert pages[0] == pages[1]


def test_what_goes_on_after_a_kill_names_the_manifests_of_its_beginning(
    store: ObjectStore, emulators: Emulators
) -> None:
    keep_prompts(store, "set", ["a fox"])
    account = account_for(emulators().base_url, store)
    earlier = launch(store, account).current
    later = launch(store, account).current
    assert later.manifest != earlier.manifest

    def build() -> Release:
        return build_release(
            store, recipe(), rows_of(store, 4), NOTHING_REJECTED, parent=None, manifests=[told]
        )

    told = earlier
    first = build()
    page = read(store, first.file(GALLERY).key)
    [source] = block(page, "about")["sources"]
    assert (source["manifest"], source["fingerprint"]) == (earlier.manifest, earlier.fingerprint)
    assert source["parameters"]["width"] == 1024
    # As a kill before the release was written down leaves it.
    store.delete("datasets/pets/latest.json")
    store.delete("datasets/pets/v1/release.json")
    told = later
    assert build() == first
    assert read(store, first.file(GALLERY).key) == page


def test_a_large_release_shows_some_of_every_split_always_the_same_ones() -> None:
    splits = ["train"] * 900 + ["test"] * 90 + ["val"] * 10
    names = [hashlib.sha256(str(n).encode()).hexdigest() for n in range(1000)]
    rows = pa.table({"row_id": names, "split": splits})
    places = shown_places(rows, 100)
    counted = pd.Series([splits[place] for place in places]).value_counts().to_dict()
    assert counted == {"train": 45, "test": 45, "val": 10}
    assert places == sorted(places)
    backwards = rows.take(list(range(999, -1, -1)))
    assert {names[place] for place in places} == {
        backwards["row_id"][place].as_py() for place in shown_places(backwards, 100)
    }
    assert shown_places(rows, 1000) == list(range(1000))


def test_the_page_says_so_where_it_does_not_show_all(store: ObjectStore) -> None:
    rows = rows_of(store, 8)
    release = build_release(store, recipe(), rows, NOTHING_REJECTED, parent=None)
    shown = pa.Table.from_pandas(rows.head(3))
    page = gallery(release, shown, {}, [], store.uri("")).decode()
    assert "shows 3 of 8 pictures" in page
    assert "This page shows" not in read(store, release.file(GALLERY).key).decode()


def test_thumbnails_that_were_measured_are_taken_from_there(
    store: ObjectStore, emulators: Emulators
) -> None:
    keep_prompts(store, "set", ["a fox", "a whale"])
    launched = launch(store, account_for(emulators().base_url, store))
    measured = refresh_features(store, "set", 1).rows
    rows = launched.rows.assign(row_id=["a", "b"], image_key="images/none")
    found = read_thumbnails(store, pa.Table.from_pandas(rows))
    assert found == dict(zip(measured["image_sha256"], measured["thumbnail"], strict=True))
