"""What the pictures of one prompt set under one seed look like."""

import time
from functools import partial
from typing import Any

import dagster as dg

from dagster_nanobanana.assets.conditions import on_changed_inputs
from dagster_nanobanana.assets.generated_images import progress_log
from dagster_nanobanana.failures import plain_failures
from dagster_nanobanana.partitions import grid, read_partition_key
from dagster_nanobanana.presentation.columns import FEATURES_METADATA
from dagster_nanobanana.presentation.pictures_and_plots import STRIP_PICTURES, shown_picture
from dagster_nanobanana.presentation.tables import sample_table
from dagster_nanobanana.resources import NanobananaResource
from dagster_nanobanana.step_lineage import recorded_step
from nanobanana_pipeline.features.table import RefreshedFeatures, refresh_features
from nanobanana_pipeline.lineage.openlineage.run_facts import features_complete, features_start
from nanobanana_pipeline.settings import Settings
from nanobanana_pipeline.storage import ObjectStore
from nanobanana_pipeline.wording import counted

__all__ = ["image_features"]

FIGURES = ["mean", "entropy", "sharpness"]
FEATURE_COLUMNS_SHOWN = ["prompt", *FIGURES, "blank", "phash", "error"]


@dg.asset(
    partitions_def=grid,
    deps=["generated_images"],
    group_name="features",
    kinds={"pillow", "s3", "parquet"},
    owners=["team:data"],
    tags={"cost": "free"},
    metadata=FEATURES_METADATA,
    code_version="1",
    automation_condition=on_changed_inputs,
    description=(
        "Size, luminance, entropy, sharpness, perceptual hash, provenance marks and a thumbnail "
        "of every distinct picture of a partition, measured from all its pixels, and a contact "
        "sheet. Pictures that were measured before are not decoded again. **Costs nothing.**"
    ),
)
def image_features(
    context: dg.AssetExecutionContext, nanobanana: NanobananaResource
) -> dg.MaterializeResult[None]:
    """Measure what is new, and publish the table."""
    start, log = time.monotonic(), progress_log(context)

    def on_progress(pictures: int, measured: int) -> None:
        seconds = time.monotonic() - start
        log(seconds, f"{measured:,} of {counted(pictures, 'picture')} measured in {seconds:.0f} s")

    with plain_failures():
        name, seed = read_partition_key(context.partition_key)
        store = nanobanana.store()
        begin = partial(features_start, store, name, seed)
        with recorded_step(context, store, "image_features", begin) as recording:
            done = refresh_features(store, name, seed, on_progress)
            recording.set_facts(partial(features_complete, store, done))
    if done.gaps:
        context.log.warning(
            f"{counted(done.gaps, 'cell', 'has')} no picture yet: launch "
            "generated_images again, then this"
        )
    if done.current.errors:
        context.log.warning(
            f"{counted(done.current.errors, 'picture')} could not be measured: see the column error"
        )
    return dg.MaterializeResult(
        data_version=dg.DataVersion(done.current.content),
        metadata=_metadata(store, nanobanana.settings(), done)
        | {"seconds": round(time.monotonic() - start, 1)},
    )


def _metadata(store: ObjectStore, settings: Settings, done: RefreshedFeatures) -> dict[str, Any]:
    current, rows = done.current, done.rows
    # The sheet is drawn anew under the same key where the features change.
    sheet = settings.preview_of(current.sheet, current.content[:12]) if current.sheet else None
    thumbnails = rows["thumbnail"].dropna().head(STRIP_PICTURES)
    # Those that want looking at come first.
    first = rows.sort_values(["error", "blank"], ascending=[True, False], kind="stable")[
        FEATURE_COLUMNS_SHOWN
    ]
    first[FIGURES] = first[FIGURES].astype("float64").round(2)
    return {
        "contact sheet": shown_picture("the first pictures", sheet, lambda: list(thumbnails)),
        "measured now": done.measured,
        "taken over": current.rows - done.measured,
        "blank": current.blank,
        "not measurable": current.errors,
        "missing cells": done.gaps,
        "contact sheet lies at": store.uri(current.sheet) if current.sheet else "none",
        "dagster/uri": store.uri(current.table),
        "dagster/row_count": current.rows,
        "dagster/column_schema": FEATURES_METADATA["dagster/column_schema"],
        "rows": sample_table(first),
    }
