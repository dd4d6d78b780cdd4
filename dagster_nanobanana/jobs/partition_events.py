"""Partitions that a job settles by itself, shown as if their asset had been launched.

Dagster drops what a step has logged where it fails later: so ops yield `context.consume_events()`.
"""

import itertools
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import dagster as dg

from dagster_nanobanana.checks.evaluate_in_step import cells_check, evaluation_of
from dagster_nanobanana.partitions import IMAGES, partition_key_of
from nanobanana_pipeline.generation.launch_steps import Settled
from nanobanana_pipeline.money import cost_of, cost_text
from nanobanana_pipeline.storage import ObjectStore

__all__ = ["run_ids", "show_settled"]


def show_settled(
    context: dg.OpExecutionContext, store: ObjectStore, settled: Settled, price: Decimal | None
) -> None:
    """Put what became of a partition on its asset's page, and its check `cells` with it."""
    current, report = settled.current, settled.report
    partition = partition_key_of(current.prompt_set, current.seed)
    metadata: dict[str, Any] = {
        "cells": dg.MetadataValue.json(dict(current.cells)),
        "bought in this run": report.bought,
        "images stored in this run": report.images,
        "cost of this run": cost_text(cost_of(report.spent, price)),
        "dagster/uri": store.uri(current.manifest),
    }
    # As the asset itself does: what has gaps is seen, and not made.
    event = dg.AssetObservation if current.gaps else dg.AssetMaterialization
    tags = {"dagster/data_version": current.content}
    context.log_event(event(IMAGES, partition=partition, metadata=metadata, tags=tags))
    check = cells_check(current, {"cells": metadata["cells"]})
    evaluation = evaluation_of(check, dg.AssetCheckKey(IMAGES, "cells"), partition)
    # Dagster takes it; only its annotation does not say so.
    context.log_event(evaluation)  # type: ignore[arg-type]


def run_ids(run_id: str, what: str) -> Callable[[], str]:
    """Names for the domain's runs of one of Dagster's: each partition has one of its own."""
    numbers = itertools.count(1)
    return lambda: f"{run_id}-{what}-{next(numbers)}"
