import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from nanobanana_pipeline.datasets.release import Format
from tests.datasets.conftest import Published
from tests.datasets.release_readers import croissant_rows


@pytest.fixture
def said(published: Published) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        (published.folder / "huggingface/croissant.json").read_text()
    )
    return found


def test_it_is_croissant_1_1_with_what_the_recipe_says(
    said: dict[str, Any], published: Published
) -> None:
    assert said["conformsTo"] == "http://mlcommons.org/croissant/1.1"
    assert (said["name"], said["license"], said["version"]) == ("pets", "Apache-2.0", "1.0.0")
    assert said["url"] == published.store.uri("datasets/pets/v1/")
    assert said["keywords"] == ["synthetic", "trainedAlgorithmicMedia", "pets"]


def test_every_shard_is_named_with_its_hash(said: dict[str, Any], published: Published) -> None:
    folder = published.folder / "huggingface"
    objects = [each for each in said["distribution"] if each["@type"] == "cr:FileObject"]
    assert len(objects) == len(published.release.shards(Format.PARQUET))
    for each in objects:
        body = Path(folder, each["contentUrl"]).read_bytes()
        assert each["sha256"] == hashlib.sha256(body).hexdigest()
        assert each["contentSize"] == f"{len(body)} B"


def test_it_has_a_field_for_the_picture_and_each_column(
    said: dict[str, Any], published: Published
) -> None:
    fields = {field["name"]: field["dataType"] for field in said["recordSet"][0]["field"]}
    assert list(fields) == ["image", *published.release.columns]
    assert fields["image"] == "sc:ImageObject"
    assert (fields["seed"], fields["mean"], fields["blank"], fields["prompt"]) == (
        "sc:Integer",
        "sc:Float",
        "sc:Boolean",
        "sc:Text",
    )


def test_numbers_come_back_from_mlcroissant_as_numbers(published: Published) -> None:
    rows = {row["images/key"].decode(): row for row in croissant_rows(published)}
    expected = published.rows.set_index("key")
    for key, row in rows.items():
        assert row["images/seed"] == expected.loc[key, "seed"]
        assert row["images/mean"] == pytest.approx(expected.loc[key, "mean"])
