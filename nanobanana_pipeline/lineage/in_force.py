"""Which manifests and releases count now, and what has changed since somebody looked."""

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

from nanobanana_pipeline.bucket_keys import Folder
from nanobanana_pipeline.datasets.release import MANIFEST, all_releases
from nanobanana_pipeline.generation.manifest.manifest import read_current
from nanobanana_pipeline.storage import ObjectStore

__all__ = [
    "InForce",
    "PublishedDataset",
    "PublishedPartition",
    "PublishedRelease",
    "moved",
    "pointers",
    "read_moved",
    "read_partition",
]

POINTER_READERS: Final = 8


@dataclass(frozen=True)
class PublishedPartition:
    """A partition's manifest in force.

    Attributes:
        etag: of its `current.json`.
        table: the manifest's key.
        fingerprint: of the prompt set that it was made from.
        rows: of the manifest.
    """

    prompt_set: str
    seed: int
    etag: str
    table: str
    fingerprint: str
    rows: int


@dataclass(frozen=True)
class PublishedRelease:
    """A release, and the key of its manifest; `rows` are pictures."""

    dataset: str
    version: str
    table: str
    rows: int
    fingerprint: str
    created: str
    code_version: str


@dataclass(frozen=True)
class PublishedDataset:
    """A dataset's releases, and the ETag of its `latest.json`."""

    etag: str
    releases: tuple[PublishedRelease, ...]


@dataclass(frozen=True)
class InForce:
    """The manifests and releases that count, by the keys of the pointers that lead to them."""

    partitions: Mapping[str, PublishedPartition] = field(default_factory=dict)
    datasets: Mapping[str, PublishedDataset] = field(default_factory=dict)

    def tables(self) -> dict[str, PublishedPartition | PublishedRelease]:
        """Each by its manifest's key."""
        found: dict[str, PublishedPartition | PublishedRelease] = {
            partition.table: partition for partition in self.partitions.values()
        }
        for dataset in self.datasets.values():
            found |= {release.table: release for release in dataset.releases}
        return found


def pointers(store: ObjectStore) -> dict[str, str]:
    """The ETags of all partitions' `current.json` and all datasets' `latest.json`, by their keys.

    Two listings, without reading any.
    """
    return {
        found.key: found.etag
        for folder, leaf in ((Folder.MANIFESTS, "/current.json"), (Folder.DATASETS, "/latest.json"))
        for found in store.listing(folder.prefix)
        if found.key.endswith(leaf)
    }


def moved(in_force: InForce, now: Mapping[str, str]) -> list[str]:
    """The keys of pointers that are not as the index knows them, those that are gone among them."""
    known = {
        key: each.etag
        for each_kind in (in_force.partitions, in_force.datasets)
        for key, each in each_kind.items()
    }
    return sorted(key for key in known.keys() | now.keys() if known.get(key) != now.get(key))


def read_moved(store: ObjectStore, in_force: InForce, keys: Iterable[str]) -> InForce:
    """What is in force once these pointers are read again.

    Raises:
        StorageError: one is damaged.
        ReleaseError: the same of a release.
    """
    partitions, datasets = dict(in_force.partitions), dict(in_force.datasets)
    with ThreadPoolExecutor(POINTER_READERS) as pool:
        for key, found in pool.map(lambda key: (key, _read_pointed(store, key)), keys):
            partitions.pop(key, None)
            datasets.pop(key, None)
            if isinstance(found, PublishedPartition):
                partitions[key] = found
            elif found is not None:
                datasets[key] = found
    return InForce(partitions, datasets)


def read_partition(store: ObjectStore, prompt_set: str, seed: int) -> PublishedPartition | None:
    """A partition's manifest in force; None if it has none.

    Raises:
        StorageError: its pointer is damaged, or of a newer version.
    """
    current, etag = read_current(store, prompt_set, seed)
    if current is None or etag is None:
        return None
    rows, fingerprint = current.rows, current.fingerprint
    return PublishedPartition(prompt_set, seed, etag, current.manifest, fingerprint, rows)


def _read_pointed(store: ObjectStore, key: str) -> PublishedPartition | PublishedDataset | None:
    folder, name, *rest = key.split("/")
    if folder == Folder.MANIFESTS:
        return read_partition(store, name, int(rest[0].removeprefix("seed=")))
    found = store.get(key)
    if found is None:
        return None
    # What is published in between is found by its ETag at the next look.
    releases = tuple(
        PublishedRelease(
            dataset=name,
            version=release.version,
            table=release.file(MANIFEST).key,
            rows=release.rows,
            fingerprint=release.fingerprint,
            created=release.created,
            code_version=release.code_version,
        )
        for release in all_releases(store, name)
    )
    return PublishedDataset(found.etag, releases)
