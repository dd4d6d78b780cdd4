"""Recipes as assets, from a table to a release, on an ephemeral instance."""

from collections.abc import Callable
from pathlib import Path

import dagster as dg
import pytest

from dagster_nanobanana.assets.datasets import dataset_assets, dataset_checks, recipes_here
from dagster_nanobanana.assets.image_features import image_features
from nanobanana_pipeline.datasets.release import MANIFEST, Format, read_latest, read_release_table
from nanobanana_pipeline.errors import RecipeError
from tests.dagster_nanobanana.conftest import Project

RECIPE = """
name: demo
description: Three animals.
licence: CC0-1.0
prompt_sets: [demo]
seeds: [1]
splits: {ratios: {train: 0.5, test: 0.5}}
"""


@pytest.fixture
def recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with one recipe."""
    folder = tmp_path / "recipes"
    folder.mkdir()
    (folder / "demo.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    return folder


def released(project: Project) -> dg.ExecuteInProcessResult:
    made = recipes_here()
    return dg.materialize(
        [*dataset_assets(made), *dataset_checks(made)],
        instance=project.instance,
        resources=project.resources,
        raise_on_error=False,
    )


@pytest.mark.usefixtures("recipes")
def test_a_recipe_becomes_a_release_once_its_pictures_are_measured(
    project: Callable[..., Project],
) -> None:
    here = project()
    here.make_prompt_set()
    assert here.generate().success
    too_early = released(here)
    assert not too_early.success
    assert here.run(image_features, "demo|1", {}).success
    made = released(here)
    assert made.success
    found = made.get_asset_check_evaluations()
    assert {check.check_name: check.passed for check in found} == {
        "no_leaks": True,
        "readable": True,
    }
    # A table of nothing says nothing.
    assert {name for check in found for name in check.metadata} == {"version", "gallery", "files"}
    release = read_latest(here.store, "demo")
    assert release is not None
    assert (release.version, release.rows) == ("v1", 3)
    rows = read_release_table(here.store, release, MANIFEST)
    assert set(rows["prompt"]) == {"a fox", "a whale", "a kite"}
    [told] = made.asset_materializations_for_node("datasets__demo")
    assert told.metadata["changes"].value == "none: the first version"
    table = told.metadata["files"]
    assert isinstance(table, dg.TableMetadataValue)
    files = [record.data for record in table.records]
    in_shards = {str(f["split"]): f["pictures"] for f in files if f["format"] == "webdataset"}
    assert in_shards == dict(release.splits)
    assert [f["pictures"] for f in files if f["format"] == "manifest"] == [None]
    again = released(here)
    assert again.success
    latest = read_latest(here.store, "demo")
    assert latest == release


@pytest.mark.usefixtures("recipes")
def test_a_file_that_was_tampered_with_fails_the_check(project: Callable[..., Project]) -> None:
    here = project()
    here.make_prompt_set()
    here.generate()
    here.run(image_features, "demo|1", {})
    assert released(here).success
    release = read_latest(here.store, "demo")
    assert release is not None
    here.store.put(release.shards(Format.WEBDATASET, ".tar")[0].key, b"not a tar")
    result = released(here)
    found = {check.check_name: check for check in result.get_asset_check_evaluations()}
    assert found["readable"].passed is False
    assert "faults" in found["readable"].metadata


@pytest.mark.usefixtures("recipes")
def test_checks_before_the_first_release_say_that_there_is_none(
    project: Callable[..., Project],
) -> None:
    here = project()
    [recipe] = recipes_here()
    look = dg.define_asset_job("look", dg.AssetSelection.checks(*dataset_checks([recipe])))
    definitions = dg.Definitions(
        assets=dataset_assets([recipe]),
        asset_checks=dataset_checks([recipe]),
        jobs=[look],
        resources=here.resources,
    )
    result = definitions.resolve_job_def("look").execute_in_process(instance=here.instance)
    found = result.get_asset_check_evaluations()
    assert {check.check_name: check.passed for check in found} == {
        "no_leaks": True,
        "readable": True,
    }
    assert all("no release yet" in str(check.description) for check in found)


def test_a_faulty_recipe_is_named(recipes: Path) -> None:
    (recipes / "bad.yaml").write_text("name: Bad Name\n")
    with pytest.raises(RecipeError, match=r"bad\.yaml:1"):
        recipes_here()
