"""Builds of releases that were begun and never came to one."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Final

from nanobanana_pipeline.audit.report import AuditReport, FindingKind
from nanobanana_pipeline.bucket_keys import Folder, latest_release_key, release_key
from nanobanana_pipeline.datasets.release import BUILD_QUIET_SECONDS, read_latest, read_release
from nanobanana_pipeline.errors import ReleaseError
from nanobanana_pipeline.storage import ListedObject, ObjectStore
from nanobanana_pipeline.wording import counted, size_text, time_text

__all__ = ["check_builds", "find_builds"]

DEPTH: Final = 4
"""Parts of ``datasets/<name>/<version>/<path>``."""

_VERSION: Final = re.compile(r"v[1-9]\d*")


@dataclass(frozen=True)
class Build:
    """A version's folder without a ``release.json``, and the objects in it that no release names.

    `quiet_seconds` is since anything in it was written, by the S3 server's clock.
    """

    dataset: str
    version: str
    objects: tuple[ListedObject, ...]
    quiet_seconds: float


def find_builds(
    store: ObjectStore, on_damage: Callable[[str, ReleaseError], None]
) -> Iterator[Build]:
    """Builds that have not come to a release, under way or not, by dataset and version.

    `on_damage` is called for a dataset with such builds of which a release is missing or damaged:
    what it refers to is unknown, and none of its builds is given.
    """
    listed = ((each.key.split("/", 3), each) for each in store.listing(Folder.DATASETS.prefix))
    placed = ((parts, each) for parts, each in listed if len(parts) == DEPTH)
    for dataset, found in groupby(placed, key=lambda each: each[0][1]):
        folders: dict[str, list[ListedObject]] = defaultdict(list)
        finished: set[str] = set()
        for (_, _, version, leaf), each in found:
            folders[version].append(each)
            if leaf == "release.json":
                finished.add(version)
        begun = sorted(v for v in folders.keys() - finished if _VERSION.fullmatch(v))
        try:
            named = _named(store, dataset, finished) if begun else frozenset()
        except ReleaseError as error:
            on_damage(dataset, error)
            continue
        for version in begun:
            # It may have come to its end since it was listed.
            if store.head(release_key(dataset, version, "release.json")) is None:
                unnamed = tuple(each for each in folders[version] if each.key not in named)
                quiet = min(each.age_seconds for each in folders[version])
                yield Build(dataset, version, unnamed, quiet)


def check_builds(store: ObjectStore, report: AuditReport) -> None:
    """Note builds whose worker has ended."""

    def tell(dataset: str, error: ReleaseError) -> None:
        report.add(FindingKind.UNREADABLE, latest_release_key(dataset), str(error))

    for build in find_builds(store, tell):
        if build.quiet_seconds > BUILD_QUIET_SECONDS:
            key = release_key(build.dataset, build.version, "build.json")
            report.add(FindingKind.BUILD_ABANDONED, key, _text(build))


def _named(store: ObjectStore, dataset: str, finished: set[str]) -> frozenset[str]:
    """Keys of all files of a dataset's releases, whether or not they were published."""
    read_latest(store, dataset)
    releases = [read_release(store, dataset, version) for version in sorted(finished)]
    # One that has lost its release.json, and that others continue, is refused here: no build.
    for parent in {release.parent for release in releases if release.parent} - finished:
        read_release(store, dataset, parent)
    return frozenset(file.key for release in releases for file in release.files)


def _text(build: Build) -> str:
    size = sum(each.size for each in build.objects)
    return (
        f"the build of {build.dataset} {build.version} stopped {time_text(build.quiet_seconds)} "
        f"ago and left {counted(len(build.objects), 'object')} ({size_text(size)}) that no "
        "release names. Building the same again goes on from there; `nanobanana gc --dry-run` "
        "lists them once they are 7 days old"
    )
