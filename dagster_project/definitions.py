"""What Dagster loads."""

import warnings

import dagster as dg

# Partitions on checks are marked preview; without them a check has one status for all partitions.
warnings.filterwarnings("ignore", category=dg.PreviewWarning)

from dagster_project.assets.datasets import (  # noqa: E402
    dataset_assets,
    dataset_checks,
    recipes_here,
)
from dagster_project.assets.generated_images import generated_images  # noqa: E402
from dagster_project.assets.image_features import image_features  # noqa: E402
from dagster_project.assets.prompt_set import prompt_set  # noqa: E402
from dagster_project.buying import buy_new_prompt_sets, nightly  # noqa: E402
from dagster_project.checks import check_images, checks  # noqa: E402
from dagster_project.executors import executor  # noqa: E402
from dagster_project.jobs import (  # noqa: E402
    audit_bucket_job,
    rescue_run,
    resolve_doubts,
    retry_failed,
)
from dagster_project.quoting import quote_only  # noqa: E402
from dagster_project.resources import resources  # noqa: E402
from dagster_project.schedules import automation, releases, weekly_audit  # noqa: E402
from dagster_project.sensors import (  # noqa: E402
    new_prompt_tables,
    rescue,
    run_summary,
    webhook_inbox,
)
from dagster_project.top_up import top_up_dataset  # noqa: E402

__all__ = ["defs"]

recipes = recipes_here()

defs = dg.Definitions(
    assets=[prompt_set, generated_images, image_features, *dataset_assets(recipes)],
    asset_checks=[*checks, *dataset_checks(recipes)],
    jobs=[
        check_images,
        resolve_doubts,
        retry_failed,
        quote_only,
        rescue_run,
        audit_bucket_job,
        top_up_dataset,
    ],
    sensors=[
        new_prompt_tables,
        webhook_inbox,
        rescue,
        run_summary,
        buy_new_prompt_sets,
        *automation(recipes),
    ],
    schedules=[nightly, weekly_audit, *releases(recipes)],
    resources=resources(),
    executor=executor(),
)
