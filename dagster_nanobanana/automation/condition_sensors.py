"""The sensors that evaluate the assets' automation conditions."""

import dagster as dg

from dagster_nanobanana.assets.datasets import DATASETS
from nanobanana_pipeline.datasets.recipe import Recipe

__all__ = ["condition_sensors"]


def condition_sensors(recipes: list[Recipe]) -> list[dg.AutomationConditionSensorDefinition]:
    """Sensors that evaluate the conditions of features and, where there are recipes, releases."""
    features = dg.AutomationConditionSensorDefinition(
        "features_on_change",
        target=dg.AssetSelection.assets("image_features"),
        default_status=dg.DefaultSensorStatus.STOPPED,
        minimum_interval_seconds=60,
        description=(
            "Measures the features of each partition whose pictures have changed. Buys "
            "nothing, and takes this machine's time: so it ships stopped, as Dagster's own does. "
            "Start it here."
        ),
    )
    published = dg.AutomationConditionSensorDefinition(
        "releases_on_change",
        target=DATASETS,
        default_status=dg.DefaultSensorStatus.STOPPED,
        minimum_interval_seconds=60,
        description=(
            "Publishes a release as soon as features change and none of a recipe's partitions is "
            "missing; a recipe over all seeds waits for all of the grid. Buys nothing, and "
            "stores what is published: so it ships stopped. Start this, or the schedule "
            "daily_releases."
        ),
    )
    return [features, *([published] if recipes else [])]
