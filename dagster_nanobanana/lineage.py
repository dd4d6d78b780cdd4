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
    begin: Callable[[], RunFacts],
    *,
    run_id: str | None = None,
    **steps: Any,  # noqa: ANN401 - as `record_run` has them
) -> AbstractContextManager[Recording]:
    """Record what a step does, as part of Dagster's run.

    Args:
        context: the step's.
        store: the bucket.
        job: what it makes: an asset's name.
        begin: gives what is known before anything is done.
        run_id: as the bucket knows the run; Dagster's if None.
        steps: which step of the run this is; see `record_run`.
    """
    run = context.run
    parent = Parent(run.run_id, run.job_name, "dagster", dg.__version__)
    return record_run(store, job, run_id or run.run_id, begin, parent=parent, **steps)
