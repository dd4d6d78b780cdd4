"""Selects the rows of a recipe (`Selection`), with their splits, and the rejected with reasons.

In this order go: what was asked for and did not come, pictures that cannot be decoded, what a
filter refuses, pictures that another row asked for with the same request, equal and alike pictures,
what would join two splits, and what a prompt has too many of. Nothing here buys anything: what is
missing to a number of pictures a prompt, `top_up` buys when it is told to.
"""

from dataclasses import dataclass
from typing import Final

import pandas as pd

from nanobanana_pipeline.datasets.filters import faults_of_filters, why_not
from nanobanana_pipeline.datasets.perceptual import first_alike
from nanobanana_pipeline.datasets.recipe import PerPrompt, Recipe
from nanobanana_pipeline.datasets.recipe_inputs import ROW_COLUMNS, RecipeInputs, read_recipe_inputs
from nanobanana_pipeline.datasets.release import MANIFEST, Release, read_release, read_release_table
from nanobanana_pipeline.datasets.splits import SPLIT_COLUMNS, assign_splits
from nanobanana_pipeline.errors import RecipeError
from nanobanana_pipeline.generation.manifest.manifest import CurrentManifest
from nanobanana_pipeline.storage import ObjectStore
from nanobanana_pipeline.wording import counted

__all__ = ["REJECTED_COLUMNS", "Selection", "empty_splits", "released_rows", "select"]

PROMPT_KEY_COLUMNS: Final = ["prompt_set", "prompt_id"]
"""A prompt is a row of a prompt table, whatever its text."""
REJECTED_COLUMNS: Final = [
    *("row_id", "image_sha256", "prompt", "reason"),
    *("step", "prompt_set", "prompt_id", "seed"),
]


@dataclass(frozen=True)
class Selection:
    """What a recipe selects.

    Attributes:
        rows: one a chosen picture: `ROW_COLUMNS`, the attributes, ``group`` and ``split`` (str);
            ``row_id`` is unique. In the order of the recipe's prompt sets, then by prompt_id, seed
            and sample.
        rejected: all else that was asked for: `REJECTED_COLUMNS`, of which ``step`` is that of
            `steps` which took it out; without ``image_sha256`` where there is no picture. One
            whose request another row shares bears that row's ``row_id``.
        shortfall: prompts with fewer pictures than `per_prompt` asks for: prompt_set, prompt_id,
            prompt (str), wanted, accepted, missing, candidates (asked for so far), candidates_left
            (int64). Those of `excluded` are not among them.
        excluded: prompts that are none of the dataset's, since a filter refuses what the prompt
            table says of them: prompt_set, prompt_id (str).
        tried: `RecipeInputs.tried`.
        steps: how many rows were left after each step: step (str), rows (int64).
        manifests: what the rows were drawn from.
    """

    rows: pd.DataFrame
    rejected: pd.DataFrame
    shortfall: pd.DataFrame
    excluded: pd.DataFrame
    tried: pd.DataFrame
    steps: pd.DataFrame
    manifests: list[CurrentManifest]

    @property
    def missing(self) -> int:
        """Pictures that `shortfall` lacks together."""
        return int(self.shortfall["missing"].sum())


def select(store: ObjectStore, recipe: Recipe, released: pd.DataFrame | None = None) -> Selection:
    """Select what a recipe asks for. Reads only.

    Rows that were ever released (see `released_rows`) keep their splits, and stay where a newcomer
    is their like.

    Raises:
        RecipeError: the recipe asks for what is not there, features are not measured, or it
            contradicts its parent release.
    """
    inputs = read_recipe_inputs(store, recipe)
    faults = faults_of_filters(recipe, inputs.rows)
    if inputs.unmeasured:
        faults.append(
            "the features of some pictures are not measured yet; run nanobanana features, or "
            "materialize image_features for these partitions, and come again:\n"
            + "\n".join(f"  - {each}" for each in inputs.unmeasured)
        )
    if faults:
        raise RecipeError("\n".join(faults), faults=faults)
    sieve = _Sieve(_in_order(inputs.rows, recipe))
    error = sieve.rows["error"]
    sieve.drop("can be decoded", ("cannot be decoded: " + error).where(error.notna()))
    for column, rule in recipe.filters.items():
        sieve.drop(f"filter {column}", why_not(sieve.rows[column], rule))
    _drop_shared(sieve)
    known = set() if released is None else set(released["row_id"])
    if recipe.deduplicate.exact:
        _drop_equal(sieve, known)
    if recipe.deduplicate.perceptual is not None:
        _drop_alike(sieve, known, recipe.deduplicate.perceptual)
    shares = assign_splits(sieve.rows, recipe.splits, released)
    left_out = shares.left_out.set_index("row_id")["reason"]
    sieve.drop("joins no two splits", sieve.rows["row_id"].map(left_out))
    if recipe.per_prompt:
        _drop_surplus(sieve, recipe.per_prompt, released)
    theirs = _of_dataset(inputs.prompts, recipe)
    places = shares.rows.set_index("row_id")[["group", "split"]]
    rows = sieve.rows[[*ROW_COLUMNS, *inputs.attributes]].join(places, on="row_id")
    return Selection(
        rows=rows.reset_index(drop=True),
        rejected=pd.concat([_not_come(inputs), sieve.rejected()], ignore_index=True),
        shortfall=_shortfall(inputs, rows, recipe.per_prompt, theirs),
        excluded=inputs.prompts.loc[~theirs, PROMPT_KEY_COLUMNS].reset_index(drop=True),
        tried=inputs.tried,
        steps=pd.DataFrame(sieve.steps, columns=["step", "rows"]),
        manifests=inputs.manifests,
    )


def empty_splits(recipe: Recipe, rows: pd.DataFrame) -> list[str]:
    """A warning for each split that has a share and gets none of the selected rows."""
    groups = counted(rows["group"].nunique(), "group")
    return [
        f"{recipe.where('splits', 'ratios', name)}: no picture fell to the split {name}: its share "
        f"is {ratio:g} of {groups} that are never parted. Another share or splits.salt deals anew "
        "what was not released yet"
        for name, ratio in recipe.splits.ratios.items()
        if ratio and len(rows) and name not in set(rows["split"])
    ]


def released_rows(store: ObjectStore, parent: Release | None) -> pd.DataFrame | None:
    """Every row of a release and of those before it, also rows that are gone by now.

    Those of later releases come first, in each release's order. The parent is the release that the
    next one will follow; None gives None.
    """
    tables = []
    while parent is not None:
        tables.append(
            read_release_table(store, parent, MANIFEST, [*SPLIT_COLUMNS, "group", "split"])
        )
        parent = read_release(store, parent.name, parent.parent) if parent.parent else None
    return pd.concat(tables).drop_duplicates("row_id", ignore_index=True) if tables else None


class _Sieve:
    """Rows, what was taken out of them and why, and how many each step left."""

    def __init__(self, rows: pd.DataFrame) -> None:
        self.rows = rows
        self.steps = [("settled", len(rows))]
        self._rejected: list[pd.DataFrame] = []

    def drop(self, step: str, reasons: pd.Series) -> None:
        """Take out the rows that have a reason."""
        out = reasons.notna()
        lost = self.rows[out].assign(reason=reasons[out].astype("str"), step=step)
        self._rejected.append(lost[REJECTED_COLUMNS])
        self.rows = self.rows[~out]
        self.steps.append((step, len(self.rows)))

    def rejected(self) -> pd.DataFrame:
        return pd.concat(self._rejected).sort_index().reset_index(drop=True)


def _in_order(rows: pd.DataFrame, recipe: Recipe) -> pd.DataFrame:
    rank = rows["prompt_set"].map({name: i for i, name in enumerate(recipe.prompt_sets)})
    ordered = rows.assign(rank=rank).sort_values(["rank", "prompt_id", "seed", "sample"])
    return ordered.drop(columns="rank").reset_index(drop=True)


def _drop_shared(sieve: _Sieve) -> None:
    """Prompt sets may share requests, and a row with a seed of its own has one under all seeds."""
    rows = sieve.rows
    owner = rows.groupby("row_id")["prompt_id"].transform("first")
    reasons = ("the same request as that of prompt " + owner).where(rows["row_id"].duplicated())
    sieve.drop("distinct requests", reasons)


def _drop_equal(sieve: _Sieve, known: set[str]) -> None:
    """Of equal pictures the first stays, released ones before others."""
    rows = sieve.rows.assign(new=~sieve.rows["row_id"].isin(known))
    rows = rows.sort_values("new", kind="stable")
    first = rows.groupby("image_sha256")["row_id"].transform("first")
    reasons = ("the same picture as " + first).where(first != rows["row_id"])
    sieve.drop("distinct pictures", reasons.reindex(sieve.rows.index))


def _drop_alike(sieve: _Sieve, known: set[str], distance: int) -> None:
    """Of pictures that look alike the first stays, released ones before others."""
    rows = sieve.rows.assign(new=~sieve.rows["row_id"].isin(known))
    rows = rows.sort_values("new", kind="stable")
    first = rows["row_id"].iloc[first_alike(rows["phash"], distance)]
    first = pd.Series(first.to_numpy(), index=rows.index, dtype="str")
    reasons = ("looks like " + first).where(first != rows["row_id"])
    sieve.drop("distinct looks", reasons.reindex(sieve.rows.index))


def _drop_surplus(sieve: _Sieve, wanted: PerPrompt, released: pd.DataFrame | None) -> None:
    """Of a prompt's pictures the first stay: released ones, those of later releases, then seeds."""
    before = pd.Series(dtype="str") if released is None else released["row_id"].astype("str")
    place = pd.Series(range(len(before)), index=before, dtype="Int64")
    rows = sieve.rows.assign(place=sieve.rows["row_id"].map(place))
    rows = rows.sort_values(["place", "seed", "sample"], na_position="last")
    count = rows.groupby(["prompt_set", "prompt_id"]).cumcount()
    reason = pd.Series(f"beyond the {counted(wanted.images, 'picture')} of its prompt", rows.index)
    sieve.drop("per prompt", reason.where(count >= wanted.images).reindex(sieve.rows.index))


def _not_come(inputs: RecipeInputs) -> pd.DataFrame:
    """What was asked for and is not settled anywhere, as `REJECTED_COLUMNS` has it."""
    tried = inputs.tried[~inputs.tried["row_id"].isin(inputs.rows["row_id"])]
    tried = tried.drop_duplicates(["prompt_set", "prompt_id", "row_id"])
    state = tried["state"].str.replace("_", " ")
    reason = (state + ": " + tried["reason"]).fillna(state)
    return tried.assign(
        image_sha256=pd.Series(pd.NA, tried.index, dtype="str"), reason=reason, step="settled"
    )[REJECTED_COLUMNS]


def _of_dataset(prompts: pd.DataFrame, recipe: Recipe) -> "pd.Series[bool]":
    """Whether every filter passes what the prompt table says of a prompt."""
    theirs = pd.Series(data=True, index=prompts.index)
    for column, rule in recipe.filters.items():
        if column in prompts:
            theirs &= why_not(prompts[column], rule).isna()
    return theirs


def _shortfall(
    inputs: RecipeInputs, rows: pd.DataFrame, wanted: PerPrompt | None, theirs: "pd.Series[bool]"
) -> pd.DataFrame:
    found = inputs.prompts.loc[theirs, [*PROMPT_KEY_COLUMNS, "prompt"]]
    if wanted is None:
        found = found.iloc[:0]
    accepted = rows.groupby(PROMPT_KEY_COLUMNS).size().rename("accepted")
    candidates = inputs.tried.groupby(PROMPT_KEY_COLUMNS)["row_id"].nunique().rename("candidates")
    found = found.join(accepted, on=PROMPT_KEY_COLUMNS).join(candidates, on=PROMPT_KEY_COLUMNS)
    counts = ["accepted", "candidates"]
    found[counts] = found[counts].fillna(0).astype("int64")
    images, budget = (wanted.images, wanted.candidates) if wanted else (0, 0)
    found = found.assign(
        wanted=images,
        missing=images - found["accepted"],
        candidates_left=(budget - found["candidates"]).clip(lower=0),
    )
    figures = ["wanted", "accepted", "missing", "candidates", "candidates_left"]
    order = [*PROMPT_KEY_COLUMNS, "prompt", *figures]
    return found.loc[found["missing"] > 0, order].reset_index(drop=True)
