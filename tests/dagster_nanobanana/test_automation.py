"""What costs nothing makes itself when its inputs change, and only then."""

from collections.abc import Callable
from pathlib import Path

import dagster as dg
import pytest

from dagster_nanobanana.assets.datasets import dataset_assets, recipes_here
from dagster_nanobanana.assets.generated_images import generated_images
from dagster_nanobanana.assets.image_features import image_features
from dagster_nanobanana.assets.prompt_set import prompt_set
from dagster_nanobanana.partitions import prompt_sets, seeds
from dagster_nanobanana.resources import resources
from tests.dagster_nanobanana.test_datasets import RECIPE

IMAGES = dg.AssetKey("generated_images")
FEATURES = dg.AssetKey("image_features")
DEMO = dg.AssetKey(["datasets", "demo"])

Tick = Callable[[], dict[str, set[str | None]]]


@pytest.fixture
def instance() -> dg.DagsterInstance:
    """An instance with two partitions."""
    made = dg.DagsterInstance.ephemeral()
    made.add_dynamic_partitions(str(prompt_sets.name), ["demo"])
    made.add_dynamic_partitions(str(seeds.name), ["1", "2"])
    return made


@pytest.fixture
def tick(instance: dg.DagsterInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tick:
    """Evaluates all conditions; gives asset → partitions that are asked for."""
    (tmp_path / "recipes").mkdir()
    listed = RECIPE.replace("seeds: [1]", "seeds: [1, 2]")
    (tmp_path / "recipes" / "demo.yaml").write_text(listed)
    monkeypatch.chdir(tmp_path)
    defs = dg.Definitions(
        assets=[prompt_set, generated_images, image_features, *dataset_assets(recipes_here())],
        resources=resources(),
    )
    cursor = None

    def evaluate() -> dict[str, set[str | None]]:
        nonlocal cursor
        result = dg.evaluate_automation_conditions(
            defs, instance, dg.AssetSelection.all(), cursor=cursor
        )
        cursor = result.cursor
        asked = {key: result.get_requested_partitions(key) for key in (FEATURES, DEMO)}
        return {key.to_user_string(): set(keys) for key, keys in asked.items() if keys}

    assert evaluate() == {}
    return evaluate


def made(instance: dg.DagsterInstance, key: dg.AssetKey, partition: str, version: str) -> None:
    """Say that a partition was made, with this content."""
    instance.report_runless_asset_event(
        dg.AssetMaterialization(key, partition=partition, tags={"dagster/data_version": version})
    )


def test_features_follow_the_pictures_of_their_partition(
    instance: dg.DagsterInstance, tick: Tick
) -> None:
    made(instance, IMAGES, "demo|1", "first")
    assert tick() == {"image_features": {"demo|1"}}
    assert tick() == {}
    made(instance, FEATURES, "demo|1", "measured")
    assert tick() == {}
    # A launch that brought nothing new.
    made(instance, IMAGES, "demo|1", "first")
    assert tick() == {}
    made(instance, IMAGES, "demo|1", "second")
    assert tick() == {"image_features": {"demo|1"}}


def test_what_was_only_seen_with_gaps_asks_for_nothing(
    instance: dg.DagsterInstance, tick: Tick
) -> None:
    instance.report_runless_asset_event(dg.AssetObservation(IMAGES, partition="demo|1"))
    assert tick() == {}


def test_a_release_waits_until_all_its_partitions_are_measured(
    instance: dg.DagsterInstance, tick: Tick
) -> None:
    for seed in ("1", "2"):
        made(instance, IMAGES, f"demo|{seed}", "pictures")
    assert tick() == {"image_features": {"demo|1", "demo|2"}}
    made(instance, FEATURES, "demo|1", "measured")
    assert tick() == {}
    made(instance, FEATURES, "demo|2", "measured")
    assert tick() == {DEMO.to_user_string(): {None}}
    assert tick() == {}


def test_nothing_that_costs_money_makes_itself() -> None:
    for asset in (prompt_set, generated_images):
        assert not any(spec.automation_condition for spec in asset.specs)
