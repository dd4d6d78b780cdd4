"""Checks of what is in the bucket, which can be run at any time. They buy nothing.

Those of pictures read tables that their assets have made. A release asks the manifests itself, and
relies on no check. Dagster skips the step of a check where its asset's step fails: which is where
most is to be found. So the asset evaluates them itself before it fails.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

import dagster as dg
import pandas as pd

from dagster_nanobanana.failures import plain_failures
from dagster_nanobanana.partitions import (
    FEATURES,
    IMAGES,
    PROMPTS,
    grid,
    prompt_sets,
    read_partition_key,
)
from dagster_nanobanana.presentation.tables import (
    TABLE_CHARACTERS,
    TABLE_ROWS,
    findings_of,
    named_pictures,
    sample_table,
)
from dagster_nanobanana.resources import NanobananaResource
from nanobanana_pipeline.audit import audit as audit_bucket
from nanobanana_pipeline.errors import EntryDamaged
from nanobanana_pipeline.features.judging import (
    ALIKE_BITS,
    ALIKE_SHARE,
    find_twins,
    find_wrong_sizes,
    read_pictures,
)
from nanobanana_pipeline.generation.budget.counters import partition_scope
from nanobanana_pipeline.generation.manifest.manifest import CellState, read_current, read_manifest
from nanobanana_pipeline.ledger import UNSURE, Ledger, State
from nanobanana_pipeline.money import cost_text
from nanobanana_pipeline.prompts import prompt_set as snapshots

__all__ = ["CHECKS_OF_PARTITIONS", "NO_PARTITION", "checks"]

AUDITED: Final = 1_000
"""Requests of a partition whose ledger entries each run reads again: two seconds of S3's time."""
COSTS = "Buys nothing."

Look = Callable[[NanobananaResource, str, int], dg.AssetCheckResult]

NO_PARTITION: Final = (
    "which partition? Launch the job check_images, which asks for one; or launch this with the tag "
    "dagster/partition = <prompt set>|<seed>"
)
CHECKS_OF_PARTITIONS: Final[dict[dg.AssetCheckKey, Look]] = {}
"""What looks at a partition, by the check that it is."""


def _verdict(
    bad: pd.DataFrame,
    table: str,
    metadata: Mapping[str, Any],
    *,
    passed: bool | None = None,
    severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.ERROR,
    words: str | None = None,
) -> dg.AssetCheckResult:
    """Fail, unless told otherwise, where a table names something."""
    return dg.AssetCheckResult(
        passed=bad.empty if passed is None else passed,
        severity=severity,
        description=words,
        metadata={
            **({} if bad.empty else {table: sample_table(bad, TABLE_ROWS, TABLE_CHARACTERS)}),
            **metadata,
        },
    )


def _nothing_yet(what: str) -> dg.AssetCheckResult:
    """What is not there disagrees with nothing; it is said, so that nobody takes it for good."""
    return dg.AssetCheckResult(passed=True, description=f"Nothing was looked at: {what}")


NEVER_LAUNCHED = "the partition was never launched."
NOT_MEASURED = "its pictures are not measured yet: materialize image_features."


@dg.asset_check(
    asset=PROMPTS,
    partitions_def=prompt_sets,
    description=f"No row of the prompt table is in quarantine: all are asked for. {COSTS}",
)
def quarantine_empty(
    context: dg.AssetCheckExecutionContext, nanobanana: NanobananaResource
) -> dg.AssetCheckResult:
    """Name the rows that were left out, each with its faults."""
    with plain_failures():
        store = nanobanana.store()
        kept = snapshots.current(store, context.partition_key)
        if kept is None:
            return _nothing_yet("the prompt set was never made.")
        rows = snapshots.load_quarantine(store, kept.name, kept.fingerprint)
    return _verdict(
        rows,
        "quarantine",
        {"good rows": kept.rows, "quarantined rows": kept.quarantined, "table": kept.source},
        # The good rows go on, and the bad ones may be meant to stay where they are.
        severity=dg.AssetCheckSeverity.WARN,
    )


def _of_partition(
    asset: dg.AssetKey, description: str, name: str | None = None
) -> Callable[[Look], dg.AssetChecksDefinition]:
    """Make a check of each partition of `grid` of what looks at one, given by name and seed.

    Its name is that of the function, or `name`.
    """

    def made(look: Look) -> dg.AssetChecksDefinition:
        @dg.asset_check(
            asset=asset,
            name=name or look.__name__,
            partitions_def=grid,
            description=f"{description} {COSTS}",
        )
        def check(
            context: dg.AssetCheckExecutionContext, nanobanana: NanobananaResource
        ) -> dg.AssetCheckResult:
            if not context.has_partition_key:
                raise dg.Failure(NO_PARTITION, allow_retries=False)
            with plain_failures():
                return look(nanobanana, *read_partition_key(context.partition_key))

        CHECKS_OF_PARTITIONS[dg.AssetCheckKey(asset, name or look.__name__)] = look
        return check

    return made


@_of_partition(
    IMAGES,
    f"The partition's manifest is as the ledger says, of {AUDITED:,} requests at most, and a "
    "sample of its pictures is stored under its own SHA-256. `nanobanana audit` looks at the whole "
    "bucket.",
    name="audit",
)
def audit_partition(nanobanana: NanobananaResource, name: str, seed: int) -> dg.AssetCheckResult:
    """Audit one partition."""
    report = audit_bucket(nanobanana.store(), partition=(name, seed), requests=AUDITED)
    if not report.manifests and report.agrees:
        return _nothing_yet(NEVER_LAUNCHED)
    return _verdict(
        findings_of(report),
        "findings",
        {
            "ledger entries read": report.states.total(),
            "images that these name": report.images,
            "images read": report.images_read,
        },
        passed=report.agrees,
    )


@_of_partition(
    IMAGES,
    "No cell of the partition is in doubt or lost. Such cells may have been paid for and are held: "
    "launching again looks for evidence, and only `rebuy` buys them again.",
)
def none_in_doubt(nanobanana: NanobananaResource, name: str, seed: int) -> dg.AssetCheckResult:
    """Name the cells whose pictures may have been paid for and are not there."""
    store = nanobanana.store()
    current, _ = read_current(store, name, seed)
    if current is None:
        return _nothing_yet(NEVER_LAUNCHED)
    rows = read_manifest(store, current.manifest, ["prompt_id", "prompt", "request_key", "state"])
    rows = rows[rows["state"].isin(UNSURE)].drop_duplicates("prompt_id")
    # What evidence or a person has settled since the manifest was written is no doubt now.
    unsure: dict[str, tuple[str, str]] = {}
    for held in Ledger(store).read_many(rows["request_key"]):
        if isinstance(held, EntryDamaged):
            unsure[held.request_key] = (State.IN_DOUBT.value, str(held))
        elif held.entry.state in UNSURE and not held.entry.is_abandoned:
            entry = held.entry
            unsure[entry.request_key] = (entry.state.value, entry.reason or "")
    rows = rows[rows["request_key"].isin(unsure.keys())]
    cells = rows.assign(
        state=[unsure[key][0] for key in rows["request_key"]],
        cause=[unsure[key][1] for key in rows["request_key"]],
    )
    return _verdict(
        cells,
        "cells",
        {state.value: int((cells["state"] == state).sum()) for state in sorted(UNSURE)},
        severity=dg.AssetCheckSeverity.WARN,
    )


@_of_partition(
    IMAGES,
    "Not more was spent on the partition than its cap allows, and no cell waits for want of money: "
    "a cap holds cells back, and lowering one cannot undo what was spent.",
)
def within_budget(nanobanana: NanobananaResource, name: str, seed: int) -> dg.AssetCheckResult:
    """Compare what was counted for the partition with its cap, and name the cells held back."""
    store, budget = nanobanana.store(), nanobanana.settings().budget
    current, _ = read_current(store, name, seed)
    if current is None:
        return _nothing_yet(NEVER_LAUNCHED)
    scope = partition_scope(store, budget, name, seed)
    spent, cap = scope.read(), scope.cap
    rows = read_manifest(store, current.manifest, ["prompt_id", "prompt", "state"])
    held_back = rows[rows["state"] == CellState.OVER_BUDGET].drop_duplicates("prompt_id")
    too_much = (cap.images is not None and spent.images_counted > cap.images) or (
        cap.cost is not None and spent.cost_counted > cap.cost
    )
    return _verdict(
        held_back,
        "cells",
        {
            "images counted": spent.images_counted,
            "cost counted": cost_text(None if budget.price is None else spent.cost_counted),
            "cap of the partition": str(cap),
        },
        passed=held_back.empty and not too_much,
        severity=dg.AssetCheckSeverity.ERROR if too_much else dg.AssetCheckSeverity.WARN,
        words="More was spent on it than its cap allows." if too_much else None,
    )


@_of_partition(FEATURES, "Every picture of the partition has the size that was asked for.")
def sizes_as_asked(nanobanana: NanobananaResource, name: str, seed: int) -> dg.AssetCheckResult:
    """Name the pictures that came in another size."""
    store = nanobanana.store()
    pictures = read_pictures(store, name, seed)
    if pictures is None:
        return _nothing_yet(NOT_MEASURED)
    model = nanobanana.account().provider.request_model
    wrong = find_wrong_sizes(store, name, seed, pictures, model)
    shown = ["prompt_id", "prompt", "sample", "asked", "width", "height", "image_uri"]
    return _pictures(wrong[shown], pictures)


@_of_partition(
    FEATURES,
    "Every picture of the partition can be decoded, and none is blank: near-uniform, as the column "
    "`blank` says.",
)
def no_blank_pictures(nanobanana: NanobananaResource, name: str, seed: int) -> dg.AssetCheckResult:
    """Name the pictures that show nothing."""
    pictures = read_pictures(nanobanana.store(), name, seed)
    if pictures is None:
        return _nothing_yet(NOT_MEASURED)
    bad = pictures[pictures["error"].notna() | pictures["blank"].fillna(value=False)]
    bad = bad.assign(why=bad["error"].fillna("blank"))
    shown = ["prompt_id", "prompt", "sample", "why", "image_uri"]
    return _pictures(bad[shown], pictures)


@_of_partition(
    FEATURES,
    "The provider heeds seeds: pictures of one prompt under other seeds, and the samples of one "
    f"request, differ. They look alike where at most {ALIKE_BITS} of 64 bits of their perceptual "
    f"hashes differ; {ALIKE_SHARE:.0%} of the prompts may have such twins.",
)
def seed_honesty(nanobanana: NanobananaResource, name: str, seed: int) -> dg.AssetCheckResult:
    """Name the pictures that look like another that they should not look like."""
    store = nanobanana.store()
    pictures = read_pictures(store, name, seed)
    if pictures is None:
        return _nothing_yet(NOT_MEASURED)
    twins = find_twins(store, name, seed, pictures)
    if not twins.prompts:
        return _nothing_yet("no prompt has two pictures, under two seeds or of one request.")
    alike, addresses = named_pictures(twins.rows.head(TABLE_ROWS))
    return _verdict(
        alike,
        "twins",
        {
            "prompts compared": twins.prompts,
            "prompts with twins": twins.alike,
            "share": round(twins.alike / twins.prompts, 4),
            "most that may be": ALIKE_SHARE,
            "other seeds": ", ".join(map(str, twins.seeds)) or "none",
            "addresses": addresses,
        },
        passed=not twins.are_too_many,
    )


def _pictures(bad: pd.DataFrame, looked_at: pd.DataFrame) -> dg.AssetCheckResult:
    """Fail where there are bad pictures among those that were looked at."""
    named, addresses = named_pictures(bad.head(TABLE_ROWS))
    return _verdict(named, "pictures", {"looked at": len(looked_at), "addresses": addresses})


checks = [
    quarantine_empty,
    audit_partition,
    none_in_doubt,
    within_budget,
    sizes_as_asked,
    no_blank_pictures,
    seed_honesty,
]
"""All of this module, for the definitions."""
