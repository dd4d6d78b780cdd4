from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
import pytest
import yaml
from huggingface_hub import DatasetCard

from nanobanana_pipeline.datasets.formats.huggingface import card, preview_places
from nanobanana_pipeline.datasets.layouts import Layout
from nanobanana_pipeline.datasets.publish import build_release
from nanobanana_pipeline.datasets.pull import pull
from nanobanana_pipeline.datasets.release import find_release
from nanobanana_pipeline.images.contact_sheet import caption, contact_sheet
from nanobanana_pipeline.storage import ObjectStore
from tests.datasets.conftest import Published
from tests.datasets.release_readers import PARQUET
from tests.datasets.release_rows import NOTHING_REJECTED, read, recipe, row, rows_of, table


def front(published: Published) -> dict[str, Any]:
    said: dict[str, Any] = DatasetCard.load(
        published.folder / "huggingface/README.md"
    ).data.to_dict()
    return said


def test_the_card_tells_configs_splits_sizes_licence_and_tags(published: Published) -> None:
    said = front(published)
    assert (said["license"], said["size_categories"]) == ("apache-2.0", ["n<1K"])
    assert said["tags"] == ["synthetic", "image-generation", "trainedAlgorithmicMedia", "pets"]
    assert said["configs"] == [
        {
            "config_name": "default",
            "data_files": [
                {"split": "train", "path": "parquet/train/*.parquet"},
                {"split": "test", "path": "parquet/test/*.parquet"},
            ],
        }
    ]
    sizes = {
        split: sum(f.size for f in published.release.files if f.path.startswith(f"parquet/{split}"))
        for split in ("test", "train")
    }
    assert said["dataset_info"]["splits"] == [
        {"name": "train", "num_bytes": sizes["train"], "num_examples": 30},
        {"name": "test", "num_bytes": sizes["test"], "num_examples": 10},
    ]
    assert said["dataset_info"]["download_size"] == sum(sizes.values())


def test_the_cards_columns_are_those_of_the_shards(published: Published) -> None:
    listed = front(published)["dataset_info"]["features"]
    schema = pq.read_schema(published.shards(PARQUET)[0])
    assert datasets.Features._from_yaml_list(listed) == datasets.Features.from_arrow_schema(schema)


def test_the_card_says_how_it_was_made_and_shows_pictures(published: Published) -> None:
    folder = published.folder / "huggingface"
    text = (folder / "README.md").read_text()
    release = published.release
    for needed in (release.fingerprint, release.created, "trainedAlgorithmicMedia", "Pets: drawn"):
        assert needed in text
    said = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    assert said == dict(release.recipe)
    assert "(preview.png)" in text
    shown = published.rows.iloc[preview_places(len(published.rows))]
    pictures = [read(published.store, key) for key in shown["image_key"]]
    captions = list(map(caption, shown["prompt"], shown["prompt_id"], shown["seed"]))
    assert captions[0].startswith("seed ")
    sheet = contact_sheet(list(zip(pictures, captions, strict=True)), columns=4)
    assert (folder / "preview.png").read_bytes() == sheet


def test_the_card_points_at_the_one_copy_of_the_shards(published: Published) -> None:
    stored = {file.path for file in published.release.files if file.format == "huggingface"}
    assert stored == {"README.md", "preview.png"}


@pytest.mark.parametrize("streaming", [True, False])
def test_one_split_can_be_pulled_alone_and_its_card_fits(
    published: Published, tmp_path: Path, *, streaming: bool
) -> None:
    folder = tmp_path / "test-only"
    pull(published.store, published.release, folder, Layout.HUGGINGFACE, "test")
    assert not (folder / "croissant.json").exists()
    found = datasets.load_dataset(str(folder), streaming=streaming, cache_dir=str(tmp_path / "hf"))
    assert list(found) == ["test"]
    assert len(list(found["test"])) == 10


def test_splits_are_listed_in_the_recipes_order(store: ObjectStore, tmp_path: Path) -> None:
    rows = rows_of(store, 6).assign(split=["a", "a", "train", "train", "m", "m"])
    ratios = {"train": 0.6, "m": 0.3, "a": 0.1}
    wanted = recipe("huggingface", "webdataset", splits={"ratios": ratios})
    release = build_release(store, wanted, rows, NOTHING_REJECTED, parent=None)
    release = find_release(store, release.name)
    for layout in (Layout.HUGGINGFACE, Layout.WEBDATASET):
        pull(store, release, tmp_path / layout, layout)
        found = datasets.load_dataset(str(tmp_path / layout), cache_dir=str(tmp_path / "hf"))
        assert list(found) == ["train", "m", "a"]


def test_a_licence_of_ones_own_is_named(store: ObjectStore) -> None:
    rows = table([row(store, 0)])
    mine = recipe("huggingface", licence="Ours alone: ask")
    release = build_release(store, mine, rows, NOTHING_REJECTED, parent=None)
    head = yaml.safe_load(read(store, release.file("README.md").key).decode().split("---")[1])
    assert (head["license"], head["license_name"]) == ("other", "Ours alone: ask")
    assert card(release).encode() == read(store, release.file("README.md").key)


def test_prompt_columns_of_every_kind_are_read_back(store: ObjectStore, tmp_path: Path) -> None:
    rows = table([row(store, n) for n in range(4)]).assign(
        legs=[4, 2, 0, 4],
        weight=[1.5, float("nan"), 2.5, 3.0],
        tame=[True, False, True, True],
        key=["a", "b", "c", "d"],
    )
    release = build_release(store, recipe("huggingface"), rows, NOTHING_REJECTED, parent=None)
    pull(store, release, tmp_path / "pets", Layout.HUGGINGFACE)
    found = datasets.load_dataset(str(tmp_path / "pets"), cache_dir=str(tmp_path / "hf"))["train"]
    kinds = {name: found.features[name].dtype for name in ("legs", "weight", "tame", "prompt_key")}
    assert kinds == {"legs": "int64", "weight": "float64", "tame": "bool", "prompt_key": "string"}
    assert found["weight"] == [1.5, None, 2.5, 3.0]


@pytest.mark.parametrize(
    ("count", "shown"), [(1, [0]), (3, [0, 1, 2]), (24, list(range(0, 24, 2)))]
)
def test_the_picture_shows_some_from_everywhere(count: int, shown: list[int]) -> None:
    assert preview_places(count) == shown
