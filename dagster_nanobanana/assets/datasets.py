"""One asset a recipe: a file under `recipes/` is all it takes."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import pyarrow as pa

from dagster_nanobanana.assets.conditions import on_changed_inputs
from dagster_nanobanana.failures import plain_failures
from dagster_nanobanana.partitions import partition_key_of
from dagster_nanobanana.presentation.columns import RELEASES_METADATA
from dagster_nanobanana.presentation.pictures_and_plots import STRIP_PICTURES, plot, shown_picture
from dagster_nanobanana.presentation.tables import sample_table
from dagster_nanobanana.resources import NanobananaResource
from dagster_nanobanana.step_lineage import recorded_step
from nanobanana_pipeline.bucket_keys import release_key
from nanobanana_pipeline.datasets.formats.gallery import GALLERY
from nanobanana_pipeline.datasets.publish import build_release, samples_path
from nanobanana_pipeline.datasets.pull import verify
from nanobanana_pipeline.datasets.recipe import Recipe, load_recipes
from nanobanana_pipeline.datasets.release import MANIFEST, Release, read_latest, read_release_table
from nanobanana_pipeline.datasets.row_images import read_thumbnails
from nanobanana_pipeline.datasets.selection import Selection, empty_splits, released_rows, select
from nanobanana_pipeline.datasets.splits import find_leaks
from nanobanana_pipeline.lineage.openlineage.run_facts import release_complete, release_start
from nanobanana_pipeline.settings import Settings
from nanobanana_pipeline.storage import ObjectStore
from nanobanana_pipeline.wording import counted

__all__ = ["DATASETS", "dataset_assets", "dataset_checks", "recipes_here"]

GROUP = "datasets"
DATASETS = dg.AssetSelection.groups(GROUP)

RECIPES_FOLDER = Path("recipes")
NO_LEAKS, READABLE = "no_leaks", "readable"
NO_LEAKS_SAYS = (
    "No prompt, reference or look of the latest release is in two of its splits. Buys nothing."
)
READABLE_SAYS = (
    "Every file of the latest release is there, and is what was published. Buys nothing, and reads "
    "all of it from S3."
)
RELEASE_COLUMNS_SHOWN = [
    "row_id",
    "split",
    "prompt",
    "seed",
    "sample",
    "width",
    "height",
    "image_sha256",
]


def recipes_here() -> list[Recipe]:
    """The recipes of the working directory; none where it has no such folder.

    Raises:
        RecipeError: one of them is faulty: its file, line and field are named.
    """
    return load_recipes(RECIPES_FOLDER) if RECIPES_FOLDER.is_dir() else []


def dataset_assets(recipes: list[Recipe]) -> list[dg.AssetsDefinition]:
    """An asset for each recipe."""
    return [_asset(recipe) for recipe in recipes]


def dataset_checks(recipes: list[Recipe]) -> list[dg.AssetChecksDefinition]:
    """Checks of each recipe's latest release, on its own files."""
    return [_checks(recipe) for recipe in recipes]


def _asset(recipe: Recipe) -> dg.AssetsDefinition:
    @dg.asset(
        key=_key(recipe),
        deps=[dg.AssetDep("image_features", partition_mapping=_partitions(recipe))],
        group_name=GROUP,
        kinds={"s3", str(recipe.formats[0])},
        owners=["team:data"],
        tags={"cost": "free"},
        metadata=RELEASES_METADATA,
        code_version=recipe.fingerprint[:16],
        automation_condition=on_changed_inputs,
        description=(
            f"{recipe.description}\n\nEach materialization is a release of what the recipe selects "
            "then: an immutable version under its fingerprint, which takes unchanged shards over "
            "from the one before. With nothing new no release is made. **Costs nothing.**"
        ),
    )
    def dataset(
        context: dg.AssetExecutionContext, nanobanana: NanobananaResource
    ) -> dg.MaterializeResult[None]:
        with plain_failures():
            store = nanobanana.store()
            begin = partial(release_start, recipe)
            with recorded_step(context, store, f"datasets.{recipe.name}", begin) as recording:
                latest = read_latest(store, recipe.name)
                chosen = select(store, recipe, released_rows(store, latest))
                manifests = chosen.manifests
                release = build_release(
                    store, recipe, chosen.rows, chosen.rejected, parent=latest, manifests=manifests
                )
                recording.set_facts(partial(release_complete, store, recipe, manifests, release))
            metadata = _metadata(store, nanobanana.settings(), release, chosen)
        if latest is not None and release.version == latest.version:
            context.log.info(f"nothing has changed since {release.version}: no release was made")
        for warning in empty_splits(recipe, chosen.rows):
            context.log.warning(warning)
        if chosen.missing:
            context.log.warning(
                f"{counted(chosen.missing, 'picture', 'is')} missing to what per_prompt asks for"
            )
        version = dg.DataVersion(release.fingerprint)
        return dg.MaterializeResult(data_version=version, metadata=metadata)

    return dataset


def _metadata(
    store: ObjectStore, settings: Settings, release: Release, chosen: Selection
) -> dict[str, Any]:
    rejected = chosen.rejected["reason"].value_counts().rename_axis("reason").reset_index()
    splits = pd.DataFrame(release.splits.items(), columns=["split", "rows"])
    return {
        "version": release.version,
        "gallery": _gallery(store, settings, release),
        "split sizes": plot("pictures of each split", release.splits),
        "resolution": plot("pictures of each size in pixels", _sizes(chosen.rows)),
        "flags": plot("pictures with each flag", _flags(chosen.rows)),
        **{
            f"samples of {split}": _samples(store, settings, release, str(split), rows)
            for split, rows in chosen.rows.groupby("split")
        },
        "dagster/row_count": release.rows,
        "dagster/uri": store.uri(release_key(release.name, release.version, "")),
        "images": release.images,
        "bytes of images": release.size,
        "splits": sample_table(splits),
        "files": sample_table(_files(release), rows=50),
        "selection": sample_table(chosen.steps, rows=50),
        "left out": sample_table(rejected, rows=20),
        "changes": dg.MetadataValue.json(dict(release.changes))
        if release.parent
        else "none: the first version",
        "rows": sample_table(
            chosen.rows[[name for name in RELEASE_COLUMNS_SHOWN if name in chosen.rows]]
        ),
    }


def _files(release: Release) -> pd.DataFrame:
    """Each format's files: a shard's pictures count once, however many files it has."""
    files = pd.DataFrame(
        [(str(f.format), f.split, f.shard, f.rows, f.size) for f in release.files],
        columns=["format", "split", "shard", "pictures", "bytes"],
    )
    parts = ["format", "split"]
    shards = files.dropna(subset="shard").drop_duplicates([*parts, "shard"])
    sizes = files.groupby(parts, dropna=False)["bytes"].agg(files="size", bytes="sum")
    pictures = shards.groupby(parts)["pictures"].sum().astype("Int64")
    table: pd.DataFrame = sizes.join(pictures).reset_index()
    return table[[*parts, "files", "pictures", "bytes"]]


def _gallery(store: ObjectStore, settings: Settings, release: Release) -> dg.MetadataValue | str:
    key = _key_of(release, GALLERY)
    address = settings.preview_of(key) if key else None
    if address is not None:
        return dg.MetadataValue.url(address)
    return store.uri(key) if key else "none: this release is older than galleries"


def _samples(
    store: ObjectStore, settings: Settings, release: Release, split: str, rows: pd.DataFrame
) -> dg.MetadataValue:
    key = _key_of(release, samples_path(split))
    first = rows.head(STRIP_PICTURES)
    return shown_picture(
        f"some pictures of {split}",
        settings.preview_of(key) if key else None,
        lambda: list(read_thumbnails(store, pa.Table.from_pandas(first)).values()),
    )


def _key_of(release: Release, path: str) -> str | None:
    return next((file.key for file in release.files if file.path == path), None)


def _sizes(rows: pd.DataFrame) -> dict[str, int]:
    sizes = rows["width"].astype("str") + " × " + rows["height"].astype("str")
    return {str(size): int(count) for size, count in sizes.value_counts().items()}


def _flags(rows: pd.DataFrame) -> dict[str, int]:
    marks = rows["provenance"].str.split().explode().value_counts()
    other = rows["seed_reported"].notna() & (rows["seed_reported"] != rows["seed_asked"])
    return {
        "near-uniform": int(rows["blank"].sum()),
        "another seed reported": int(other.sum()),
        "no provenance mark": int(rows["provenance"].isna().sum()),
        **{f"bears {mark}": int(count) for mark, count in marks.items()},
    }


def _checks(recipe: Recipe) -> dg.AssetChecksDefinition:
    """Both in one op: a hundred recipes load in time, and each can still be run alone."""
    asset = _key(recipe)

    @dg.multi_asset_check(
        name=f"check_{recipe.name}",
        specs=[
            dg.AssetCheckSpec(NO_LEAKS, asset=asset, description=NO_LEAKS_SAYS),
            dg.AssetCheckSpec(READABLE, asset=asset, description=READABLE_SAYS),
        ],
        can_subset=True,
    )
    def check_release(
        context: dg.AssetCheckExecutionContext, nanobanana: NanobananaResource
    ) -> Iterator[dg.AssetCheckResult]:
        for key in sorted(context.selected_asset_check_keys):
            with plain_failures():
                store = nanobanana.store()
                release = read_latest(store, recipe.name)
                if release is None:
                    passed, found = True, {}
                elif key.name == NO_LEAKS:
                    leaks = find_leaks(
                        read_release_table(store, release, MANIFEST), recipe.splits.near
                    )
                    passed, found = leaks.empty, _shown("leaks", leaks)
                else:
                    faults = pd.DataFrame([vars(fault) for fault in verify(store, release)])
                    passed, found = faults.empty, _shown("faults", faults)
                about: dict[str, Any] = {}
                if release is not None:
                    gallery = _gallery(store, nanobanana.settings(), release)
                    about = {"version": release.version, "gallery": gallery}
                    about["files"] = len(release.files)
            yield dg.AssetCheckResult(
                asset_key=asset,
                check_name=key.name,
                passed=passed,
                description=None if release else "Nothing was looked at: there is no release yet.",
                metadata={**about, **found},
            )

    return check_release


def _shown(what: str, bad: pd.DataFrame) -> dict[str, Any]:
    return {} if bad.empty else {what: sample_table(bad, rows=20)}


def _key(recipe: Recipe) -> dg.AssetKey:
    return dg.AssetKey(["datasets", recipe.name])


def _partitions(recipe: Recipe) -> dg.PartitionMapping:
    """The partitions that a recipe reads: those it lists, else all there are."""
    # With per_prompt it reads derived ones too, whose names nobody knows beforehand.
    if recipe.seeds == "all" or recipe.per_prompt:
        return dg.AllPartitionMapping()
    keys = [partition_key_of(name, seed) for name in recipe.prompt_sets for seed in recipe.seeds]
    return dg.SpecificPartitionsPartitionMapping(keys)
