"""What a launch would buy, cost, store and last, before it buys anything."""

import statistics
from dataclasses import dataclass
from typing import Final

import pandas as pd

from nanobanana_pipeline.generation.budget.counters import Counter, day_scope
from nanobanana_pipeline.generation.manifest.manifest import (
    CurrentManifest,
    read_all_current,
    read_current,
)
from nanobanana_pipeline.generation.planning.planner import Launch, plan_cells
from nanobanana_pipeline.generation.planning.run_files import RunPlan
from nanobanana_pipeline.money import Budget
from nanobanana_pipeline.provider.account import Account
from nanobanana_pipeline.storage import ObjectStore

__all__ = ["Estimate", "Quote", "estimate", "quote", "room_today"]

OTHERS: Final = 20


@dataclass(frozen=True)
class Estimate:
    """What buying takes, judged by what was bought before; None where nothing was.

    Attributes:
        size: bytes in the bucket.
        seconds: wall time at the configured number of slots.
    """

    size: int | None
    seconds: float | None


@dataclass(frozen=True)
class Quote:
    """The plan of a launch that was not started.

    Attributes:
        changes: it names picture parameters other than those the partition was made with, so it
            needs `change_parameters`.
    """

    made: RunPlan
    estimate: Estimate
    changes: bool


def quote(
    store: ObjectStore,
    account: Account,
    launch: Launch,
    prompts: pd.DataFrame,
    *,
    slots: int,
) -> Quote:
    """Work out what a launch would do. Writes nothing.

    Args:
        store: the bucket.
        account: whose pictures these are, their price and the caps.
        launch: what would be launched.
        prompts: checked prompts, whether they are a prompt set already or not.
        slots: most requests at the provider at once.

    Raises:
        PlanError: the launch could not start.
        StorageError: S3 refuses or holds damaged objects.
    """
    survey = plan_cells(store, account, launch, prompts)
    return Quote(survey.made, estimate(store, survey.made, slots), bool(survey.changes))


def estimate(store: ObjectStore, made: RunPlan, slots: int) -> Estimate:
    """Judge a plan by the same partition's last manifest, else by others' of the bucket."""
    current, _ = read_current(store, made.prompt_set, made.seed)
    before = [current] if current and current.images else _others(store)
    sizes = [m.size / m.images for m in before if m.images]
    waits = [m.request_seconds for m in before if m.request_seconds]
    return Estimate(
        size=round(made.buy_images * statistics.median(sizes)) if sizes else None,
        seconds=made.buy * statistics.median(waits) / slots if waits else None,
    )


def room_today(store: ObjectStore, budget: Budget) -> tuple[Counter, int | None]:
    """What is counted today (UTC), and how many more images the day's cap allows; None if all."""
    scope = day_scope(store, budget)
    counter = scope.read()
    room = scope.cap.room(counter.images_counted, counter.cost_counted, budget.price)
    return counter, room


def _others(store: ObjectStore) -> list[CurrentManifest]:
    found: list[CurrentManifest] = []
    for current in read_all_current(store):
        if current.images:
            found.append(current)
        if len(found) == OTHERS:
            break
    return found
