"""What each kind of run tells of itself (`told`), before it begins and once it is over.

Everything here is light to import: OpenLineage is loaded when a run is recorded, and not before.
"""

import io
from collections.abc import Iterable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pyarrow.parquet as pq

from nanobanana_pipeline.bucket_keys import features_prefix, manifest_prefix, prompt_set_key
from nanobanana_pipeline.datasets.recipe_inputs import ROW_COLUMNS
from nanobanana_pipeline.features import table as features_table
from nanobanana_pipeline.generation.manifest import manifest
from nanobanana_pipeline.lineage.told import Check, Dataset, Figures, Origin, Told
from nanobanana_pipeline.money import cost_of
from nanobanana_pipeline.prompts import prompt_set
from nanobanana_pipeline.prompts.checked_prompts import REFERENCE, REFERENCE_HASHES
from nanobanana_pipeline.request import TABLE_FIELDS

if TYPE_CHECKING:
    from nanobanana_pipeline.datasets.recipe import Recipe
    from nanobanana_pipeline.datasets.release import Release
    from nanobanana_pipeline.features.table import Refreshed
    from nanobanana_pipeline.generation.engine.engine import Report
    from nanobanana_pipeline.generation.manifest.manifest import CurrentManifest
    from nanobanana_pipeline.generation.planning.run_files import RunPlan
    from nanobanana_pipeline.generation.recovery.relaunch import Settled
    from nanobanana_pipeline.prompts.checked_prompts import CheckedPrompts
    from nanobanana_pipeline.prompts.prompt_set import PromptSet
    from nanobanana_pipeline.storage import ObjectStore

__all__ = [
    "features_begin",
    "features_refreshed",
    "launch_begins",
    "launch_collected",
    "launch_planned",
    "launched_again",
    "release_begins",
    "release_built",
    "table_begins",
    "table_snapshotted",
]

MAX_ORIGINS: Final = 25
"""Partitions of a release for which its columns' origins are told: each names every column."""
MEASURED: Final = "measured from the picture's pixels"
DRAWN: Final = "what came of the request, which is made of these columns"
KEY: Final = "SHA-256 of the canonical request, which is made of these columns"
CHECKED: Final = "checked and brought to one spelling"


def table_begins(name: str, source: str) -> Told:
    """A prompt table is about to be read.

    Args:
        name: the prompt set's.
        source: path or URL of the table.
    """
    return Told(inputs=(Dataset(_uri_of(source)),), facet={"promptSet": name})


def table_snapshotted(store: "ObjectStore", checked: "CheckedPrompts", made: "PromptSet") -> Told:
    """A prompt table has become a prompt set."""
    table = _uri_of(checked.source)
    columns = {str(name): (str(kind), "") for name, kind in checked.prompts.dtypes.items()}
    kept = [name for name in columns if name not in {"prompt_id", REFERENCE_HASHES}]
    origins = {name: (Origin(table, name, CHECKED),) for name in kept}
    if REFERENCE_HASHES in columns:
        how = "SHA-256 of the pictures' bytes"
        origins[REFERENCE_HASHES] = (Origin(table, REFERENCE, how),)
    output = Dataset(
        store.uri(prompt_set_key(made.name, "").rstrip("/")),
        version=made.fingerprint,
        columns=columns,
        origins=origins,
        metrics={
            "prompt_id": Figures(made.rows, 0, made.rows),
            "prompt": Figures(made.rows, 0),
        },
        rows=made.rows,
        checks=(_none("quarantine_empty", made.quarantined),),
    )
    facet = {"promptSet": made.name, "rows": {"good": made.rows, "quarantined": made.quarantined}}
    return Told(inputs=(Dataset(table),), outputs=(output,), facet=facet)


def launch_begins(store: "ObjectStore", name: str, seed: int) -> Told:
    """A partition is about to be launched."""
    found = prompt_set.current(store, name)
    inputs = () if found is None else (_prompts(store, name, found.fingerprint),)
    return Told(inputs=inputs, facet=_partition(name, seed))


def launch_planned(store: "ObjectStore", made: "RunPlan") -> Told:
    """A launch knows what is missing, and buys."""
    facet = {
        **_partition(made.prompt_set, made.seed),
        "parameters": dict(made.parameters),
        "limit": made.limit,
        "requests": {
            "byState": dict(made.states),
            "toBuy": made.buy,
            "toResume": made.resume,
            "toLookInto": made.look,
        },
        "images": {"toBuy": made.buy_images},
        "cost": {"expected": _money(made.cost), "perImage": _money(made.price)},
    }
    return Told(inputs=(_prompts(store, made.prompt_set, made.fingerprint),), facet=facet)


def launch_collected(
    store: "ObjectStore", made: "RunPlan", current: "CurrentManifest", report: "Report"
) -> Told:
    """A launch has published its manifest; it counts as failed where cells are missing."""
    prompts = _prompts(store, made.prompt_set, made.fingerprint)
    facet = {
        **_partition(made.prompt_set, made.seed),
        "parameters": dict(current.parameters),
        "limit": current.limit,
        "requests": {
            "byState": {str(state.value): n for state, n in report.states.items()},
            "bought": report.bought,
            "overBudget": report.over_budget,
        },
        "cells": dict(current.cells),
        "images": {"bought": report.spent, "stored": report.images, "inManifest": current.images},
        "bytes": {"stored": report.size, "inManifest": current.size},
        "cost": {
            "spent": _money(cost_of(report.spent, made.price)),
            "perImage": _money(made.price),
        },
        "rateLimited": report.rate_limited,
        "seconds": round(report.seconds, 1),
        "halted": report.halted,
    }
    pictures = Dataset(
        store.uri("images"), rows=report.images, files=report.images, size=report.size
    )
    halted = [f"stopped early: {report.halted}"] if report.halted else []
    return Told(
        inputs=(prompts,),
        outputs=(_manifest(store, current, prompts), pictures),
        facet=facet,
        failure="; ".join([*halted, *manifest.advice(current)]) if current.gaps else None,
    )


def features_begin(store: "ObjectStore", name: str, seed: int) -> Told:
    """The pictures of a partition are about to be measured."""
    current, _ = manifest.read_current(store, name, seed)
    inputs = () if current is None else (_manifest(store, current),)
    return Told(inputs=inputs, facet=_partition(name, seed))


def features_refreshed(store: "ObjectStore", done: "Refreshed") -> Told:
    """The pictures of a partition have been measured."""
    made = done.current
    begun = features_begin(store, made.prompt_set, made.seed)
    pictures = _manifest_uri(store, made.prompt_set, made.seed)
    origins = {
        name: (Origin(pictures, "image_uri", MEASURED),)
        for name in features_table.COLUMNS
        if name != "image_sha256"
    }
    table = Dataset(
        store.uri(features_prefix(made.prompt_set, made.seed).rstrip("/")),
        version=_stem(made.table),
        columns=_described(features_table.COLUMNS),
        origins=origins | {"image_sha256": (Origin(pictures, "image_sha256"),)},
        metrics={
            "image_sha256": Figures(made.rows, 0, made.rows),
            "error": Figures(made.errors, made.rows - made.errors),
        },
        rows=made.rows,
        checks=(
            _none("all_measured", made.errors, "error"),
            _none("no_blank", made.blank, "blank"),
        ),
    )
    images = {"inManifest": made.rows, "measured": done.measured, "blank": made.blank}
    facet = {**_partition(made.prompt_set, made.seed), "images": images}
    return Told(inputs=begun.inputs, outputs=(table,), facet=facet)


def release_begins(recipe: "Recipe") -> Told:
    """A dataset is about to be built."""
    return Told(
        facet={"dataset": recipe.name},
        source=("json", recipe.model_dump_json(indent=1)),
    )


def release_built(
    store: "ObjectStore",
    recipe: "Recipe",
    manifests: Iterable["CurrentManifest"],
    release: "Release",
) -> Told:
    """A dataset has been built, or is as it was."""
    read = list(manifests)
    tables = [_manifest(store, current) for current in read]
    features = [Dataset(store.uri(features_prefix(c.prompt_set, c.seed).rstrip("/"))) for c in read]
    partitions = list(zip(tables, features, strict=True)) if len(read) <= MAX_ORIGINS else []
    output = Dataset(
        store.uri(f"datasets/{release.name}"),
        version=release.version,
        columns={name: (kind, "") for name, kind in release.columns.items()},
        origins={
            name: tuple(_origin(name, *partition) for partition in partitions)
            for name in release.columns
            if partitions and name in ROW_COLUMNS and _is_read(name)
        },
        metrics={"image_sha256": Figures(release.rows, 0, release.images)},
        rows=release.rows,
        size=sum(file.size for file in release.files),
        files=len(release.files),
    )
    begun = release_begins(recipe)
    facet = {
        **begun.facet,
        "version": release.version,
        "fingerprint": release.fingerprint,
        "rows": dict(release.splits),
        "changes": dict(release.changes),
        "images": {"inRelease": release.images},
        "bytes": {"inRelease": release.size},
    }
    return Told((*tables, *features), (output,), facet, source=begun.source)


def launched_again(
    store: "ObjectStore",
    settled: Iterable["Settled"],
    price: Decimal | None,
    *,
    action: str,
    chosen: int | None = None,
    left: int | None = None,
) -> Told:
    """Partitions were launched again, for what was missing or in doubt.

    Args:
        store: the bucket.
        settled: what came of each partition.
        price: of an image; None if unknown.
        action: what it was for: look, rebuy, abandon, retry, rescue or top-up.
        chosen: how many requests in doubt or lost were meant, where that is what it was about.
        left: how many of them still are.
    """
    parts = list(settled)
    reports = [part.report for part in parts]
    spent = sum(report.spent for report in reports)
    doubts = {} if chosen is None else {"chosen": chosen, "left": left}
    facet = {
        "action": action,
        "requests": {"bought": sum(report.bought for report in reports), **doubts},
        "images": {"bought": spent, "stored": sum(report.images for report in reports)},
        "cost": {"spent": _money(cost_of(spent, price)), "perImage": _money(price)},
    }
    return Told(outputs=tuple(_manifest(store, part.current) for part in parts), facet=facet)


def _prompts(store: "ObjectStore", name: str, fingerprint: str) -> Dataset:
    """A prompt set with the columns of its snapshot."""
    found = store.get(prompt_set_key(name, f"{fingerprint}.parquet"))
    schema = [] if found is None else pq.read_schema(io.BytesIO(found.body))
    return Dataset(
        store.uri(prompt_set_key(name, "").rstrip("/")),
        version=fingerprint,
        columns={column.name: (str(column.type), "") for column in schema},
    )


def _manifest(
    store: "ObjectStore", current: "CurrentManifest", prompts: Dataset | None = None
) -> Dataset:
    """A partition's manifest; with its columns' origins where the prompt set is given."""
    return Dataset(
        _manifest_uri(store, current.prompt_set, current.seed),
        version=_stem(current.manifest),
        columns=_described(manifest.COLUMNS),
        origins={} if prompts is None else _origins_of_cells(prompts),
        metrics={
            "state": Figures(current.rows, 0, len(current.cells)),
            "image_sha256": Figures(distinctCount=current.images),
        },
        rows=current.rows,
        checks=(_none("all_cells_accounted_for", current.gaps, "state"),),
    )


def _origins_of_cells(prompts: Dataset) -> dict[str, tuple[Origin, ...]]:
    asked = [name for name in (*TABLE_FIELDS, REFERENCE_HASHES) if name in prompts.columns]
    origins = {
        name: tuple(Origin(prompts.uri, column, DRAWN) for column in asked)
        for name in manifest.OUTCOME_COLUMNS
    }
    origins["request_key"] = tuple(Origin(prompts.uri, column, KEY) for column in asked)
    origins |= {name: (Origin(prompts.uri, name),) for name in ("prompt_id", "prompt")}
    if "seed" in prompts.columns:
        origins["seed_asked"] = (Origin(prompts.uri, "seed"),)
    return origins


def _is_read(name: str) -> bool:
    return name in manifest.COLUMNS or name in features_table.COLUMNS


def _origin(name: str, table: Dataset, features: Dataset) -> Origin:
    return Origin((table if name in manifest.COLUMNS else features).uri, name)


def _manifest_uri(store: "ObjectStore", name: str, seed: int) -> str:
    return store.uri(manifest_prefix(name, seed).rstrip("/"))


def _described(columns: Mapping[str, tuple[Any, str]]) -> dict[str, tuple[str, str]]:
    return {name: (str(kind), text) for name, (kind, text) in columns.items()}


def _none(name: str, count: int, column: str | None = None) -> Check:
    return Check(name, count == 0, expected="0", actual=str(count), column=column)


def _partition(name: str, seed: int) -> dict[str, Any]:
    return {"promptSet": name, "seed": seed, "partition": f"{name}|{seed}"}


def _money(amount: Decimal | None) -> str | None:
    return None if amount is None else f"{amount:f}"


def _stem(key: str) -> str:
    return key.rpartition("/")[2].removesuffix(".parquet")


def _uri_of(source: str) -> str:
    return source if "://" in source else str(Path(source).resolve())
