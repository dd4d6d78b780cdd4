"""`PartitionPlan`: what the newest plan of a partition asks for, under a number that only grows.

A manifest bears the number of the plan that it was made for. So a run that collects late does not
replace the manifest of a newer plan by its own, and of two first launches with different parameters
the second is refused before it buys.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from pydantic import TypeAdapter

from nanobanana_pipeline.bucket_keys import partition_plan_key
from nanobanana_pipeline.errors import PlanError
from nanobanana_pipeline.storage import ObjectStore, StoredObject
from nanobanana_pipeline.storage.cas import parse_json, swap

__all__ = ["PartitionPlan", "read_partition_plan", "take_number"]

SCHEMA: Final = 1


@dataclass(frozen=True)
class PartitionPlan:
    """What the newest plan of a partition asks for.

    Plans that ask for the same share a number: their manifests differ in nothing but time.

    Attributes:
        number: from 1; one higher with each plan that asks for something else than the last.
        fingerprint: of the prompt set.
        parameters: in force, all of them; those of the first launch while there is no manifest.
        limit: a pilot's number of rows, or None.
    """

    number: int
    fingerprint: str
    parameters: Mapping[str, Any]
    limit: int | None
    schema: int = SCHEMA


_PLAN: Final = TypeAdapter(PartitionPlan)


def read_partition_plan(store: ObjectStore, prompt_set: str, seed: int) -> PartitionPlan | None:
    """The newest plan of a partition; None if it has none, or version 0.1.0 made them all.

    Raises:
        StorageError: it is damaged or was written by a newer version.
    """
    key = partition_plan_key(prompt_set, seed)
    return _load(store.uri(key), store.get(key))


def take_number(
    store: ObjectStore,
    prompt_set: str,
    seed: int,
    asked: PartitionPlan,
    refuse_change: Callable[[Mapping[str, tuple[Any, Any]]], PlanError] | None,
) -> int:
    """Make a plan the newest of its partition, and give its number; that of `asked` is ignored.

    It costs one GET where the newest plan asks for the same, and else a PUT beside it.

    Args:
        store: the bucket.
        prompt_set: the partition's.
        seed: the partition's.
        asked: what the plan asks for.
        refuse_change: makes the error where the newest plan has other parameters, from the changes
            (old, new) by name; None where the plan may have others.

    Raises:
        PlanError: the newest plan has other parameters, and `refuse_change` was given.
        StorageError: S3 refuses, or the newest plan is damaged.
    """
    # As it is read back, so that equal ones are equal.
    asked = _PLAN.validate_json(_PLAN.dump_json(asked))

    def step(newest: PartitionPlan | None) -> PartitionPlan:
        if newest is None:
            return replace(asked, number=1)
        old, new = newest.parameters, asked.parameters
        if refuse_change is not None and old != new:
            names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
            raise refuse_change({name: (old.get(name), new.get(name)) for name in names})
        if replace(asked, number=newest.number, schema=newest.schema) == newest:
            return newest
        return replace(asked, number=newest.number + 1)

    key = partition_plan_key(prompt_set, seed)
    _, now = swap(store, key, lambda found: _load(store.uri(key), found), step, _dump)
    return now.number


def _load(where: str, found: StoredObject | None) -> PartitionPlan | None:
    return None if found is None else parse_json(found.body, where, _PLAN.validate_json, SCHEMA)


def _dump(plan: PartitionPlan) -> bytes:
    return _PLAN.dump_json(plan, indent=1)
