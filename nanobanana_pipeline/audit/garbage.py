"""What nothing in the bucket refers to any more. It only lists, and deletes nothing.

Nothing younger than a week is listed: somebody may be about to name it.
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from nanobanana_pipeline.audit.cross_reference import AuditIndex
from nanobanana_pipeline.audit.features import list_features
from nanobanana_pipeline.audit.read_ahead import (
    AuditProgress,
    find_orphans,
    list_entries,
    read_entries,
)
from nanobanana_pipeline.audit.releases import find_builds
from nanobanana_pipeline.bucket_keys import (
    Folder,
    preview_key,
    run_done_key,
    run_plan_key,
    run_values_prefix,
)
from nanobanana_pipeline.errors import ReleaseError, StorageError
from nanobanana_pipeline.features.table import read_current_features
from nanobanana_pipeline.generation.manifest.manifest import read_all_current
from nanobanana_pipeline.generation.planning.run_files import read_plan
from nanobanana_pipeline.generation.recovery.rescue import list_runs
from nanobanana_pipeline.ledger import Held
from nanobanana_pipeline.prompts import prompt_set
from nanobanana_pipeline.storage import ListedObject, ObjectStore

__all__ = ["Waste", "find_garbage"]

WEEK_SECONDS: Final = 7 * 24 * 3600.0

_SNAPSHOT: Final = re.compile(
    rf"{Folder.PROMPT_SETS}/([^/]+)/([0-9a-f]{{64}})(\.quarantine)?\.parquet"
)
_REFERENCE: Final = re.compile(rf"{Folder.REFERENCES}/[0-9a-f]{{2}}/([0-9a-f]{{64}})")


class Waste(StrEnum):
    """What can be left over."""

    IMAGE = "image"
    MANIFEST = "manifest"
    PREVIEW = "preview"
    FEATURES = "features"
    PROMPT_SET = "prompt_set"
    REFERENCE = "reference"
    WEBHOOK = "webhook"
    RUN_VALUE = "run_value"
    BUILD = "build"
    RUN_NAME = "run_name"


@dataclass(frozen=True)
class Garbage:
    """An object that nothing refers to: `size` in bytes, its age by the S3 server's clock."""

    kind: Waste
    key: str
    size: int
    age_seconds: float


def find_garbage(
    store: ObjectStore, on_progress: AuditProgress = lambda _what, _count: None
) -> Iterator[Garbage]:
    """List what nothing refers to: by kind, and by key within each.

    Raises:
        NanobananaError: something cannot be read, so that nobody knows what it refers to.
    """
    named = _fingerprints(store)
    with AuditIndex() as index:
        _read_ledger(store, index, on_progress)
        for found in store.listing(Folder.IMAGES.prefix):
            index.add_object(found)
        for orphan in find_orphans(store, index):
            if orphan.age > WEEK_SECONDS:
                yield Garbage(Waste.IMAGE, orphan.key, orphan.size, orphan.age)
        in_force = list(read_all_current(store))
        for current in in_force:
            yield from _superseded(store, Waste.MANIFEST, current.manifest)
        for current in in_force:
            shown = preview_key(current.prompt_set, current.seed, current.content)
            yield from _superseded(store, Waste.PREVIEW, shown)
        for name, seed in list_features(store):
            features, _ = read_current_features(store, name, seed)
            if features is not None:
                yield from _superseded(store, Waste.FEATURES, features.table)
        yield from _prompt_sets(store, index, named)
        yield from _references(store, index)
        yield from _webhooks(store, index)
    yield from _run_values(store)
    yield from _builds(store)
    yield from _run_names(store)


def _fingerprints(store: ObjectStore) -> dict[str, set[str]]:
    """By prompt set: snapshots that manifests in force and unfinished runs name."""
    named: dict[str, set[str]] = defaultdict(set)
    for current in read_all_current(store):
        named[current.prompt_set].add(current.fingerprint)
    for run in list_runs(store):
        if run.done_seconds is None:
            made = read_plan(store, run.run_id)
            named[made.prompt_set].add(made.fingerprint)
    return named


def _read_ledger(store: ObjectStore, index: AuditIndex, on_progress: AuditProgress) -> None:
    def refuse(key: str) -> None:
        raise StorageError(
            f"{store.uri(key)} is no ledger entry: run `nanobanana audit`, and mend what it finds"
        )

    keys = list_entries(store, refuse)
    for count, (_, found) in enumerate(read_entries(store, keys), 1):
        if isinstance(found, Held):
            index.add_entry(found.entry, found.age_seconds)
        elif found is not None:
            raise StorageError(f"{found}. What it refers to is unknown: run `nanobanana audit`")
        on_progress("ledger entries", count)


def _superseded(store: ObjectStore, kind: Waste, in_force: str) -> Iterator[Garbage]:
    """Files of the same kind beside this one, replaced by another a week ago or longer."""
    folder, _, leaf = in_force.rpartition("/")
    kind_of_file = leaf.rpartition(".")[2]
    files = [f for f in store.listing(f"{folder}/") if f.key.endswith(f".{kind_of_file}")]
    files.sort(key=lambda found: found.last_modified)
    old = []
    for found, successor in zip(files, [*files[1:], None], strict=False):
        # One that lost its race was never in force: its own age counts.
        since = found if successor is None else successor
        if found.key != in_force and since.age_seconds > WEEK_SECONDS:
            old.append(_garbage(kind, found))
    yield from sorted(old, key=lambda each: each.key)


def _prompt_sets(
    store: ObjectStore, index: AuditIndex, named: dict[str, set[str]]
) -> Iterator[Garbage]:
    """Snapshots that nothing names; what the others start from goes into the index."""
    looked_up: set[str] = set()
    for found in store.listing(Folder.PROMPT_SETS.prefix):
        snapshot = _SNAPSHOT.fullmatch(found.key)
        if snapshot is None:
            continue
        name, fingerprint = snapshot[1], snapshot[2]
        if name not in looked_up:
            looked_up.add(name)
            current = prompt_set.current(store, name)
            if current is not None:
                named[name].add(current.fingerprint)
        if fingerprint not in named[name] and found.age_seconds > WEEK_SECONDS:
            yield _garbage(Waste.PROMPT_SET, found)
        elif snapshot[3] is None:
            prompts = prompt_set.load(store, name, fingerprint)
            if "ref_sha256" in prompts.columns:
                hashes = prompts["ref_sha256"].dropna().str.split().explode().dropna()
                index.add_references(hashes.unique())


def _references(store: ObjectStore, index: AuditIndex) -> Iterator[Garbage]:
    for found in store.listing(Folder.REFERENCES.prefix):
        sha256 = _REFERENCE.fullmatch(found.key)
        is_named = sha256 is not None and index.has_reference(sha256[1])
        if not is_named and found.age_seconds > WEEK_SECONDS:
            yield _garbage(Waste.REFERENCE, found)


def _webhooks(store: ObjectStore, index: AuditIndex) -> Iterator[Garbage]:
    """What came for requests that have been settled for a week: nobody looks there any more."""
    for found in store.listing(Folder.WEBHOOKS.prefix):
        request_key = found.key.split("/")[1].partition(".")[0]
        settled = index.settled_seconds(request_key)
        if settled is not None and min(settled, found.age_seconds) > WEEK_SECONDS:
            yield _garbage(Waste.WEBHOOK, found)


def _run_values(store: ObjectStore) -> Iterator[Garbage]:
    """What steps of finished runs handed to each other."""
    for run in list_runs(store):
        if run.done_seconds is None or run.done_seconds <= WEEK_SECONDS:
            continue
        for found in store.listing(run_values_prefix(run.run_id)):
            if found.age_seconds > WEEK_SECONDS:
                yield _garbage(Waste.RUN_VALUE, found)


def _run_names(store: ObjectStore) -> Iterator[Garbage]:
    """Runs that are named as unfinished, and are done or have no plan: nobody can rescue them."""
    folder = Folder.UNFINISHED.prefix
    for found in store.listing(folder):
        run_id = found.key.removeprefix(folder)
        if found.age_seconds <= WEEK_SECONDS:
            continue
        if store.head(run_done_key(run_id)) is not None or store.head(run_plan_key(run_id)) is None:
            yield _garbage(Waste.RUN_NAME, found)


def _builds(store: ObjectStore) -> Iterator[Garbage]:
    """What builds of releases have left that were killed; nothing of one that anybody goes on with.

    All of a folder or nothing: whoever goes on with a build relies on its oldest shards too.
    """

    def refuse(dataset: str, error: ReleaseError) -> None:
        text = f"{error}. What releases of {dataset} refer to is unknown: run `nanobanana audit`"
        raise StorageError(text) from error

    for build in find_builds(store, refuse):
        if build.quiet_seconds > WEEK_SECONDS:
            for found in build.objects:
                yield _garbage(Waste.BUILD, found)


def _garbage(kind: Waste, found: ListedObject) -> Garbage:
    return Garbage(kind, found.key, found.size, found.age_seconds)
