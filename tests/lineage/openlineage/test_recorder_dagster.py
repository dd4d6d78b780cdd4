"""Lineage of Dagster's runs: those that end well, fail, and are terminated."""

import os
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import requests

from dagster_nanobanana.assets.image_features import image_features
from nanobanana_pipeline.generation import launch_steps
from nanobanana_pipeline.lineage.openlineage import facets
from nanobanana_pipeline.storage import ObjectStore
from tests.dagster_nanobanana.conftest import Project, project
from tests.lineage.openlineage.schemas import events_of, ours, states_of

__all__ = ["project"]

Projects = Callable[..., Project]


def test_the_steps_of_a_launch_tell_one_story(project: Projects, store: ObjectStore) -> None:
    here = project()
    here.make_prompt_set()
    result = here.generate()
    assert result.success
    found = events_of(store, result.run_id)
    assert states_of(found) == ["START", "RUNNING", "COMPLETE"]
    assert {event["job"]["name"] for event in found} == {"generated_images"}
    assert len({event["run"]["runId"] for event in found}) == 1
    for event in found:
        run = event["run"]["facets"]
        assert run["parent"]["run"]["runId"] == result.run_id
        assert uuid.UUID(event["run"]["runId"]) != uuid.UUID(result.run_id)
        assert run["processing_engine"]["name"] == "dagster"
        assert run["processing_engine"]["version"] == dg.__version__
        assert ours(event)["partition"] == "demo|1"
    assert ours(found[-1])["cells"] == {"settled": 3}
    [*_, complete] = events_of(store, job="prompt_set")
    assert complete["eventType"] == "COMPLETE"
    assert found[0]["inputs"][0]["name"] == complete["outputs"][0]["name"]


def test_features_say_which_manifest_they_were_measured_from(
    project: Projects, store: ObjectStore
) -> None:
    here = project()
    here.make_prompt_set()
    here.generate()
    assert here.run(image_features, "demo|1", {}).success
    start, complete = events_of(store, job="image_features")
    assert states_of([start, complete]) == ["START", "COMPLETE"]
    *_, bought = events_of(store, job="generated_images")
    [manifest], [table] = complete["inputs"], complete["outputs"]
    made = bought["outputs"][0]
    assert manifest["name"] == made["name"]
    assert manifest["facets"]["version"] == made["facets"]["version"]
    assert manifest["inputFacets"]["dataQualityAssertions"]["assertions"][0]["success"] is True
    assert manifest["inputFacets"]["dataQualityMetrics"]["rowCount"] == 3
    phash = table["facets"]["columnLineage"]["fields"]["phash"]["inputFields"]
    assert [(f["name"], f["field"]) for f in phash] == [(made["name"], "image_uri")]
    assert ours(complete)["images"] == {"inManifest": 3, "measured": 3, "blank": 0}


def test_a_partition_with_gaps_fails_once(project: Projects, store: ObjectStore) -> None:
    here = project()
    here.make_prompt_set()
    moods = f"{here.emulator.root_url}/admin/moods"
    requests.post(moods, json={"http_500_after": 1.0}, timeout=10)
    result = here.generate()
    assert not result.success
    found = events_of(store, result.run_id)
    assert states_of(found) == ["START", "RUNNING", "FAIL"]
    assert ours(found[-1])["cells"] == {"in_doubt": 3}
    assert "in doubt" in found[-1]["run"]["facets"]["errorMessage"]["message"]


def test_a_launch_that_must_not_start_fails_in_its_plan(
    project: Projects, store: ObjectStore
) -> None:
    here = project()
    here.make_prompt_set()
    result = here.generate(config={"width": 1000})
    assert not result.success
    found = events_of(store, result.run_id)
    assert states_of(found) == ["START", "FAIL"]
    assert "width" in found[-1]["run"]["facets"]["errorMessage"]["message"]


@pytest.mark.parametrize(
    ("raised", "state"),
    [(dg.DagsterExecutionInterruptedError(), "ABORT"), (ZeroDivisionError("bug"), "FAIL")],
)
def test_a_run_that_ends_in_the_midst_of_buying_says_so(
    project: Projects,
    store: ObjectStore,
    monkeypatch: pytest.MonkeyPatch,
    raised: BaseException,
    state: str,
) -> None:
    """Dagster raises the interruption in the op's thread when somebody terminates the run."""
    here = project()
    here.make_prompt_set()

    def stopped(*_given: Any, **_more: Any) -> None:
        raise raised

    monkeypatch.setattr(launch_steps, "settle_shard", stopped)
    assert not here.generate().success
    found = events_of(store, job="generated_images")
    assert states_of(found) == ["START", "RUNNING", state]
    assert found[-1]["run"]["facets"]["errorMessage"]["message"] == type(raised).__name__


def test_a_bug_in_lineage_ends_no_run(
    project: Projects, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_given: Any, **_more: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(facets, "run_event", broken)
    here = project()
    here.make_prompt_set()
    assert here.generate().success
    assert list(store.keys("lineage/")) == []


def test_loading_the_definitions_does_not_load_openlineage(tmp_path: Path) -> None:
    program = "import sys, dagster_nanobanana.definitions; sys.exit('openlineage' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment, cwd=tmp_path)
