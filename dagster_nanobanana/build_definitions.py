"""All that Dagster shows: `build_definitions`."""

import warnings

import dagster as dg

# Partitions on checks are marked preview; without them a check has one status for all partitions.
warnings.filterwarnings("ignore", category=dg.PreviewWarning)

from dagster_nanobanana.assets.datasets import dataset_assets, dataset_checks, recipes_here
from dagster_nanobanana.assets.generated_images import generated_images
from dagster_nanobanana.assets.image_features import image_features
from dagster_nanobanana.assets.prompt_set import prompt_set
from dagster_nanobanana.automation.condition_sensors import condition_sensors
from dagster_nanobanana.automation.free_schedules import releases, weekly_audit
from dagster_nanobanana.automation.free_sensors import (
    new_prompt_tables,
    rescue_sensor,
    run_summary,
    webhook_inbox,
)
from dagster_nanobanana.automation.paid_schedule_and_sensor import buy_new_prompt_sets, nightly
from dagster_nanobanana.checks.asset_checks import checks
from dagster_nanobanana.executor import executor
from dagster_nanobanana.jobs.audit_bucket import audit_bucket_job
from dagster_nanobanana.jobs.check_partition import check_images
from dagster_nanobanana.jobs.quote_only import quote_only
from dagster_nanobanana.jobs.reconcile_books import reconcile_books
from dagster_nanobanana.jobs.rescue_run import rescue_run
from dagster_nanobanana.jobs.resolve_doubts import resolve_doubts
from dagster_nanobanana.jobs.retry_failed import retry_failed
from dagster_nanobanana.jobs.top_up_dataset import top_up_dataset
from dagster_nanobanana.resources import resources

__all__ = ["build_definitions"]


def build_definitions() -> dg.Definitions:
    """Assets, checks, jobs, sensors and schedules, with the recipes of the working directory."""
    recipes = recipes_here()
    return dg.Definitions(
        assets=[prompt_set, generated_images, image_features, *dataset_assets(recipes)],
        asset_checks=[*checks, *dataset_checks(recipes)],
        jobs=[
            check_images,
            resolve_doubts,
            retry_failed,
            quote_only,
            rescue_run,
            audit_bucket_job,
            reconcile_books,
            top_up_dataset,
        ],
        sensors=[
            new_prompt_tables,
            webhook_inbox,
            rescue_sensor,
            run_summary,
            buy_new_prompt_sets,
            *condition_sensors(recipes),
        ],
        schedules=[nightly, weekly_audit, *releases(recipes)],
        resources=resources(),
        executor=executor(),
    )
