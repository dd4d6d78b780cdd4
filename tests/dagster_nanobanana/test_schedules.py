"""Schedules over a real bucket and a real emulator: in order, within the budget, once."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from dagster_nanobanana.assets.generated_images import generated_images
from dagster_nanobanana.assets.image_features import image_features
from dagster_nanobanana.automation.condition_sensors import condition_sensors
from dagster_nanobanana.automation.free_schedules import releases
from dagster_nanobanana.definitions import defs
from nanobanana_pipeline.generation.manifest.manifest import read_current
from tests.conftest import account_for
from tests.dagster_nanobanana.conftest import Project
from tests.dagster_nanobanana.test_datasets import RECIPE
from tests.dagster_nanobanana.test_graph import bought
from tests.dagster_nanobanana.ticks import NIGHT, Automation
from tests.launching import keep_prompts, launch, prompts

Projects = Callable[..., Project]
CAP = "NANOBANANA_MAX_IMAGES_PER_DAY"


@pytest.fixture
def recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The recipes folder of an empty working directory."""
    folder = tmp_path / "here" / "recipes"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder.parent)
    return folder


def asked(requests: list[dg.RunRequest]) -> dict[str | None, int]:
    """Partition to the most that its run may buy, in order of priority."""
    ordered = sorted(requests, key=lambda request: -int(request.tags["dagster/priority"]))
    assert ordered == requests
    return {request.partition_key: config_of(request)["max_images"] for request in requests}


def config_of(request: dg.RunRequest) -> dict[str, Any]:
    found: dict[str, Any] = request.run_config["ops"]["generated_images"]["config"]
    return found


def partly(project: Project, name: str, rows: int, settled: int, seed: int = 1) -> None:
    """A partition that was stopped by its run's cap."""
    keep_prompts(project.store, name, prompts(rows, name))
    account = account_for(project.emulator.base_url, project.store)
    made = launch(project.store, account, name, seed=seed, max_images=settled)
    assert made.states == {"over_budget": rows - settled, "settled": settled}


@pytest.mark.usefixtures("recipes")
def test_without_a_cap_on_the_day_nothing_is_launched(project: Projects) -> None:
    here = project()
    partly(here, "left", rows=3, settled=1)
    nightly = Automation(here, "nightly")
    assert nightly.tick() == []
    assert "there is no cap on a day" in nightly.skipped


def test_the_night_launches_what_is_missing_in_order_within_the_days_room(
    project: Projects, recipes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = project()
    partly(here, "most", rows=6, settled=1)
    partly(here, "least", rows=3, settled=2)
    partly(here, "named", rows=9, settled=5)
    keep_prompts(here.store, "whole", prompts(1, "whole"))
    launch(here.store, account_for(here.emulator.base_url, here.store), "whole")
    (recipes / "demo.yaml").write_text(RECIPE.replace("[demo]", "[named]"))
    spent = 9
    assert bought(here)["total"] == spent
    nightly = Automation(here, "nightly")
    monkeypatch.setenv(CAP, str(spent))
    assert nightly.tick() == []
    assert "the day's cap of 9 images is reached: 9 images" in nightly.skipped
    # What a recipe lists comes first, then what lacks least; the last gets what is left.
    monkeypatch.setenv(CAP, str(spent + 7))
    requests = nightly.tick()
    assert asked(requests) == {"named|1": 4, "least|1": 1, "most|1": 2}
    assert nightly.tick() == []
    for request in requests:
        here.run(generated_images, str(request.partition_key), request.run_config["ops"])
    assert (bought(here)["total"], bought(here)["bought_twice"]) == (spent + 7, 0)
    states = {
        name: read_current(here.store, name, 1)[0].cells  # type: ignore[union-attr]
        for name in ("named", "least", "most")
    }
    assert states == {
        "named": {"settled": 9},
        "least": {"settled": 3},
        "most": {"over_budget": 3, "settled": 3},
    }
    assert Automation(here, "nightly").tick() == []
    monkeypatch.setenv(CAP, "1000")
    assert asked(nightly.tick(NIGHT + timedelta(days=1))) == {"most|1": 3}


def test_a_night_keeps_a_pilots_limit_and_starts_what_a_recipe_lists(
    project: Projects, recipes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = project()
    account = account_for(here.emulator.base_url, here.store)
    keep_prompts(here.store, "pilot", prompts(5, "pilot"))
    launch(here.store, account, "pilot", limit=2)
    nightly = Automation(here, "nightly")
    monkeypatch.setenv(CAP, "100")
    assert nightly.tick() == []
    assert "nothing is missing" in nightly.skipped
    # A changed table is missing rows again, and no more of them than the pilot's.
    keep_prompts(here.store, "pilot", prompts(5, "other"))
    keep_prompts(here.store, "new", prompts(4, "new"))
    text = RECIPE.replace("[demo]", "[new, no_such_set]").replace("seeds: [1]", "seeds: [7]")
    (recipes / "demo.yaml").write_text(text)
    requests = nightly.tick()
    assert asked(requests) == {"new|7": 4, "pilot|1": 2}
    assert [config_of(request).get("limit") for request in requests] == [None, 2]


def test_a_partition_whose_own_cap_is_reached_is_left_out(
    project: Projects, recipes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = project()
    assert recipes.is_dir()
    partly(here, "full", rows=4, settled=2)
    partly(here, "some", rows=6, settled=1)
    monkeypatch.setenv(CAP, "100")
    monkeypatch.setenv("NANOBANANA_MAX_IMAGES_PER_PARTITION", "2")
    assert asked(Automation(here, "nightly").tick()) == {"some|1": 1}


def test_doubts_are_held_and_no_matter_for_the_night(
    project: Projects, recipes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = project(moods={"lost_answer_after": 1.0})
    assert recipes.is_dir()
    here.make_prompt_set()
    assert not here.generate().success
    monkeypatch.setenv(CAP, "100")
    assert Automation(here, "nightly").tick() == []


def test_a_release_is_asked_for_once_its_inputs_are_there_and_when_they_change(
    project: Projects, recipes: Path
) -> None:
    (recipes / "demo.yaml").write_text(RECIPE)
    here = project()
    daily = Automation(here, "daily_releases")
    assert daily.tick() == []
    assert "no recipe has all that it asks for" in daily.skipped
    here.make_prompt_set()
    here.generate()
    assert daily.tick() == []
    assert here.run(image_features, "demo|1", {}).success
    [request] = daily.tick()
    assert request.asset_selection == [dg.AssetKey(["datasets", "demo"])]
    # A launch that brings nothing new changes nothing.
    here.generate(config={})
    assert daily.tick() == []
    (recipes / "demo.yaml").write_text(RECIPE + "tags: [animals]\n")
    assert len(daily.tick()) == 1
    here.make_prompt_set(csv="id,prompt\na,a fox\nb,a whale\nc,a kite\nd,a heron\n")
    assert not here.generate(config={"max_images": 0}).success
    assert daily.tick() == []
    here.generate(config={})
    here.run(image_features, "demo|1", {})
    assert len(daily.tick()) == 1


def test_without_recipes_there_is_nothing_to_release() -> None:
    assert releases([]) == []
    assert [sensor.name for sensor in condition_sensors([])] == ["features_on_change"]
    audit = defs.get_repository_def().get_schedule_def("weekly_audit")
    assert audit.job_name == "audit_bucket"
