"""The fingerprint of a recipe's inputs (`InputStatus`), from pointers alone: no table is read."""

import hashlib
import json
from dataclasses import dataclass

from nanobanana_pipeline.datasets.recipe import Recipe
from nanobanana_pipeline.datasets.topup_sets import origin_of
from nanobanana_pipeline.features.table import read_current_features
from nanobanana_pipeline.generation.manifest.manifest import read_all_current, read_current
from nanobanana_pipeline.prompts import prompt_set
from nanobanana_pipeline.storage import ObjectStore
from nanobanana_pipeline.wording import counted

__all__ = ["read_input_status"]


@dataclass(frozen=True)
class InputStatus:
    """How the inputs of a recipe stand.

    Attributes:
        fingerprint: SHA-256, in hexadecimal, of the recipe and of its partitions' content.
        lacks: why no release can be built now, a sentence each.
    """

    fingerprint: str
    lacks: tuple[str, ...]


def read_input_status(store: ObjectStore, recipe: Recipe) -> InputStatus:
    """Compare what a recipe draws from without reading it: three small objects a partition."""
    lacks, contents, gaps = [], [], 0
    for name, seed in _partitions(store, recipe):
        current, _ = read_current(store, name, seed)
        features, _ = read_current_features(store, name, seed)
        if current is None:
            kept = prompt_set.current(store, name)
            gaps += kept.rows if kept else 0
            lacks += [] if kept else [f"there is no prompt set {name!r}"]
            continue
        # What a derived set lacks are candidates that came to nothing, and no gaps.
        gaps += 0 if origin_of(recipe.name, name) else current.gaps
        if current.images and features is None:
            lacks.append(f"the features of {name}, seed {seed} are not measured yet")
        measured = features.content if features else ""
        contents.append([name, seed, current.content, current.fingerprint, measured])
    if gaps > recipe.allow_gaps:
        lacks.append(f"{counted(gaps, 'cell', 'is')} missing, and {recipe.allow_gaps:,} may be")
    if not contents and not lacks:
        lacks.append("nothing was generated yet that it could draw from")
    text = json.dumps([recipe.fingerprint, contents], separators=(",", ":"))
    return InputStatus(hashlib.sha256(text.encode()).hexdigest(), tuple(lacks))


def _partitions(store: ObjectStore, recipe: Recipe) -> list[tuple[str, int]]:
    """Those that the recipe names, then those that were derived for it."""
    there = [(m.prompt_set, m.seed) for m in read_all_current(store)]
    derived = [each for each in there if origin_of(recipe.name, each[0])]
    if recipe.seeds == "all":
        return [each for each in there if each[0] in recipe.prompt_sets] + derived
    named = [(name, seed) for name in recipe.prompt_sets for seed in sorted(recipe.seeds)]
    return named + derived
