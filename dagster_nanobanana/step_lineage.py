"""Lineage of Dagster's runs; what it says is the domain's business."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import dagster as dg

from nanobanana_pipeline.lineage.openlineage.facts import Parent, RunFacts
from nanobanana_pipeline.lineage.openlineage.recorder import Recording, record_run
from nanobanana_pipeline.storage import ObjectStore

__all__ = ["recorded_step"]


def recorded_step(
    context: dg.OpExecutionContext | dg.AssetExecutionContext,
    store: ObjectStore,
    job: str,
    begin: Callable[[], RunFacts] = RunFacts,
    *,
    run_id: str | None = None,
    **steps: Any,  # noqa: ANN401 - as `record_run` has them
) -> AbstractContextManager[Recording]:
    """Record what a step does, with the arguments of `record_run`, as part of Dagster's run.

    `run_id` is as the bucket knows the run, Dagster's if None; `job` is an asset's name.
    """
    run = context.run
    parent = Parent(run.run_id, run.job_name, "dagster", dg.__version__)
    return record_run(store, job, run_id or run.run_id, begin, parent=parent, **steps)
