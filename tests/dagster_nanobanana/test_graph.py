"""The graph asset on an ephemeral instance, a real bucket and a real emulator."""

from collections.abc import Callable
from typing import Any

import dagster as dg
import requests
from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus
from dagster._core.loader import LoadingContextForTest

from dagster_nanobanana.assets.generated_images import generated_images
from dagster_nanobanana.assets.image_features import image_features
from dagster_nanobanana.assets.prompt_set import prompt_set
from dagster_nanobanana.resources import S3, NanobananaResource
from nanobanana_pipeline.generation.manifest.manifest import read_current
from tests.dagster_nanobanana.conftest import Project

Projects = Callable[..., Project]
IMAGES = dg.AssetKey("generated_images")


def bought(project: Project) -> dict[str, Any]:
    found: dict[str, Any] = requests.get(
        f"{project.emulator.root_url}/admin/purchases", timeout=10
    ).json()
    return found


def materialized(result: dg.ExecuteInProcessResult) -> dict[str, Any]:
    [event] = result.asset_materializations_for_node("generated_images.collect")
    return {
        name: value.records if isinstance(value, dg.TableMetadataValue) else value.value
        for name, value in event.metadata.items()
    }


def data_version(project: Project, key: str) -> str:
    event = project.instance.get_latest_data_version_record(IMAGES, partition_key=key)
    assert event is not None
    assert event.asset_materialization is not None
    return str((event.asset_materialization.tags or {})["dagster/data_version"])


def test_a_partition_is_bought_stored_and_described(project: Projects) -> None:
    here = project()
    assert here.make_prompt_set().success
    result = here.generate()
    assert result.success
    metadata = materialized(result)
    assert metadata["images"] == 3
    assert metadata["bought in this run"] == 3
    assert metadata["dagster/row_count"] == 3
    assert metadata["dagster/uri"].startswith(here.store.uri("manifests/demo/seed=1/"))
    assert "prompt_id" in [column.name for column in metadata["dagster/column_schema"].columns]
    assert len(metadata["rows"]) == 3
    [check] = result.get_asset_check_evaluations()
    assert check.passed
    assert bought(here)["total"] == 3


def test_a_second_launch_buys_nothing_and_still_materializes(project: Projects) -> None:
    """With nothing missing the fan-out is empty; `collect` must run all the same."""
    here = project()
    here.make_prompt_set()
    here.generate()
    before = data_version(here, "demo|1")
    result = here.generate(config={})
    assert result.success
    assert not [e for e in result.all_events if "generate[" in (e.step_key or "")]
    assert materialized(result)["bought in this run"] == 0
    assert bought(here)["total"] == 3
    assert data_version(here, "demo|1") == before


def test_cells_that_may_still_come_fail_the_partition_after_its_manifest(
    project: Projects,
) -> None:
    here = project(moods={"lost_answer_after": 1.0})
    here.make_prompt_set()
    result = here.generate()
    assert not result.success
    current, _ = read_current(here.store, "demo", 1)
    assert current is not None
    assert current.cells == {"in_doubt": 3}
    [check] = result.get_asset_check_evaluations()
    assert not check.passed
    assert check.severity == dg.AssetCheckSeverity.ERROR
    assert not result.asset_materializations_for_node("generated_images.collect")
    observations = [e for e in result.all_events if e.is_asset_observation]
    assert observations
    failure = next(e for e in result.all_events if e.is_step_failure)
    said = str(failure.event_specific_data)
    assert "Why: " in said
    assert "(3×)" in said
    assert "Held, and never bought again" in said
    assert "the job resolve_doubts" in said
    assert "under Events of the asset" in said
    requests.post(
        f"{here.emulator.root_url}/admin/moods", json={"lost_answer_after": 0}, timeout=10
    )
    assert not here.generate(config={}).success
    assert bought(here)["total"] == 3


def test_refused_cells_only_warn(project: Projects) -> None:
    here = project(moods={"error_200": 1.0})
    here.make_prompt_set()
    result = here.generate()
    assert result.success
    [check] = result.get_asset_check_evaluations()
    assert not check.passed
    assert check.severity == dg.AssetCheckSeverity.WARN


def test_a_pilot_leaves_the_rest_not_requested(project: Projects) -> None:
    here = project()
    here.make_prompt_set()
    result = here.generate(config={"width": 1024, "height": 1024, "limit": 1})
    assert result.success
    current, _ = read_current(here.store, "demo", 1)
    assert current is not None
    assert current.cells == {"not_requested": 2, "settled": 1}


def test_work_is_cut_into_shards_of_the_size_asked_for(project: Projects) -> None:
    here = project()
    here.make_prompt_set()
    result = here.generate(config={"width": 1024, "height": 1024, "shard_size": 2})
    assert result.success
    steps = {e.step_key for e in result.all_events if "generate[" in (e.step_key or "")}
    assert steps == {
        "generated_images.generate[shard_0000]",
        "generated_images.generate[shard_0001]",
    }
    assert bought(here)["total"] == 3


def test_a_refused_account_stops_the_partition_and_says_why(project: Projects) -> None:
    here = project(moods={"unauthorized": 1.0})
    here.make_prompt_set("many", "prompt\n" + "".join(f"prompt {n}\n" for n in range(60)))
    result = here.generate("many|1")
    assert not result.success
    failure = next(e for e in result.all_events if e.is_step_failure)
    assert "Invalid API key" in str(failure.event_specific_data)
    calls = requests.get(f"{here.emulator.root_url}/admin/stats", timeout=10).json()["calls"]
    assert sum(calls["text2img"].values()) <= 10


def test_what_a_partition_was_made_with_is_not_changed_by_accident(project: Projects) -> None:
    here = project()
    here.make_prompt_set()
    here.generate()
    other = {"width": 1056, "height": 1024}
    refused = here.generate(config=other)
    assert not refused.success
    assert bought(here)["total"] == 3
    failure = next(e for e in refused.all_events if e.is_step_failure)
    assert "3 requests for 3 new images" in str(failure.event_specific_data)
    assert here.generate(config={**other, "change_parameters": True}).success
    assert bought(here)["total"] == 6


def test_seed_0_is_refused_with_the_reason(project: Projects) -> None:
    here = project()
    here.make_prompt_set()
    result = here.generate("demo|0")
    assert not result.success
    failure = next(e for e in result.all_events if e.is_step_failure)
    assert "random seed" in str(failure.event_specific_data)
    assert bought(here)["total"] == 0


def test_parameters_out_of_range_are_all_refused_at_once(project: Projects) -> None:
    here = project()
    here.make_prompt_set()
    wrong: dict[str, Any] = {"width": 1000, "samples": 9, "limit": -2, "slots": 0}
    wrong |= {"shard_size": 0, "max_images": -1, "max_cost": "much"}
    result = here.generate(config=wrong)
    failure = next(e for e in result.all_events if e.is_step_failure)
    said = str(failure.event_specific_data)
    assert "divisible by 32" in said
    for fault in ("samples 9", "limit -2", "slots 0", "shard_size 0", "max_images -1", "'much'"):
        assert fault in said
    assert bought(here)["total"] == 0


def test_rows_in_quarantine_are_shown_and_the_rest_goes_on(project: Projects) -> None:
    here = project()
    table = "id,prompt,width,mood\na,a fox,1024,calm\nb,,1024,\nc,a kite,999,\n"
    result = here.make_prompt_set("rough", table)
    assert result.success
    [event] = result.asset_materializations_for_node("prompt_set")
    assert event.metadata["dagster/row_count"].value == 1
    assert event.metadata["quarantined rows"].value == 2
    assert "quarantine" in event.metadata
    schema = event.metadata["dagster/column_schema"]
    assert isinstance(schema, dg.TableSchemaMetadataValue)
    assert all(column.description for column in schema.schema.columns)
    version = (event.tags or {})["dagster/data_version"]
    assert version == event.metadata["fingerprint"].value


def test_settings_that_are_missing_are_all_named(project: Projects) -> None:
    here = project()
    here.resources["nanobanana"] = NanobananaResource(s3=S3())
    result = here.make_prompt_set()
    assert not result.success
    said = str(next(e for e in result.all_events if e.is_step_failure).event_specific_data)
    assert "NANOBANANA_API_KEY" in said
    assert "NANOBANANA_BUCKET" in said


def test_a_new_table_makes_only_its_own_cells_stale(project: Projects) -> None:
    here = project()
    cells = [("demo", "1"), ("demo", "2"), ("other", "1")]
    for name in ("demo", "other"):
        here.make_prompt_set(name, "id,prompt\na,a fox\n")
    for cell in cells:
        assert here.generate("|".join(cell)).success
        assert here.run(image_features, "|".join(cell), {}).success

    def stale(asset: str) -> set[str]:
        graph = dg.Definitions(
            assets=[prompt_set, generated_images, image_features], resources=here.resources
        ).resolve_asset_graph()
        resolver = CachingStaleStatusResolver(
            here.instance, graph, LoadingContextForTest(here.instance)
        )
        keys = {name for name, _ in cells} if asset == "prompt_set" else map("|".join, cells)
        found = {key: resolver.get_status(dg.AssetKey(asset), key) for key in keys}
        assert StaleStatus.MISSING not in found.values()
        return {key for key, status in found.items() if status is StaleStatus.STALE}

    assets = ("prompt_set", "generated_images", "image_features")
    assert [stale(asset) for asset in assets] == [set(), set(), set()]
    # The same content from another file, and a new seed, are no news.
    here.make_prompt_set("demo", "prompt,id\na fox,a\n")
    here.instance.add_dynamic_partitions("seed", ["3"])
    assert [stale(asset) for asset in assets] == [set(), set(), set()]
    here.make_prompt_set("demo", "id,prompt\na,a red fox\n")
    assert stale("generated_images") == {"demo|1", "demo|2"}
    assert stale("image_features") <= {"demo|1", "demo|2"}
    assert here.generate("demo|1", config={}).success
    assert stale("generated_images") == {"demo|2"}
    assert "demo|1" in stale("image_features")
    assert "other|1" not in stale("image_features")
