"""The inputs of a recipe (`RecipeInputs`): its manifests, features and prompt tables, joined."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import pandas as pd
from pandas.api.types import is_bool_dtype, is_numeric_dtype

from nanobanana_pipeline.bucket_keys import Folder, image_key
from nanobanana_pipeline.datasets.recipe import ALL_SEEDS, Recipe, near_matches
from nanobanana_pipeline.datasets.topup_sets import origin_of, topup_prefix
from nanobanana_pipeline.errors import RecipeError
from nanobanana_pipeline.features.table import FEATURE_COLUMNS, FEATURE_TABLE_SCHEMA, read_features
from nanobanana_pipeline.generation.manifest.manifest import (
    MANIFEST_COLUMNS,
    CellState,
    CurrentManifest,
    advice,
    read_all_current,
    read_current,
    read_manifest,
)
from nanobanana_pipeline.prompts import prompt_set
from nanobanana_pipeline.prompts.checked_prompts import attributes_of
from nanobanana_pipeline.storage import ObjectStore
from nanobanana_pipeline.storage.versioned import as_frame
from nanobanana_pipeline.wording import counted

__all__ = ["ROW_COLUMNS", "RecipeInputs", "read_recipe_inputs"]

MADE_BY_A_MODEL: Final = "trainedAlgorithmicMedia"
"""The digital source type of IPTC's NewsCodes for what a trained model has drawn."""

ROW_COLUMNS: Final = {
    "row_id": "str",
    "prompt_set": "str",
    "prompt_id": "str",
    "prompt": "str",
    "negative_prompt": "str",
    "seed": "Int64",
    "seed_asked": "Int64",
    "seed_reported": "Int64",
    "sample": "Int32",
    "request_key": "str",
    "image_sha256": "str",
    "image_key": "str",
    "format": "str",
    "bytes": "Int64",
    "width": "Int32",
    "height": "Int32",
    "provenance": "str",
    "provider_id": "str",
    "run_id": "str",
    "accepted": "str",
    "mean": "Float32",
    "entropy": "Float32",
    "sharpness": "Float32",
    "blank": "boolean",
    "phash": "str",
    "ref_sha256": "str",
    "digital_source_type": "str",
}
"""The columns of a chosen row that every release has, and their types; attributes follow them."""

LOOK_COLUMNS: Final = [
    name for name in FEATURE_COLUMNS if name not in MANIFEST_COLUMNS and name != "thumbnail"
]
RESERVED_COLUMNS: Final = frozenset(
    {*ROW_COLUMNS, *MANIFEST_COLUMNS, *FEATURE_COLUMNS, "group", "split"}
)
CELL_COLUMNS: Final = ["prompt_set", "prompt_id", "row_id"]
OF_PROMPTS: Final = {
    name: ROW_COLUMNS[name]
    for name in ("prompt_set", "prompt_id", "prompt", "negative_prompt", "ref_sha256")
}
NOT_TRIED: Final = frozenset({CellState.NOT_REQUESTED, CellState.OVER_BUDGET, CellState.PENDING})


@dataclass(frozen=True)
class RecipeInputs:
    """The inputs of a recipe.

    Attributes:
        manifests: the partitions', in the order of the recipe's prompt sets, then of the seeds;
            after them those of prompt sets that were derived for the dataset.
        rows: one a picture of a settled cell: `ROW_COLUMNS`, the other columns of the manifest and
            the features (without thumbnails), and the attributes. Those of a derived prompt set
            bear the name of its origin.
        attributes: names of the columns that come from the prompt tables.
        unmeasured: partitions with pictures whose features are not measured, and how many; their
            rows have none.
        tried: one a picture that was asked for, whatever came of it: prompt_set (the origin's),
            prompt_id, prompt, row_id, state, reason (str), seed (Int64).
        prompts: one a prompt of the partitions: prompt_set, prompt_id, prompt, negative_prompt,
            ref_sha256 (str) and the attributes.
    """

    manifests: list[CurrentManifest]
    rows: pd.DataFrame
    attributes: list[str]
    unmeasured: list[str]
    tried: pd.DataFrame
    prompts: pd.DataFrame


def read_recipe_inputs(store: ObjectStore, recipe: Recipe) -> RecipeInputs:
    """Read everything that a recipe draws from.

    Raises:
        RecipeError: prompt sets are missing, or more cells than the recipe allows.
    """
    # What a derived set lacks are candidates that came to nothing, and no gaps.
    derived = list(_derived(store, recipe))
    manifests = _partitions(store, recipe) + [current for current, _ in derived]
    origins = {current.prompt_set: origin for current, origin in derived}
    described: dict[tuple[str, str], pd.DataFrame] = {}
    parts: list[pd.DataFrame] = []
    prompts: list[pd.DataFrame] = []
    cells, unmeasured = [], []
    for current in manifests:
        table = (current.prompt_set, current.fingerprint)
        if table not in described:
            described[table] = _described(prompt_set.load(store, *table))
        manifest = read_manifest(store, current.manifest)
        manifest["prompt_set"] = origins.get(current.prompt_set, current.prompt_set)
        manifest["row_id"] = manifest["request_key"] + "-" + manifest["sample"].astype("str")
        cells.append(manifest[[*CELL_COLUMNS, "prompt", "seed", "state", "reason"]])
        rows = manifest[manifest["state"] == CellState.SETTLED]
        rows = rows.assign(further=current.prompt_set in origins)
        features = read_features(store, current.prompt_set, current.seed)
        if features is None:
            features = as_frame(FEATURE_TABLE_SCHEMA.empty_table())
        without = rows.loc[~rows["image_sha256"].isin(features["image_sha256"]), "image_sha256"]
        if len(without):
            name = _name(current.prompt_set, current.seed)
            unmeasured.append(f"{name}: {counted(without.nunique(), 'picture')}")
        rows = rows.merge(features[["image_sha256", *LOOK_COLUMNS]], on="image_sha256", how="left")
        told = manifest[["prompt_set", "prompt_id", "prompt"]].drop_duplicates("prompt_id")
        for found, into in ((rows, parts), (told, prompts)):
            joined = found.merge(described[table], on="prompt_id", how="left")
            own = joined["negative_prompt"].fillna(current.parameters.get("negative_prompt") or "")
            into.append(joined.assign(negative_prompt=own))
    attributes = sorted(
        {str(name) for frame in described.values() for name in frame} - RESERVED_COLUMNS
    )
    asked = pd.concat(cells, ignore_index=True)
    return RecipeInputs(
        manifests=manifests,
        rows=_as_rows(_together(parts, attributes)),
        attributes=attributes,
        unmeasured=unmeasured,
        tried=asked[~asked["state"].isin(NOT_TRIED)],
        prompts=_together(prompts, attributes)
        .drop_duplicates(["prompt_set", "prompt_id"], ignore_index=True)
        .astype(OF_PROMPTS)[[*OF_PROMPTS, *attributes]],
    )


def _derived(store: ObjectStore, recipe: Recipe) -> Iterator[tuple[CurrentManifest, str]]:
    """The manifests of what was drawn further for the dataset, each with the prompt set's origin.

    They count whatever seeds the recipe names, and also where it asks for no number any more.
    """
    for current in read_all_current(store, topup_prefix(recipe.name)):
        origin = origin_of(recipe.name, current.prompt_set)
        if origin in recipe.prompt_sets:
            yield current, origin


def _partitions(store: ObjectStore, recipe: Recipe) -> list[CurrentManifest]:
    """The manifests in force; refuses prompt sets that do not exist, and gaps."""
    found: list[CurrentManifest] = []
    missing: list[tuple[int, str]] = []
    everywhere = list(read_all_current(store)) if recipe.seeds == ALL_SEEDS else []
    for position, name in enumerate(recipe.prompt_sets):
        kept = prompt_set.current(store, name)
        if kept is None:
            known = [key.split("/")[1] for key in store.keys(Folder.PROMPT_SETS.prefix)]
            hint = near_matches(name, set(known)) if known else "there is none yet"
            place = recipe.where("prompt_sets", position)
            raise RecipeError(f"{place}: there is no prompt set {name!r}; {hint}")
        if recipe.seeds == ALL_SEEDS:
            there = [each for each in everywhere if each.prompt_set == name]
            missing += [] if there else [(kept.rows, f"{name}: never generated under any seed")]
        else:
            read = {seed: read_current(store, name, seed)[0] for seed in sorted(recipe.seeds)}
            there = [current for current in read.values() if current is not None]
            never = [seed for seed, current in read.items() if current is None]
            missing += [(kept.rows, f"{_name(name, seed)}: never generated") for seed in never]
        for current in there:
            if current.gaps:
                what = f"{_name(name, current.seed)}: {'. '.join(advice(current))}"
                missing.append((current.gaps, what))
        found += there
    gaps = sum(count for count, _ in missing)
    if gaps > recipe.allow_gaps:
        lines = "\n".join(f"  - {counted(count, 'cell')} of {what}" for count, what in missing)
        raise RecipeError(
            f"{recipe.where('allow_gaps')}: {counted(gaps, 'cell', 'is')} missing, and "
            f"{recipe.allow_gaps:,} may be. Launch these partitions again "
            f"(generated_images in Dagster, or nanobanana generate), or allow that many:\n{lines}"
        )
    if not found:
        raise RecipeError(
            f"{recipe.where('seeds')}: nothing was generated yet that this recipe could draw from"
        )
    return found


def _name(name: str, seed: int) -> str:
    return f"{name} seed={seed}"


def _described(prompts: pd.DataFrame) -> pd.DataFrame:
    """What a prompt set says of its rows, by prompt_id, under names that nothing else has."""
    own = {name: name for name in ("prompt_id", "negative_prompt", "ref_sha256")}
    names = {**own}
    for attribute in attributes_of(prompts.columns):
        name = attribute
        while name in RESERVED_COLUMNS or name in names.values():
            name = f"prompt_{name}"
        names[attribute] = name
    missing = [name for name in own if name not in prompts.columns]
    empty = pd.DataFrame(dict.fromkeys(missing, pd.NA), index=prompts.index, dtype="str")
    return pd.concat([prompts, empty], axis="columns")[list(names)].rename(columns=names)


def _together(parts: list[pd.DataFrame], attributes: list[str]) -> pd.DataFrame:
    """All partitions' rows in one table; columns of different kinds become text."""
    for name in attributes:
        kinds = {part[name].dtype for part in parts if name in part}
        if len(kinds) > 1:
            numbers = all(is_numeric_dtype(kind) and not is_bool_dtype(kind) for kind in kinds)
            kinds = {pd.Float64Dtype()} if numbers else {pd.Series(dtype="str").dtype}
        kind = kinds.pop()
        for part in parts:
            part[name] = (
                part[name].astype(kind) if name in part else pd.Series(pd.NA, part.index, kind)
            )
    return pd.concat(parts, ignore_index=True)


def _as_rows(found: pd.DataFrame) -> pd.DataFrame:
    """What was settled, as `RecipeInputs.rows` has it."""
    # A cell that was drawn for a derived set may have been drawn for its origin since, or before.
    rows = found[~(found.pop("further") & found.duplicated(CELL_COLUMNS))].reset_index(drop=True)
    rows["image_key"] = list(map(image_key, rows["image_sha256"], rows["format"]))
    rows["digital_source_type"] = MADE_BY_A_MODEL
    return rows.astype(ROW_COLUMNS)
