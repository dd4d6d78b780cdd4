"""The job that evaluates all checks of partitions, also of failed ones. It buys nothing."""

from collections.abc import Iterator
from typing import Any

import dagster as dg

from dagster_nanobanana.checks.asset_checks import CHECKS_OF_PARTITIONS, NO_PARTITION
from dagster_nanobanana.checks.evaluate_in_step import evaluate
from dagster_nanobanana.failures import plain_failures
from dagster_nanobanana.partitions import grid
from dagster_nanobanana.resources import NanobananaResource

__all__ = ["check_images"]


@dg.op(
    out=dg.Out(dg.Nothing),
    description="Evaluates every check of a partition's pictures. **Buys nothing.**",
)
def check_partition(
    context: dg.OpExecutionContext, nanobanana: NanobananaResource
) -> Iterator[Any]:
    """Look at a partition, whatever became of it."""
    if not context.has_partition_key:
        raise dg.Failure(NO_PARTITION, allow_retries=False)
    with plain_failures():
        yield from evaluate(context, nanobanana, CHECKS_OF_PARTITIONS)
    yield dg.Output(None)


# Dagster asks for no partition where a job of assets has checks alone.
@dg.job(
    partitions_def=grid,
    description=(
        "Look at the pictures of partitions, also where they failed. What is found stands on the "
        "pages of generated_images and image_features, under Checks. Buys nothing."
    ),
)
def check_images() -> None:
    """One op: a partition's checks read the same tables."""
    check_partition()
