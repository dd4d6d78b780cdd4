"""Checks of a partition's pictures that can be run at any time. They buy nothing."""

import dagster as dg
import pandas as pd

from dagster_project.failures import plain_failures
from dagster_project.metadata import sample_table
from dagster_project.partitions import grid, read_cell_key
from dagster_project.resources import NanobananaResource
from nanobanana_pipeline.audit import audit as audit_bucket
from nanobanana_pipeline.generation.manifest import read_current, read_manifest
from nanobanana_pipeline.ledger import UNSURE, Ledger

__all__ = ["audit", "check_images", "none_in_doubt"]

IMAGES = dg.AssetKey("generated_images")
SHOWN = 100
LONGEST = 1000


@dg.asset_check(
    asset=IMAGES,
    partitions_def=grid,
    description=(
        "The partition's manifest is as the ledger says, and a sample of its pictures is stored "
        "under its own SHA-256. Free of charge; `nanobanana audit` looks at the whole bucket."
    ),
)
def audit(
    context: dg.AssetCheckExecutionContext, nanobanana: NanobananaResource
) -> dg.AssetCheckResult:
    """Audit one partition."""
    with plain_failures():
        partition = read_cell_key(context.partition_key)
        report = audit_bucket(nanobanana.store(), partition=partition)
    findings = pd.DataFrame(
        [(found.kind.value, found.key, found.text) for found in report.findings],
        columns=["kind", "key", "what is wrong, and what to do"],
    )
    return dg.AssetCheckResult(
        passed=report.agrees,
        metadata={
            "findings": sample_table(findings, SHOWN, LONGEST),
            "ledger entries": report.states.total(),
            "images": report.images,
            "images read": report.images_read,
        },
    )


@dg.asset_check(
    asset=IMAGES,
    partitions_def=grid,
    description=(
        "No cell of the partition is in doubt or lost. Such cells may have been paid for and are "
        "held: launching again looks for evidence, and only `rebuy` buys them again."
    ),
)
def none_in_doubt(
    context: dg.AssetCheckExecutionContext, nanobanana: NanobananaResource
) -> dg.AssetCheckResult:
    """Name the cells whose pictures may have been paid for and are not there."""
    with plain_failures():
        store = nanobanana.store()
        current, _ = read_current(store, *read_cell_key(context.partition_key))
        if current is None:
            return dg.AssetCheckResult(passed=True, metadata={"cells": "never launched"})
        rows = read_manifest(
            store, current.manifest, ["prompt_id", "prompt", "request_key", "state"]
        )
        rows = rows[rows["state"].isin(UNSURE)].drop_duplicates("prompt_id")
        # What evidence or a person has settled since the manifest was written is no doubt now.
        found = Ledger(store).read_many(rows["request_key"])
    unsure = {
        key: held.entry
        for key, held in found.items()
        if held.entry.state in UNSURE and not held.entry.is_abandoned
    }
    rows = rows[rows["request_key"].isin(unsure.keys())]
    cells = rows.assign(
        state=[unsure[key].state.value for key in rows["request_key"]],
        cause=[unsure[key].reason or "" for key in rows["request_key"]],
    )
    return dg.AssetCheckResult(
        passed=cells.empty,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={
            "cells": sample_table(cells, SHOWN, LONGEST),
            **{state.value: int((cells["state"] == state).sum()) for state in sorted(UNSURE)},
        },
    )


check_images = dg.define_asset_job(
    "check_images",
    selection=dg.AssetSelection.checks(audit, none_in_doubt),
    # Dagster asks for no partition where a job has checks alone; the tag is what it goes by.
    description=(
        "Look at a partition's pictures, also where it failed and its checks never ran. Name the "
        "partition by the run's tag: dagster/partition = <prompt set>|<seed>. Buys nothing."
    ),
)
