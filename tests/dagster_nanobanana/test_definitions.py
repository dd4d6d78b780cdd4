"""What Dagster loads: what assets say of themselves, and what launches refuse."""

import re
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from dagster._core.snap.snap_to_yaml import default_values_yaml_from_type_snap

from dagster_nanobanana.definitions import defs
from dagster_nanobanana.partitions import read_partition_key
from dagster_nanobanana.presentation.columns import PROMPTS_METADATA, RELEASES_METADATA
from nanobanana_pipeline.datasets.recipe_inputs import ROW_COLUMNS
from nanobanana_pipeline.datasets.release_rows import KINDS
from nanobanana_pipeline.errors import NanobananaError
from nanobanana_pipeline.prompts.table import read_prompt_table
from nanobanana_pipeline.prompts.validation import check_prompts


def test_every_asset_says_what_it_costs_and_what_it_is_made_of() -> None:
    """The rest of the graph is pinned by the snapshot."""
    graph = defs.resolve_asset_graph()
    known: dict[str, set[str]] = {}
    for key in graph.toposorted_asset_keys:
        node = graph.get(key)
        name = key.to_user_string()
        cost = "**Costs money" if name == "generated_images" else "**Costs nothing"
        assert cost in (node.description or "")
        assert node.tags["cost"] == ("paid" if name == "generated_images" else "free")
        schema = node.metadata["dagster/column_schema"]
        known[name] = {column.name for column in schema.columns}
        assert all(column.description for column in schema.columns)
        lineage = node.metadata.get("dagster/column_lineage", dg.TableColumnLineage({}))
        assert lineage.deps_by_column or name == "prompt_set"
        for column, made_of in lineage.deps_by_column.items():
            assert column in known[name]
            assert made_of
            for dep in made_of:
                assert dep.column_name in known[dep.asset_key.to_user_string()]


def test_what_can_be_started_says_its_cost_and_what_ships_stopped_how_to_start_it() -> None:
    repository = defs.get_repository_def()
    graph = defs.resolve_asset_graph()
    jobs = [job for job in repository.get_all_jobs() if not job.name.startswith("__")]
    told = {job.name: job.description for job in jobs}
    told |= {key.name: graph.get(key).description for key in graph.asset_check_keys}
    automatic: list[Any] = [*repository.sensor_defs, *repository.schedule_defs]
    told |= {each.name: each.description for each in automatic}
    cost = re.compile(r"Costs money|[Cc]osts nothing|[Bb]uys nothing")
    said = {name: cost.findall(" ".join((text or "").split())) for name, text in told.items()}
    assert {name for name, words in said.items() if not words} == set()
    paid = {name for name, words in said.items() if "Costs money" in words}
    jobs_that_pay = {"retry_failed", "top_up_dataset", "resolve_doubts"}
    assert paid == {*jobs_that_pay, "nightly", "buy_new_prompt_sets"}
    stopped = {each.name for each in automatic if each.default_status.value == "STOPPED"}
    assert paid.isdisjoint({each.name for each in automatic} - stopped)
    for name in stopped:
        assert re.search(r"[Ss]tart (it|this)", told[name] or ""), name


def test_a_launchpad_opens_with_what_a_launch_may_say_and_nothing_else() -> None:
    job = defs.resolve_implicit_global_asset_job_def()
    told = job.get_job_snapshot()
    root = told.config_schema_snapshot.get_config_snap(told.mode_def_snaps[0].root_config_key or "")
    opens = yaml.safe_load(default_values_yaml_from_type_snap(told.config_schema_snapshot, root))
    assert not opens.pop("resources", None)
    assert set(opens) == {"ops"}
    assert set(opens["ops"]) == {"generated_images"}


def test_columns_are_those_that_are_stored(tmp_path: Path) -> None:
    """Manifests and features are described by the very tables that write them; these are not."""
    table = tmp_path / "table.csv"
    table.write_text(
        "id,prompt,negative_prompt,width,seed,samples,noise_scale_end,watermark,temp\n"
        "a,a fox,no cat,1024,5,2,7,yes,no\n"
    )
    stored = check_prompts(read_prompt_table(table)).prompts.dtypes
    kinds = {"Int64": "int64", "Float64": "double", "str": "string"}
    told = {
        column.name: column.type for column in PROMPTS_METADATA["dagster/column_schema"].columns
    }
    found = {str(name): kinds[str(dtype)] for name, dtype in stored.items()}
    assert len(found) == 9
    assert found.items() <= told.items()
    released = RELEASES_METADATA["dagster/column_schema"].columns
    assert {column.name: column.type for column in released} == {
        name: str(KINDS[name]) for name in ROW_COLUMNS
    }


@pytest.mark.parametrize(
    "config",
    [{"widht": 1024}, {"noise_clip_std": "much"}, {"limit": "all"}, {"watermark": "maybe"}],
)
def test_bad_config_is_refused_at_launch(config: dict[str, object]) -> None:
    job = defs.resolve_implicit_global_asset_job_def().get_subset(
        asset_selection={dg.AssetKey("generated_images")}
    )
    with pytest.raises(dg.DagsterInvalidConfigError):
        dg.validate_run_config(job, {"ops": {"generated_images": {"config": config}}})


@pytest.mark.parametrize(
    "key", ["demo|0", "demo|x", "demo|4294967296", "demo", "a/b|1", "|1", "demo|-1"]
)
def test_a_partition_key_typed_wrongly_is_refused(key: str) -> None:
    with pytest.raises(NanobananaError):
        read_partition_key(key)


def test_a_seed_that_is_no_number_says_how_to_get_rid_of_it() -> None:
    with pytest.raises(NanobananaError, match=r"delete .* 'abc' .*Delete partitions"):
        read_partition_key("demo|abc")


def test_a_partition_key_may_come_in_both_of_dagsters_shapes() -> None:
    key = dg.MultiPartitionKey({"prompt_set": "demo", "seed": "7"})
    assert read_partition_key(key) == read_partition_key("demo|7") == ("demo", 7)
