"""What Dagster loads: its shape, and what loading must not do."""

import dagster as dg
import pytest

from dagster_project.definitions import defs
from dagster_project.partitions import read_cell_key
from nanobanana_pipeline.errors import NanobananaError

GRAPH = {
    "prompt_set": {
        "after": [],
        "group": "prompts",
        "kinds": {"pandas", "parquet", "s3"},
        "partitions": "prompt_set",
        "checks": [],
    },
    "generated_images": {
        "after": ["prompt_set"],
        "group": "images",
        "kinds": {"requests", "s3", "parquet"},
        "partitions": "prompt_set × seed",
        "checks": ["audit", "cells", "none_in_doubt"],
    },
    "image_features": {
        "after": ["generated_images"],
        "group": "images",
        "kinds": {"pillow", "s3", "parquet"},
        "partitions": "prompt_set × seed",
        "checks": [],
    },
    # Of recipes/sample.yaml; each recipe makes one like it.
    "datasets/sample": {
        "after": ["image_features"],
        "group": "datasets",
        "kinds": {"webdataset", "s3"},
        "partitions": "",
        "checks": ["no_leaks", "readable"],
    },
}


def _partitions(definition: dg.PartitionsDefinition | None) -> str:
    if definition is None:
        return ""
    if isinstance(definition, dg.MultiPartitionsDefinition):
        return " × ".join(d.name for d in definition.partitions_defs)
    assert isinstance(definition, dg.DynamicPartitionsDefinition)
    return str(definition.name)


def test_the_graph_is_as_it_was() -> None:
    graph = defs.resolve_asset_graph()
    found = {}
    for key in graph.get_all_asset_keys():
        node = graph.get(key)
        found[key.to_user_string()] = {
            "after": sorted(parent.to_user_string() for parent in node.parent_keys),
            "group": node.group_name,
            "kinds": set(node.kinds),
            "partitions": _partitions(node.partitions_def),
            "checks": sorted(check.name for check in node.check_keys),
        }
        assert node.description
        assert node.owners
        assert node.code_version
    assert found == GRAPH


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
        read_cell_key(key)


def test_a_partition_key_may_come_in_both_of_dagsters_shapes() -> None:
    key = dg.MultiPartitionKey({"prompt_set": "demo", "seed": "7"})
    assert read_cell_key(key) == read_cell_key("demo|7") == ("demo", 7)
