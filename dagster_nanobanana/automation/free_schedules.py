"""The schedules that buy nothing: the weekly audit and the daily releases."""

import dagster as dg

from dagster_nanobanana.assets.datasets import DATASETS, recipes_here
from dagster_nanobanana.automation.free_sensors import unset
from dagster_nanobanana.resources import NanobananaResource
from nanobanana_pipeline.datasets.input_fingerprint import read_input_status
from nanobanana_pipeline.datasets.recipe import Recipe

__all__ = ["releases", "weekly_audit"]

weekly_audit = dg.ScheduleDefinition(
    name="weekly_audit",
    job_name="audit_bucket",
    cron_schedule="0 4 * * 0",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description=(
        "Audits the bucket on Sundays at 04:00 UTC: everything that is written down, and 1,000 "
        "pictures read whole. Ships running, since it buys nothing; S3 is asked for each entry "
        "of the ledger."
    ),
)


def releases(recipes: list[Recipe]) -> list[dg.ScheduleDefinition]:
    """The schedule that builds releases, where there are recipes to build."""
    return [daily_releases] if recipes else []


@dg.schedule(
    target=DATASETS,
    cron_schedule="0 6 * * *",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.STOPPED,
    description=(
        "Builds a release, at 06:00 UTC, of each recipe whose manifests, features or own text "
        "have changed since it was last asked for here; one that finds nothing new publishes "
        "nothing. Recipes with missing cells wait. Buys nothing, and stores what is published: "
        "so it ships stopped, since publishing is somebody's decision. Start it here."
    ),
)
def daily_releases(
    context: dg.ScheduleEvaluationContext, nanobanana: NanobananaResource
) -> list[dg.RunRequest] | dg.SkipReason:
    """Ask for each recipe once with the same inputs."""
    if (reason := unset(nanobanana)) is not None:
        return reason
    store, requests = nanobanana.store(), []
    for recipe in recipes_here():
        inputs = read_input_status(store, recipe)
        if inputs.lacks:
            context.log.info(f"{recipe.name} waits: {'; '.join(inputs.lacks[:5])}")
            continue
        # Dagster launches a key once: the same inputs ask for nothing.
        requests.append(
            dg.RunRequest(
                run_key=f"{recipe.name}:{inputs.fingerprint}",
                asset_selection=[dg.AssetKey(["datasets", recipe.name])],
            )
        )
    return requests or dg.SkipReason("no recipe has all that it asks for")
