"""The job that tops a dataset up, on an ephemeral instance, a real bucket and a real emulator."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from dagster_nanobanana.assets.image_features import image_features
from dagster_nanobanana.jobs.top_up_dataset import top_up_dataset
from dagster_nanobanana.partitions import prompt_sets, seeds
from nanobanana_pipeline.datasets.topup_sets import origin_of
from tests.dagster_nanobanana.conftest import Project
from tests.launching import bought, tell

RECIPE = """
name: cats
description: Three animals, twice.
licence: CC0-1.0
prompt_sets: [demo]
seeds: [1]
filters: {seed: {not_in: [2]}}
per_prompt: {images: 2, candidates: 4}
"""
OP = "buy_further_candidates"


@pytest.fixture
def here(
    project: Callable[..., Project], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Project:
    """A working directory with one recipe, and its prompts under seed 1."""
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "cats.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    made = project()
    made.make_prompt_set()
    assert made.generate().success
    assert made.run(image_features, "demo|1", {}).success
    return made


def topped_up(project: Project, **config: Any) -> dg.ExecuteInProcessResult:
    return top_up_dataset.execute_in_process(
        instance=project.instance,
        resources=project.resources,
        run_config={"ops": {OP: {"config": {"recipe": "cats", "max_images": 100, **config}}}},
        raise_on_error=False,
    )


def metadata(result: dg.ExecuteInProcessResult) -> dict[str, Any]:
    (event,) = result.filter_events(lambda event: event.is_successful_output)
    said = event.step_output_data.metadata
    return {
        name: [dict(row.data) for row in value.records]
        if isinstance(value, dg.TableMetadataValue)
        else value.value
        for name, value in said.items()
    }


def shown(result: dg.ExecuteInProcessResult, kind: str) -> list[tuple[str, str]]:
    """Assets and partitions of events."""
    return [
        (event.asset_key.to_user_string(), str(event.partition))
        for event in result.filter_events(lambda event: event.event_type_value == kind)
        if event.asset_key is not None
    ]


def test_what_is_missing_is_bought_and_shown_on_its_assets(here: Project) -> None:
    result = topped_up(here)
    assert result.success
    assert bought(here.emulator) == 9
    made = shown(result, "ASSET_MATERIALIZATION")
    # A materialized prompt set would be bought under all seeds where automation is told to.
    assert "prompt_set" not in {asset for asset, _ in made}
    seen = shown(result, "ASSET_OBSERVATION")
    (derived,) = {name for asset, name in seen if asset == "prompt_set"}
    assert origin_of("cats", derived) == "demo"
    for asset in ("generated_images", "image_features"):
        assert [key for name, key in made if name == asset] == [f"{derived}|2", f"{derived}|3"]
    assert derived in here.instance.get_dynamic_partitions(str(prompt_sets.name))
    assert {"2", "3"} <= set(here.instance.get_dynamic_partitions(str(seeds.name)))
    told = metadata(result)
    assert (told["prompts complete"], told["prompts short"], told["images bought"]) == (3, 0, 6)
    assert told["reasons"] == [{"reason": "seed is 2, which not_in excludes", "pictures": 3}]
    assert len(told["rejected"]) == 3
    again = topped_up(here)
    assert again.success
    assert shown(again, "ASSET_MATERIALIZATION") == []
    assert bought(here.emulator) == 9


def test_what_is_not_measured_yet_is_measured_first(here: Project) -> None:
    tell(here.emulator, "moods", no_credit=1.0)
    here.store.delete("features/demo/seed=1/current.json")
    result = topped_up(here)
    assert not result.success
    assert ("image_features", "demo|1") in shown(result, "ASSET_MATERIALIZATION")
    # What came of the partition that it was refused for is shown, though the step has failed.
    assert "generated_images" in {asset for asset, _ in shown(result, "ASSET_OBSERVATION")}
    assert bought(here.emulator) == 3


def test_a_budget_ends_it_and_the_account_may(here: Project) -> None:
    capped = topped_up(here, max_images=4)
    assert capped.success
    assert metadata(capped)["pictures missing"] == 2
    assert bought(here.emulator) == 7
    tell(here.emulator, "moods", no_credit=1.0)
    refused = topped_up(here)
    assert not refused.success
    (failure,) = refused.filter_events(lambda event: event.is_step_failure)
    assert "stopped early" in str(failure.event_specific_data)
    assert bought(here.emulator) == 7


def test_what_it_cannot_do_is_said(here: Project) -> None:
    for config, text in (
        ({"recipe": "cat"}, "did you mean cats"),
        ({"max_cost": "much"}, "no amount of money"),
        ({"max_cost": "0"}, "above 0"),
        ({"max_cost": "1"}, "price is unknown"),
    ):
        result = topped_up(here, **config)
        assert not result.success
        (failure,) = result.filter_events(lambda event: event.is_step_failure)
        assert text in str(failure.event_specific_data)
    assert bought(here.emulator) == 3
