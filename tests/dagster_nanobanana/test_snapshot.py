"""The whole graph as one readable file, so that a change to it is seen in a review.

Renew it with ``python -m tests.dagster_nanobanana.test_snapshot``, and read what has changed.
"""

import json
from pathlib import Path
from typing import Any

import dagster as dg

from dagster_nanobanana.definitions import defs

GOLDEN = Path(__file__).parents[1] / "golden" / "asset_graph.json"
RENEW = "python -m tests.dagster_nanobanana.test_snapshot"


def partitions(definition: dg.PartitionsDefinition | None) -> str | None:
    if definition is None:
        return None
    if isinstance(definition, dg.MultiPartitionsDefinition):
        return " × ".join(each.name for each in definition.partitions_defs)
    assert isinstance(definition, dg.DynamicPartitionsDefinition)
    return definition.name


def columns(metadata: Any) -> list[str]:
    schema = metadata["dagster/column_schema"]
    return [f"{column.name}: {column.type}" for column in schema.columns]


def words(condition: dg.AutomationCondition[Any]) -> str:
    """A condition and what it is made of, by the labels that Dagster or we have given."""
    title = condition.get_label() or condition.name or type(condition).__name__
    parts = ", ".join(words(child) for child in condition.children)
    return f"{title}({parts})" if parts else title


def automated(condition: dg.AutomationCondition[Any] | None) -> dict[str, list[str]] | None:
    if condition is None:
        return None
    title = condition.get_label() or condition.name or type(condition).__name__
    return {title: [words(child) for child in condition.children]}


def assets() -> dict[str, Any]:
    graph = defs.resolve_asset_graph()
    told = {}
    for key in sorted(graph.get_all_asset_keys()):
        node = graph.get(key)
        assert node.description
        told[key.to_user_string()] = {
            "after": {
                parent.to_user_string(): type(node.partition_mappings[parent]).__name__
                if parent in node.partition_mappings
                else "as Dagster infers it"
                for parent in sorted(node.parent_keys)
            },
            "partitions": partitions(node.partitions_def),
            "group": node.group_name,
            "kinds": sorted(node.kinds),
            "owners": sorted(node.owners),
            "tags": dict(sorted((k, v) for k, v in node.tags.items() if "/kind/" not in k)),
            # That of a dataset is its recipe's.
            "code_version": "recipe" if key.path[0] == "datasets" else node.code_version,
            "automation": automated(node.automation_condition),
            "backfills": None if node.backfill_policy is None else str(node.backfill_policy),
            "checks": {
                check.name: {
                    "partitions": partitions(graph.get(check).partitions_def),
                    "blocking": graph.get(check).blocking,
                }
                for check in sorted(node.check_keys, key=lambda check: check.name)
            },
            "columns": columns(node.metadata),
            "column_lineage": "dagster/column_lineage" in node.metadata,
        }
    return told


def automation() -> dict[str, Any]:
    repository = defs.get_repository_def()
    return {
        "jobs": {
            job.name: {
                "partitions": partitions(job.partitions_def),
                "steps": sorted(node.name for node in job.nodes),
            }
            for job in sorted(repository.get_all_jobs(), key=lambda job: job.name)
            if not job.name.startswith("__")
        },
        "schedules": {
            schedule.name: {
                "cron": schedule.cron_schedule,
                "timezone": schedule.execution_timezone or "UTC",
                "default": schedule.default_status.value,
                "job": schedule.job_name,
            }
            for schedule in sorted(repository.schedule_defs, key=lambda each: each.name)
        },
        "sensors": {
            sensor.name: {
                "type": sensor.sensor_type.value,
                "default": sensor.default_status.value,
                "seconds": sensor.minimum_interval_seconds,
                "jobs": sorted(target.job_name for target in sensor.targets),
            }
            for sensor in sorted(repository.sensor_defs, key=lambda each: each.name)
        },
    }


def snapshot() -> str:
    whole = {"assets": assets(), **automation()}
    return json.dumps(whole, indent=2, ensure_ascii=False) + "\n"


def test_the_graph_is_as_it_was() -> None:
    assert snapshot() == GOLDEN.read_text(), f"if that is meant: {RENEW}"


if __name__ == "__main__":
    GOLDEN.write_text(snapshot())
