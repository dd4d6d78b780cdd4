"""The partitioned assets and their two dimensions, prompt set and seed. Never one per image."""

from collections.abc import Sequence

import dagster as dg

from nanobanana_pipeline.errors import PlanError
from nanobanana_pipeline.generation.planning.cells import check_seed
from nanobanana_pipeline.prompts.prompt_set import valid_name

__all__ = [
    "FEATURES",
    "IMAGES",
    "PROMPTS",
    "add_partitions",
    "grid",
    "partition_key_of",
    "prompt_sets",
    "read_partition_key",
    "seeds",
]

PROMPTS = dg.AssetKey("prompt_set")
IMAGES = dg.AssetKey("generated_images")
FEATURES = dg.AssetKey("image_features")
"""The assets that are partitioned so."""

prompt_sets = dg.DynamicPartitionsDefinition(name="prompt_set")
seeds = dg.DynamicPartitionsDefinition(name="seed")
grid = dg.MultiPartitionsDefinition({"prompt_set": prompt_sets, "seed": seeds})


def add_partitions(
    instance: dg.DagsterInstance, names: Sequence[str], numbers: Sequence[int]
) -> None:
    """Add prompt sets and seeds to the instance's partitions; those that are there stay."""
    instance.add_dynamic_partitions(str(prompt_sets.name), names)
    instance.add_dynamic_partitions(str(seeds.name), [str(number) for number in numbers])


def partition_key_of(prompt_set: str, seed: int) -> dg.MultiPartitionKey:
    """The key of a partition of `grid`."""
    return dg.MultiPartitionKey({"prompt_set": prompt_set, "seed": str(seed)})


def read_partition_key(partition_key: str) -> tuple[str, int]:
    """The prompt set and seed of a partition of `grid`.

    Dagster gives a `MultiPartitionKey`, or a plain string where only the run's tag was set; and
    it checks nothing when somebody types a key into the UI.

    Raises:
        PlanError: the key is not ``<prompt set>|<seed>`` with a seed that may be bought.
        PromptTableError: the name cannot name a prompt set.
    """
    name, _, seed = str(partition_key).rpartition("|")
    if not seed.isascii() or not seed.isdigit():
        raise PlanError(
            f"partition {partition_key!r} has no whole number for a seed: delete the seed "
            f"partition {seed!r} (on the page of generated_images, the arrow beside Materialize, "
            "Delete partitions), and add one from 1 to 4294967295"
        )
    return valid_name(name), check_seed(int(seed))
