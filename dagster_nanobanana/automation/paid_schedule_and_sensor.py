"""Automation that spends money. All of it ships stopped, and none of it runs without a day's cap.

Start it in the UI under *Automation*, after setting NANOBANANA_MAX_IMAGES_PER_DAY (or
NANOBANANA_MAX_COST_PER_DAY with NANOBANANA_PRICE_PER_IMAGE). The cap holds in the engine, over all
runs and machines; what it leaves out is over budget, and bought by a later night.
"""

import itertools
from typing import Any, Final

import dagster as dg

from dagster_nanobanana.assets.datasets import recipes_here
from dagster_nanobanana.assets.generated_images import generated_images
from dagster_nanobanana.automation.free_sensors import unset
from dagster_nanobanana.partitions import PROMPTS, add_partitions, partition_key_of, seeds
from dagster_nanobanana.resources import NanobananaResource
from nanobanana_pipeline.datasets.topup_sets import is_topup_set
from nanobanana_pipeline.errors import PlanError
from nanobanana_pipeline.generation.manifest.manifest import list_partitions, read_current
from nanobanana_pipeline.generation.partition_backlog import Share, find_backlog, share_budget
from nanobanana_pipeline.generation.planning.cells import check_seed
from nanobanana_pipeline.generation.quote import room_today
from nanobanana_pipeline.money import Cap, cost_of, cost_text
from nanobanana_pipeline.wording import counted

__all__ = ["buy_new_prompt_sets", "nightly"]

LAUNCHES_A_NIGHT: Final = 100
SETS_A_TICK: Final = 5
SEEDS_A_SET: Final = 20
NO_CAP: Final = (
    "this buys by itself, and there is no cap on a day: set NANOBANANA_MAX_IMAGES_PER_DAY, or "
    "NANOBANANA_MAX_COST_PER_DAY and NANOBANANA_PRICE_PER_IMAGE"
)


@dg.schedule(
    target=generated_images,
    cron_schedule="0 22 * * *",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.STOPPED,
    description=(
        "Buys what is missing, at 22:00 UTC, with what the day's budget has left. Launches only "
        "partitions with missing cells, as they were launched before: first those that recipes "
        "list by seed, also if they are new; then those that lack fewest cells. Each run is capped "
        f"at its share of the room, at most {LAUNCHES_A_NIGHT} runs. Costs money, up to the "
        "day's cap; without such a cap it launches nothing. Ships stopped: set "
        "NANOBANANA_MAX_IMAGES_PER_DAY, then start it here."
    ),
)
def nightly(
    context: dg.ScheduleEvaluationContext, nanobanana: NanobananaResource
) -> list[dg.RunRequest] | dg.SkipReason:
    """Deal out the day's room over what is missing."""
    if (reason := unset(nanobanana)) is not None:
        return reason
    settings, store = nanobanana.settings(), nanobanana.store()
    budget = settings.budget
    spent, room = room_today(store, budget)
    if room is None:
        return dg.SkipReason(NO_CAP)
    if room == 0:
        used = counted(spent.images_counted, "image")
        return dg.SkipReason(f"the day's cap of {budget.day} is reached: {used}")
    named = [
        (name, seed)
        for recipe in recipes_here()
        for name in recipe.prompt_sets
        for seed in (() if recipe.seeds == "all" else recipe.seeds)
    ]
    backlog = find_backlog(store, named)
    dealt = share_budget(store, nanobanana.account(), backlog, room)
    shares = list(itertools.islice(dealt, LAUNCHES_A_NIGHT))
    if not shares:
        return dg.SkipReason("nothing is missing that a launch could bring")
    images = sum(share.max_images for share in shares)
    context.log.info(
        f"launched: {len(shares):,} of {counted(len(backlog), 'partition')} with cells missing, "
        f"for {counted(images, 'image')} at {cost_text(cost_of(images, budget.price))}; today has "
        f"room for {room:,}"
    )
    # What the command line has launched, or a recipe lists, may be no partition of Dagster's yet.
    sets = sorted({share.backlog.prompt_set for share in shares})
    add_partitions(context.instance, sets, sorted({share.backlog.seed for share in shares}))
    day = context.scheduled_execution_time.date().isoformat()
    return [_request(share, place, day) for place, share in enumerate(shares)]


@dg.sensor(
    target=generated_images,
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.STOPPED,
    description=(
        "Buys the pictures of every prompt set that is new or has changed since this was started, "
        f"under the seed partitions there are (the {SEEDS_A_SET} smallest at most, without those "
        f"that only a top-up has drawn under); a pilot's limit stays. At most {SETS_A_TICK} prompt "
        "sets a tick. Costs money, up to the day's cap; without such a cap it launches nothing. "
        "Ships stopped: set NANOBANANA_MAX_IMAGES_PER_DAY, then start it here."
    ),
)
def buy_new_prompt_sets(
    context: dg.SensorEvaluationContext, nanobanana: NanobananaResource
) -> dg.SkipReason | dg.SensorResult:
    """Launch each new snapshot once under each seed."""
    if (reason := unset(nanobanana)) is not None:
        return reason
    if nanobanana.settings().budget.day == Cap():
        return dg.SkipReason(NO_CAP)
    if context.cursor is None:
        latest = context.instance.fetch_materializations(PROMPTS, limit=1).records
        after = latest[0].storage_id if latest else 0
        text = "prompt sets that are materialized from now on are bought"
        return dg.SensorResult(skip_reason=text, cursor=str(after))
    records = context.instance.fetch_materializations(
        dg.AssetRecordsFilter(asset_key=PROMPTS, after_storage_id=int(context.cursor)),
        limit=SETS_A_TICK,
        ascending=True,
    ).records
    if not records:
        return dg.SkipReason("no prompt set is new")
    chosen = _seeds(context, nanobanana)
    if not chosen:
        return dg.SkipReason("there is no seed yet: add a partition such as 1 to generated_images")
    requests = []
    for record in records:
        name = str(record.partition_key)
        made = record.asset_materialization
        version = (made.tags or {}).get("dagster/data_version", "") if made else ""
        requests += _launches(nanobanana, name, version, chosen)
    unchanged = counted(len(records), "prompt set", "is")
    text = f"{unchanged} unchanged since the pictures were bought"
    return dg.SensorResult(
        run_requests=requests,
        skip_reason=None if requests else text,
        cursor=str(records[-1].storage_id),
    )


def _request(share: Share, place: int, day: str) -> dg.RunRequest:
    backlog = share.backlog
    key = partition_key_of(backlog.prompt_set, backlog.seed)
    # Of runs that wait in Dagster's queue the one with the highest priority goes first.
    tags = {"dagster/priority": str(-place), "nanobanana/automation": "nightly"}
    config: dict[str, Any] = {"max_images": share.max_images, "limit": backlog.limit}
    return dg.RunRequest(
        run_key=f"nightly:{day}:{key}", partition_key=key, run_config=_config(config), tags=tags
    )


def _launches(
    nanobanana: NanobananaResource, name: str, version: str, chosen: list[int]
) -> list[dg.RunRequest]:
    store, requests = nanobanana.store(), []
    for seed in chosen:
        current, _ = read_current(store, name, seed)
        if current is not None and current.fingerprint == version:
            continue
        key = partition_key_of(name, seed)
        limit = current.limit if current else None
        requests.append(
            dg.RunRequest(
                run_key=f"{key}:{version}",
                partition_key=key,
                run_config=_config({"limit": limit}),
                tags={"nanobanana/automation": "buy_new_prompt_sets"},
            )
        )
    return requests


def _seeds(context: dg.SensorEvaluationContext, nanobanana: NanobananaResource) -> list[int]:
    """The smallest seeds of the instance, without those that nobody added and those not for sale.

    A top-up adds the seeds that it draws a few prompts under; what is left out is told.
    """
    found = []
    for key in context.instance.get_dynamic_partitions(str(seeds.name)):
        try:
            found.append(check_seed(int(key)))
        except (ValueError, PlanError) as error:
            context.log.warning(f"seed partition {key!r} is left out: {error}")
    drawn = set(list_partitions(nanobanana.store()))
    asked = {seed for name, seed in drawn if not is_topup_set(name)}
    only_topped_up = {seed for _, seed in drawn} - asked
    left_out = sorted(only_topped_up.intersection(found))
    if left_out:
        context.log.info(f"seeds that only top-ups have drawn under are left out: {left_out}")
        found = [seed for seed in found if seed not in only_topped_up]
    if len(found) > SEEDS_A_SET:
        context.log.warning(f"of {len(found):,} seeds the {SEEDS_A_SET} smallest are bought")
    return sorted(found)[:SEEDS_A_SET]


def _config(config: dict[str, Any]) -> dict[str, Any]:
    given = {name: value for name, value in config.items() if value is not None}
    return {"ops": {"generated_images": {"config": given}}}
