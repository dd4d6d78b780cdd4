"""The job that buys what a dataset's prompts miss. Nothing starts it by itself."""

from collections.abc import Iterator
from decimal import Decimal
from functools import partial
from typing import Any

import dagster as dg
from pydantic import Field

from dagster_nanobanana.assets.datasets import recipes_here
from dagster_nanobanana.failures import plain_failures
from dagster_nanobanana.jobs.partition_events import run_ids, show_settled
from dagster_nanobanana.launch_config import amount_of
from dagster_nanobanana.partitions import FEATURES, PROMPTS, add_partitions, partition_key_of
from dagster_nanobanana.presentation.tables import TABLE_ROWS, sample_table
from dagster_nanobanana.resources import NanobananaResource
from dagster_nanobanana.run_watch import RunWatch
from dagster_nanobanana.step_lineage import recorded_step
from nanobanana_pipeline.datasets.recipe import Recipe, near_matches
from nanobanana_pipeline.datasets.top_up import Drawn, Standing, stand, top_up
from nanobanana_pipeline.errors import PlanError, RecipeError
from nanobanana_pipeline.features.table import RefreshedFeatures, refresh_features
from nanobanana_pipeline.generation.manifest.manifest import list_partitions
from nanobanana_pipeline.lineage.openlineage.run_facts import RelaunchReason, relaunch_complete
from nanobanana_pipeline.money import Cap, cost_of, cost_text
from nanobanana_pipeline.prompts import prompt_set
from nanobanana_pipeline.storage import ObjectStore
from nanobanana_pipeline.wording import counted

__all__ = ["top_up_dataset"]


class TopUpConfig(dg.Config):
    """Which dataset, and how much it may cost."""

    recipe: str = Field(
        description="The dataset's name, as its recipe says; the recipe has per_prompt."
    )
    max_images: int = Field(ge=1, description="The budget: buy at most so many images.")
    max_cost: str | None = Field(
        None,
        description="Spend at most so much, in the currency of NANOBANANA_PRICE_PER_IMAGE.",
    )


@dg.op(
    out=dg.Out(dg.Nothing),
    description=(
        "Measures what is not measured yet of the recipe's pictures. Draws the prompts that miss "
        "pictures under further seeds, measures what comes and selects again, until each has as "
        "many as the recipe asks for, has used its candidates, or max_images is reached. **Costs "
        "money: one request a prompt and further seed, up to max_images.** Its log says what it "
        "may buy, before it does."
    ),
)
def buy_further_candidates(
    context: dg.OpExecutionContext, config: TopUpConfig, nanobanana: NanobananaResource
) -> Iterator[Any]:
    """Buy, show every partition on its assets' pages, and account for every rejection."""
    with plain_failures():
        recipe, cost = _recipe_of(config.recipe), amount_of(config.max_cost)
        if cost is not None and not (cost.is_finite() and cost > 0):
            raise PlanError(f"max_cost {config.max_cost} is out of range: use an amount above 0")
        cap = Cap(config.max_images, cost)
        store, account = nanobanana.store(), nanobanana.account()
        price = account.budget.price
        spent, halted = 0, None
        _measure(context, store, recipe)
        yield from context.consume_events()

        def tell(standing: Standing) -> None:
            context.log.info(
                f"{counted(standing.complete, 'prompt', 'has')} all pictures, "
                f"{len(standing.short):,} short by "
                f"{counted(standing.selection.missing, 'picture')} together; "
                f"at most {counted(standing.most, 'image')} to buy, "
                "less what is bought already under those seeds; cost at most: "
                f"{cost_text(standing.cost(price))}; the budget of this run: {cap}"
            )

        names = run_ids(context.run_id, "top-up")
        done = []
        with recorded_step(context, store, "top_up_dataset") as recording:
            watch = RunWatch(context).look
            for drawn in top_up(
                store, account, recipe, cap, run_id=names, on_round=tell, on_progress=watch
            ):
                done.append(drawn)
                _show_drawn(context, store, drawn, price)
                # Dagster drops what is only logged where a step fails later.
                yield from context.consume_events()
                spent += drawn.report.spent
                halted = halted or drawn.report.halted
            recording.set_facts(
                partial(relaunch_complete, store, done, price, reason=RelaunchReason.TOP_UP)
            )
        standing = stand(store, recipe)
    paid = cost_text(cost_of(spent, price))
    metadata = _metadata(standing) | {"images bought": spent, "cost": paid}
    if halted:
        raise dg.Failure(f"stopped early: {halted}", metadata=metadata, allow_retries=False)
    if len(standing.short):
        context.log.warning(
            f"{counted(len(standing.short), 'prompt', 'is')} short by "
            f"{counted(standing.selection.missing, 'picture')} together; the table says which may "
            "have more candidates: launch again with a budget for them"
        )
    yield dg.Output(None, metadata=metadata)


@dg.job(
    description=(
        "Buy further candidates for a dataset that asks for a number of pictures of each prompt, "
        "within a budget you name. Costs money, up to that budget. Launching it again goes on, and "
        "buys nothing twice. Nothing starts it by itself: launch it from the launchpad."
    )
)
def top_up_dataset() -> None:
    """One op: each round follows from the one before."""
    buy_further_candidates()


def _show_drawn(
    context: dg.OpExecutionContext, store: ObjectStore, drawn: Drawn, price: Decimal | None
) -> None:
    """Add a partition's keys, and put what became of it on its three assets' pages."""
    current = drawn.current
    add_partitions(context.instance, [current.prompt_set], [current.seed])
    kept = prompt_set.current(store, current.prompt_set)
    if kept is not None:
        # Seen, and not made: what is made is bought under all seeds where a sensor is told to.
        metadata: dict[str, Any] = {
            "dagster/row_count": kept.rows,
            "fingerprint": kept.fingerprint,
            "source": kept.source,
        }
        context.log_event(dg.AssetObservation(PROMPTS, partition=kept.name, metadata=metadata))
    show_settled(context, store, drawn, price)
    _show_measured(context, store, drawn.features)


def _measure(context: dg.OpExecutionContext, store: ObjectStore, recipe: Recipe) -> None:
    """Measure the recipe's own partitions, as materializing image_features would."""
    for name in recipe.prompt_sets:
        for _, seed in list_partitions(store, f"{name}/"):
            if recipe.seeds != "all" and seed not in recipe.seeds:
                continue
            done = refresh_features(store, name, seed)
            if done.measured:
                pictures = counted(done.measured, "picture", "was")
                context.log.info(f"{name}, seed {seed}: {pictures} not measured yet: done now")
                _show_measured(context, store, done)


def _show_measured(
    context: dg.OpExecutionContext, store: ObjectStore, features: RefreshedFeatures
) -> None:
    current = features.current
    metadata: dict[str, Any] = {
        "measured now": features.measured,
        "blank": current.blank,
        "not measurable": current.errors,
        "dagster/uri": store.uri(current.table),
        "dagster/row_count": current.rows,
    }
    partition = partition_key_of(current.prompt_set, current.seed)
    tags = {"dagster/data_version": current.content}
    event = dg.AssetMaterialization(FEATURES, partition=partition, metadata=metadata, tags=tags)
    context.log_event(event)


def _metadata(standing: Standing) -> dict[str, Any]:
    rejected = standing.rejected
    counted = rejected["reason"].value_counts().rename_axis("reason").reset_index(name="pictures")
    shown = ["prompt_set", "prompt_id", "prompt", "seed", "reason"]
    return {
        "prompts complete": standing.complete,
        "prompts short": len(standing.short),
        "pictures missing": standing.selection.missing,
        "short": sample_table(standing.short, TABLE_ROWS),
        "rejected": sample_table(rejected[shown], TABLE_ROWS),
        "reasons": sample_table(counted, TABLE_ROWS),
    }


def _recipe_of(name: str) -> Recipe:
    known = {recipe.name: recipe for recipe in recipes_here()}
    if name not in known:
        hint = near_matches(name, known) if known else "recipes/ holds none"
        raise RecipeError(f"there is no recipe {name!r}; {hint}")
    return known[name]
