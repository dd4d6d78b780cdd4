"""Further candidates for a dataset that asks for a number of pictures of each prompt.

Round after round: what the recipe selects now says which prompts miss pictures; they become derived
prompt sets, are drawn under seeds that none of them was drawn under, and are measured. It ends when
every prompt has its pictures or no candidate left, or a budget does. Whatever ends it, the same
call goes on: where a dataset stands follows from the bucket alone.
"""

import itertools
import math
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, Final

import pandas as pd

from nanobanana_pipeline.datasets.recipe import PerPrompt, Recipe
from nanobanana_pipeline.datasets.release import read_latest
from nanobanana_pipeline.datasets.selection import Selection, released_rows, select
from nanobanana_pipeline.datasets.topup_sets import topup_prefix, write_topup_set
from nanobanana_pipeline.errors import RecipeError
from nanobanana_pipeline.features.table import (
    RefreshedFeatures,
    read_current_features,
    refresh_features,
)
from nanobanana_pipeline.generation.engine.engine import Progress
from nanobanana_pipeline.generation.launch_steps import Settled, settle_launch
from nanobanana_pipeline.generation.manifest.manifest import read_all_current
from nanobanana_pipeline.generation.planning.planner import Launch, plan_cells
from nanobanana_pipeline.generation.planning.run_files import RunPlan, unfinished_plans
from nanobanana_pipeline.generation.recovery.relaunch_partitions import relaunch
from nanobanana_pipeline.money import Cap, cost_of
from nanobanana_pipeline.prompts import prompt_set
from nanobanana_pipeline.provider.account import Account
from nanobanana_pipeline.storage import ObjectStore

__all__ = ["Drawn", "Standing", "stand", "top_up"]

SURPLUS: Final = "per prompt"
CANDIDATE: Final = ["prompt_set", "prompt_id", "row_id"]
"""Prompts may share a request: it is a candidate of each."""


@dataclass(frozen=True)
class Standing:
    """How a dataset stands against the number of pictures that its recipe asks for.

    Attributes:
        selection: what the recipe selects now.
        short: `Selection.shortfall`, and of each prompt ``samples`` (pictures a request), ``more``
            (int64: requests that its candidates allow) and ``why_none`` (str: why there is none
            more to ask for; null where there is).
        rejected: `Selection.rejected`, without what a prompt merely has too many of, and without
            prompts that are none of the dataset's (`Selection.excluded`).
        complete: prompts that have their pictures.
    """

    selection: Selection
    short: pd.DataFrame
    rejected: pd.DataFrame
    complete: int

    @property
    def most(self) -> int:
        """Images to buy if none passes, and none of them is in the bucket already."""
        return int((self.short["more"] * self.short["samples"]).sum())

    def cost(self, price: Decimal | None) -> Decimal | None:
        """What the most cost; None if the price is unknown."""
        return cost_of(self.most, price)


@dataclass(frozen=True)
class Drawn(Settled):
    """One partition of a derived prompt set, launched and measured."""

    features: RefreshedFeatures


_Round = tuple[prompt_set.PromptSet, pd.DataFrame, Mapping[str, Any], list[int]]
"""What is asked of one prompt set next: all prompts, with these parameters, under each seed."""


def stand(store: ObjectStore, recipe: Recipe) -> Standing:
    """See which prompts of a dataset miss pictures. Reads only.

    Raises:
        RecipeError: the recipe asks for no number, or for what is not there.
    """
    wanted = _wanted(recipe)
    latest = read_latest(store, recipe.name)
    selection = select(store, recipe, released_rows(store, latest))
    rejected = selection.rejected[selection.rejected["step"] != SURPLUS]
    excluded = pd.MultiIndex.from_frame(selection.excluded)
    rejected = rejected[
        ~pd.MultiIndex.from_frame(rejected[list(selection.excluded)]).isin(excluded)
    ]
    counted = selection.rows.groupby(["prompt_set", "prompt_id"]).size()
    parts = [
        _with_means(store, selection, str(name), short)
        for name, short in selection.shortfall.groupby("prompt_set", sort=False)
    ]
    nothing = selection.shortfall.assign(samples=0, more=0, why_none="")
    return Standing(
        selection=selection,
        short=pd.concat(parts, ignore_index=True) if parts else nothing,
        rejected=rejected.reset_index(drop=True),
        complete=int((counted == wanted.images).sum()),
    )


def top_up(
    store: ObjectStore,
    account: Account,
    recipe: Recipe,
    cap: Cap = Cap(),  # noqa: B008 - frozen
    *,
    run_id: Callable[[], str] = lambda: uuid.uuid4().hex,
    on_round: Callable[[Standing], None] = lambda _standing: None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Iterator[Drawn]:
    """Buy further candidates, a partition at a time, until each prompt has its pictures.

    First it brings what an earlier call has bought and not stored, at no cost. It stops early where
    a cap (of this call, or a configured one) is reached or the provider refuses the account (see
    `Report`), and where a round brought nothing; how far it came `stand` says.

    `run_id` names the run of each partition. `on_round` is called with what is missing before each
    round, and when there is none; the first is the quote. `on_progress` is called now and then from
    this thread.

    Raises:
        RecipeError: the recipe asks for no number, or for what is not there.
        PlanError: a partition cannot be launched: a bad cap, …
        PromptTableError: a prompt set is damaged, or a derived one would have too long a name.
    """
    _wanted(recipe)
    yield from _bring_home(store, account, recipe, run_id, on_progress)
    tried = -1
    while True:
        standing = stand(store, recipe)
        before, tried = tried, len(standing.selection.tried.drop_duplicates(CANDIDATE))
        on_round(standing)
        rounds = list(_rounds(store, standing))
        if not rounds or tried == before:
            return
        for origin, prompts, parameters, seeds in rounds:
            name = write_topup_set(store, recipe.name, origin, prompts, parameters)
            for seed in seeds:
                if cap.is_reached:
                    return
                launch = Launch(
                    name, seed, run_id(), parameters, max_images=cap.images, max_cost=cap.cost
                )
                drawn = _draw(store, account, launch, on_progress)
                yield drawn
                cap = cap.less(drawn.report.spent, account.budget.price)
                if drawn.report.halted or drawn.report.over_budget:
                    return


def _wanted(recipe: Recipe) -> PerPrompt:
    if recipe.per_prompt is None:
        raise RecipeError(
            f"{recipe.where('per_prompt')}: is not given, so that no picture is missing; say how "
            "many of each prompt there should be: per_prompt: {images: 4, candidates: 8}"
        )
    return recipe.per_prompt


def _with_means(
    store: ObjectStore, selection: Selection, name: str, short: pd.DataFrame
) -> pd.DataFrame:
    """Prompts of one set that miss pictures, with what may still be done for them."""
    _, prompts = _snapshot(store, name)
    rows = prompts.set_index("prompt_id").reindex(short["prompt_id"]).reset_index()
    rows.index = short.index
    empty = pd.Series(pd.NA, rows.index, dtype="Int64")
    samples = rows.get("samples", empty).fillna(_parameters(selection, name)["samples"])
    samples = samples.astype("int64")
    more = short["candidates_left"] // samples
    why = pd.Series(pd.NA, rows.index, dtype="str")
    why = why.mask(more == 0, "no candidate is left")
    why = why.mask(rows.get("seed", empty).notna(), "its row names the seed itself")
    why = why.mask(rows["prompt"] != short["prompt"], "the prompt set has another text by now")
    why = why.mask(rows["prompt"].isna(), "it is not in the prompt set any more")
    return short.assign(samples=samples, more=more.where(why.isna(), 0), why_none=why)


def _rounds(store: ObjectStore, standing: Standing) -> Iterator[_Round]:
    """What to ask for next: as many seeds as every prompt of a set still needs, so none too many.

    They are the first seeds from 1 on that none of the prompts was drawn under: pictures that
    others have bought under them cost nothing.
    """
    tried = standing.selection.tried
    able = standing.short[standing.short["more"] > 0]
    for name, short in able.groupby("prompt_set", sort=False):
        origin, prompts = _snapshot(store, str(name))
        chosen = prompts[prompts["prompt_id"].isin(short["prompt_id"])]
        theirs = (tried["prompt_set"] == name) & tried["prompt_id"].isin(short["prompt_id"])
        used = set(tried.loc[theirs, "seed"])
        requests = (short["missing"] / short["samples"]).map(math.ceil)
        count = int(requests.clip(upper=short["more"]).min())
        free = (seed for seed in itertools.count(1) if seed not in used)
        parameters = _parameters(standing.selection, str(name))
        yield origin, chosen, parameters, list(itertools.islice(free, count))


def _snapshot(store: ObjectStore, name: str) -> tuple[prompt_set.PromptSet, pd.DataFrame]:
    current = prompt_set.current(store, name)
    if current is None:
        raise RecipeError(f"the prompt set {name!r} has vanished from {store.uri('')}")
    return current, prompt_set.load(store, name, current.fingerprint)


def _parameters(selection: Selection, name: str) -> Mapping[str, Any]:
    """The picture parameters that the prompt set's last manifest was made with."""
    mine = [current for current in selection.manifests if current.prompt_set == name]
    return max(mine, key=lambda current: current.created).parameters


def _bring_home(
    store: ObjectStore,
    account: Account,
    recipe: Recipe,
    run_id: Callable[[], str],
    on_progress: Callable[[Progress], None] | None,
) -> Iterator[Drawn]:
    """Bring what an earlier call has bought and left, and measure what it has not. Buys nothing."""
    begins = topup_prefix(recipe.name)
    launched = list(read_all_current(store, begins))
    known = {(current.prompt_set, current.seed) for current in launched}
    left: dict[tuple[str, int], RunPlan | None] = {
        (current.prompt_set, current.seed): None for current in launched if current.gaps
    }
    for made in unfinished_plans(store):
        if made.prompt_set.startswith(begins) and (made.prompt_set, made.seed) not in known:
            left[made.prompt_set, made.seed] = made
    for (name, seed), last in left.items():
        launch = replace(relaunch(store, name, seed, run_id(), last), max_images=0)
        _, prompts = _snapshot(store, name)
        found = plan_cells(store, account, launch, prompts)
        if len(found.todo) or last is not None:
            yield _draw(store, account, launch, on_progress)
    for name, seed in known:
        features, _ = read_current_features(store, name, seed)
        if features is None:
            refresh_features(store, name, seed)


def _draw(
    store: ObjectStore,
    account: Account,
    launch: Launch,
    on_progress: Callable[[Progress], None] | None,
) -> Drawn:
    """Launch a partition and measure its pictures."""
    settled = settle_launch(store, account, launch, on_progress=on_progress)
    features = refresh_features(store, launch.prompt_set, launch.seed)
    return Drawn(settled.current, settled.report, features)
