"""`RunFacts` of each kind of run at START, RUNNING and COMPLETE, from the domain's own objects.

Importing this does not import OpenLineage's client.
"""

import io
from collections.abc import Iterable, Mapping
from decimal import Decimal
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import pyarrow.parquet as pq

from nanobanana_pipeline.bucket_keys import (
    Folder,
    features_prefix,
    manifest_prefix,
    prompt_set_key,
    release_prefix,
)
from nanobanana_pipeline.datasets.recipe import Recipe
from nanobanana_pipeline.datasets.recipe_inputs import ROW_COLUMNS
from nanobanana_pipeline.datasets.release import Release
from nanobanana_pipeline.features import table as features_table
from nanobanana_pipeline.features.table import RefreshedFeatures
from nanobanana_pipeline.generation.engine.engine import Report
from nanobanana_pipeline.generation.launch_steps import Settled
from nanobanana_pipeline.generation.manifest import manifest
from nanobanana_pipeline.generation.manifest.manifest import CurrentManifest
from nanobanana_pipeline.generation.planning.run_files import RunPlan
from nanobanana_pipeline.lineage.openlineage.facts import (
    Dataset,
    RunFacts,
    column_metrics,
    dataset,
    origin,
    output_statistics,
)
from nanobanana_pipeline.money import cost_of
from nanobanana_pipeline.prompts import prompt_set
from nanobanana_pipeline.prompts.checked_prompts import REFERENCE, REFERENCE_HASHES, CheckedPrompts
from nanobanana_pipeline.provider.account import PROVIDER
from nanobanana_pipeline.storage import ObjectStore

__all__ = [
    "RelaunchReason",
    "features_complete",
    "features_start",
    "launch_complete",
    "launch_running",
    "launch_start",
    "prompt_set_complete",
    "prompt_set_start",
    "relaunch_complete",
    "release_complete",
    "release_start",
]

MAX_ORIGINS: Final = 25
"""A release of more partitions has no column lineage: every partition adds all columns to it."""
MEASURED: Final = "measured from the picture's pixels"
OUTCOME: Final = "what came of the request, which is made of these columns"
KEY: Final = "SHA-256 of the canonical request, which is made of these columns"
VALIDATED: Final = "checked and brought to one spelling"


class RelaunchReason(StrEnum):
    """What partitions are launched again for; the first three are values of `doubts.Action`."""

    LOOK = "look"
    REBUY = "rebuy"
    ABANDON = "abandon"
    RETRY = "retry"
    RESCUE = "rescue"
    TOP_UP = "top-up"


def prompt_set_start(name: str, source: str) -> RunFacts:
    """Facts before a prompt table, by its path or URL, is read."""
    return RunFacts(inputs=(Dataset(_uri_of(source)),), facet={"promptSet": name})


def prompt_set_complete(
    store: ObjectStore, checked: CheckedPrompts, snapshot: prompt_set.PromptSet
) -> RunFacts:
    """Facts of a stored prompt set."""
    table = _uri_of(checked.source)
    columns = {str(name): (str(kind), "") for name, kind in checked.prompts.dtypes.items()}
    copied = [name for name in columns if name not in {"prompt_id", REFERENCE_HASHES}]
    origins = {name: [origin(table, name, VALIDATED)] for name in copied}
    if REFERENCE_HASHES in columns:
        transformation = "SHA-256 of the pictures' bytes"
        origins[REFERENCE_HASHES] = [origin(table, REFERENCE, transformation)]
    output = dataset(
        store.uri(prompt_set_key(snapshot.name, "").rstrip("/")),
        version=snapshot.fingerprint,
        columns=columns,
        origins=origins,
        metrics={
            "prompt_id": column_metrics(snapshot.rows, 0, snapshot.rows),
            "prompt": column_metrics(snapshot.rows, 0),
        },
        counts={"rowCount": snapshot.rows},
        zeros={"quarantine_empty": (snapshot.quarantined, None)},
    )
    facet = {
        "promptSet": snapshot.name,
        "rows": {"good": snapshot.rows, "quarantined": snapshot.quarantined},
    }
    return RunFacts(inputs=(Dataset(table),), outputs=(output,), facet=facet)


def launch_start(store: ObjectStore, name: str, seed: int) -> RunFacts:
    """Facts before a partition's launch is planned."""
    current = prompt_set.current(store, name)
    inputs = () if current is None else (_prompts(store, name, current.fingerprint),)
    return RunFacts(inputs=inputs, facet=_partition(name, seed))


def launch_running(store: ObjectStore, plan: RunPlan) -> RunFacts:
    """Facts of a planned launch: what it will buy, and its cost."""
    facet = {
        **_partition(plan.prompt_set, plan.seed),
        "parameters": dict(plan.parameters),
        "limit": plan.limit,
        "requests": {
            "byState": dict(plan.states),
            "toBuy": plan.buy,
            "toResume": plan.resume,
            "toLookInto": plan.look,
        },
        "images": {"toBuy": plan.buy_images},
        "cost": {"expected": _money(plan.cost), "perImage": _money(plan.price)},
    }
    return RunFacts(inputs=(_prompts(store, plan.prompt_set, plan.fingerprint),), facet=facet)


def launch_complete(
    store: ObjectStore, plan: RunPlan, current: CurrentManifest, report: Report
) -> RunFacts:
    """Facts of a published manifest; the launch counts as failed if cells are missing."""
    prompts = _prompts(store, plan.prompt_set, plan.fingerprint)
    facet = {
        **_partition(plan.prompt_set, plan.seed),
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
            "spent": _money(cost_of(report.spent, plan.price)),
            "perImage": _money(plan.price),
        },
        "rateLimited": report.rate_limited,
        "seconds": round(report.seconds, 1),
        "halted": report.halted,
    }
    pictures = Dataset(
        store.uri(Folder.IMAGES),
        {"outputStatistics": output_statistics(report.images, report.size, report.images)},
    )
    halted = [f"stopped early: {report.halted}"] if report.halted else []
    return RunFacts(
        inputs=(prompts,),
        outputs=(_manifest(store, current, prompts), pictures),
        facet=facet,
        failure="; ".join([*halted, *manifest.advice(current)]) if current.gaps else None,
    )


def features_start(store: ObjectStore, name: str, seed: int) -> RunFacts:
    """Facts before a partition's images are measured."""
    current, _ = manifest.read_current(store, name, seed)
    inputs = () if current is None else (_manifest(store, current),)
    return RunFacts(inputs=inputs, facet=_partition(name, seed))


def features_complete(store: ObjectStore, refreshed: RefreshedFeatures) -> RunFacts:
    """Facts of a published feature table."""
    current = refreshed.current
    start = features_start(store, current.prompt_set, current.seed)
    pictures = _manifest_uri(store, current.prompt_set, current.seed)
    origins = {
        name: [origin(pictures, "image_uri", MEASURED)]
        for name in features_table.FEATURE_COLUMNS
        if name != "image_sha256"
    }
    table = dataset(
        store.uri(features_prefix(current.prompt_set, current.seed).rstrip("/")),
        version=_table_version(current.table),
        columns=_descriptions(features_table.FEATURE_COLUMNS),
        origins=origins | {"image_sha256": [origin(pictures, "image_sha256")]},
        metrics={
            "image_sha256": column_metrics(current.rows, 0, current.rows),
            "error": column_metrics(current.errors, current.rows - current.errors),
        },
        counts={"rowCount": current.rows},
        zeros={"all_measured": (current.errors, "error"), "no_blank": (current.blank, "blank")},
    )
    images = {"inManifest": current.rows, "measured": refreshed.measured, "blank": current.blank}
    facet = {**_partition(current.prompt_set, current.seed), "images": images}
    return RunFacts(inputs=start.inputs, outputs=(table,), facet=facet)


def release_start(recipe: Recipe) -> RunFacts:
    """Facts before a release is built."""
    return RunFacts(
        facet={"dataset": recipe.name}, source=("json", recipe.model_dump_json(indent=1))
    )


def release_complete(
    store: ObjectStore,
    recipe: Recipe,
    manifests: Iterable[CurrentManifest],
    release: Release,
) -> RunFacts:
    """Facts of a new release, or of the latest one if nothing has changed."""
    read = list(manifests)
    tables = [_manifest(store, current) for current in read]
    features = [Dataset(store.uri(features_prefix(c.prompt_set, c.seed).rstrip("/"))) for c in read]
    partitions = list(zip(tables, features, strict=True)) if len(read) <= MAX_ORIGINS else []
    output = dataset(
        store.uri(release_prefix(release.name).rstrip("/")),
        version=release.version,
        columns={name: (kind, "") for name, kind in release.columns.items()},
        origins={
            name: [
                origin((table if name in manifest.MANIFEST_COLUMNS else measured).uri, name)
                for table, measured in partitions
            ]
            for name in release.columns
            if partitions
            and name in ROW_COLUMNS
            and (name in manifest.MANIFEST_COLUMNS or name in features_table.FEATURE_COLUMNS)
        },
        metrics={"image_sha256": column_metrics(release.rows, 0, release.images)},
        counts=output_statistics(
            release.rows, sum(file.size for file in release.files), len(release.files)
        ),
    )
    start = release_start(recipe)
    facet = {
        **start.facet,
        "version": release.version,
        "fingerprint": release.fingerprint,
        "rows": dict(release.splits),
        "changes": dict(release.changes),
        "images": {"inRelease": release.images},
        "bytes": {"inRelease": release.size},
    }
    return RunFacts((*tables, *features), (output,), facet, source=start.source)


def relaunch_complete(
    store: ObjectStore,
    settled: Iterable[Settled],
    price: Decimal | None,
    *,
    reason: RelaunchReason,
    chosen: int | None = None,
    left: int | None = None,
) -> RunFacts:
    """Facts of partitions that were launched again, an image costing `price` (None: unknown).

    `chosen` requests in doubt or lost were to be settled, and `left` of them are not; both are None
    for other reasons.
    """
    partitions = list(settled)
    reports = [partition.report for partition in partitions]
    spent = sum(report.spent for report in reports)
    counts = {} if chosen is None else {"chosen": chosen, "left": left}
    facet = {
        "action": reason.value,
        "requests": {"bought": sum(report.bought for report in reports), **counts},
        "images": {"bought": spent, "stored": sum(report.images for report in reports)},
        "cost": {"spent": _money(cost_of(spent, price)), "perImage": _money(price)},
    }
    tables = tuple(_manifest(store, partition.current) for partition in partitions)
    return RunFacts(outputs=tables, facet=facet)


def _prompts(store: ObjectStore, name: str, fingerprint: str) -> Dataset:
    """A prompt set, with its snapshot's columns."""
    snapshot = store.get(prompt_set_key(name, f"{fingerprint}.parquet"))
    schema = [] if snapshot is None else pq.read_schema(io.BytesIO(snapshot.body))
    return dataset(
        store.uri(prompt_set_key(name, "").rstrip("/")),
        version=fingerprint,
        columns={column.name: (str(column.type), "") for column in schema},
    )


def _manifest(
    store: ObjectStore, current: CurrentManifest, prompts: Dataset | None = None
) -> Dataset:
    """A partition's manifest; with column lineage if the prompt set is given."""
    return dataset(
        _manifest_uri(store, current.prompt_set, current.seed),
        version=_table_version(current.manifest),
        columns=_descriptions(manifest.MANIFEST_COLUMNS),
        origins={} if prompts is None else _origins_of_cells(prompts),
        metrics={
            "state": column_metrics(current.rows, 0, len(current.cells)),
            "image_sha256": column_metrics(distinct=current.images),
        },
        counts={"rowCount": current.rows},
        zeros={"all_cells_accounted_for": (current.gaps, "state")},
    )


def _origins_of_cells(prompts: Dataset) -> dict[str, list[dict[str, Any]]]:
    schema = prompts.facets.get("schema", {"fields": []})
    columns = {column["name"] for column in schema["fields"]}
    asked = [name for name in PROVIDER.request_model.key_fields() if name in columns]
    origins = {
        name: [origin(prompts.uri, column, OUTCOME) for column in asked]
        for name in manifest.OUTCOME_COLUMNS
    }
    origins["request_key"] = [origin(prompts.uri, column, KEY) for column in asked]
    origins |= {name: [origin(prompts.uri, name)] for name in ("prompt_id", "prompt")}
    if "seed" in columns:
        origins["seed_asked"] = [origin(prompts.uri, "seed")]
    return origins


def _manifest_uri(store: ObjectStore, name: str, seed: int) -> str:
    return store.uri(manifest_prefix(name, seed).rstrip("/"))


def _descriptions(columns: Mapping[str, tuple[Any, str]]) -> dict[str, tuple[str, str]]:
    return {name: (str(kind), text) for name, (kind, text) in columns.items()}


def _partition(name: str, seed: int) -> dict[str, Any]:
    return {"promptSet": name, "seed": seed, "partition": f"{name}|{seed}"}


def _money(amount: Decimal | None) -> str | None:
    return None if amount is None else f"{amount:f}"


def _table_version(key: str) -> str:
    return key.rpartition("/")[2].removesuffix(".parquet")


def _uri_of(source: str) -> str:
    return source if "://" in source else str(Path(source).resolve())
