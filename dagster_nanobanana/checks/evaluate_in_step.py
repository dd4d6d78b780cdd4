"""Evaluates asset checks from within a step, since Dagster skips those of a failed step."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import dagster as dg

from dagster_nanobanana.checks.asset_checks import CHECKS_OF_PARTITIONS
from dagster_nanobanana.partitions import IMAGES, read_partition_key
from dagster_nanobanana.resources import NanobananaResource
from nanobanana_pipeline.errors import NanobananaError
from nanobanana_pipeline.generation.manifest.manifest import CellState, CurrentManifest

__all__ = ["cells_check", "evaluate", "evaluate_planned", "evaluation_of"]


def evaluate_planned(
    context: dg.OpExecutionContext, nanobanana: NanobananaResource
) -> Iterator[dg.AssetCheckEvaluation]:
    """What the run was to check of its partition, for a step whose failure will skip the checks.

    To be yielded by the step: what is only logged gets lost where a step raises.
    """
    events = context.instance.all_logs(
        context.run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION_PLANNED
    )
    planned = {
        event.dagster_event.asset_check_planned_data.asset_check_key
        for event in events
        if event.dagster_event is not None
    }
    try:
        yield from evaluate(context, nanobanana, planned.intersection(CHECKS_OF_PARTITIONS))
    except NanobananaError as error:
        # What the step is about to say of its cells must not get lost.
        context.log.warning(f"some checks were left out: {error}")


def evaluate(
    context: dg.OpExecutionContext, nanobanana: NanobananaResource, keys: Iterable[dg.AssetCheckKey]
) -> Iterator[dg.AssetCheckEvaluation]:
    """Evaluate checks of the step's partition."""
    name, seed = read_partition_key(context.partition_key)
    for key in sorted(keys):
        found = CHECKS_OF_PARTITIONS[key](nanobanana, name, seed)
        yield evaluation_of(found, key, context.partition_key)


def evaluation_of(
    found: dg.AssetCheckResult, key: dg.AssetCheckKey, partition: str
) -> dg.AssetCheckEvaluation:
    """A result as an event, which steps other than the check's own may yield or log."""
    return dg.AssetCheckEvaluation(
        asset_key=key.asset_key,
        check_name=key.name,
        passed=found.passed,
        severity=found.severity,
        description=found.description,
        metadata=found.metadata,
        partition=str(partition),
    )


def cells_check(current: CurrentManifest, metadata: Mapping[str, Any]) -> dg.AssetCheckResult:
    """The check `cells`: fails where cells are missing, and warns where they were refused."""
    return dg.AssetCheckResult(
        asset_key=IMAGES,
        check_name="cells",
        passed=not current.gaps and not current.cells.get(CellState.REFUSED, 0),
        severity=dg.AssetCheckSeverity.ERROR if current.gaps else dg.AssetCheckSeverity.WARN,
        metadata=metadata,
    )
