"""`CurrentTables`: the current manifests and releases that the index covers, by their pointers.

A pointer is a partition's `current.json` or a dataset's `latest.json`; its ETag shows a change. The
index stores these classes in `index/current.json`, so their fields keep their names.
"""

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

from nanobanana_pipeline.bucket_keys import Folder
from nanobanana_pipeline.datasets.release import MANIFEST, all_releases
from nanobanana_pipeline.generation.manifest.manifest import read_current
from nanobanana_pipeline.storage import ObjectStore

__all__ = ["CurrentTables", "PartitionManifest", "list_pointers", "read_partition_manifest"]

POINTER_READERS: Final = 8


@dataclass(frozen=True)
class PartitionManifest:
    """The current manifest of a partition: the `etag` of its pointer, its key (`table`), its rows.

    `fingerprint` is that of the prompt set that it was made from.
    """

    prompt_set: str
    seed: int
    etag: str
    table: str
    fingerprint: str
    rows: int


@dataclass(frozen=True)
class ReleaseManifest:
    """A release; `table` is the key of its manifest, and `rows` are images."""

    dataset: str
    version: str
    table: str
    rows: int
    fingerprint: str
    created: str
    code_version: str


@dataclass(frozen=True)
class DatasetReleases:
    """All releases of a dataset, and the ETag of its `latest.json`."""

    etag: str
    releases: tuple[ReleaseManifest, ...]


@dataclass(frozen=True)
class CurrentTables:
    """Current manifests and releases, by the keys of their pointers."""

    partitions: Mapping[str, PartitionManifest] = field(default_factory=dict)
    datasets: Mapping[str, DatasetReleases] = field(default_factory=dict)

    @property
    def releases(self) -> list[ReleaseManifest]:
        """Of all datasets."""
        return [release for dataset in self.datasets.values() for release in dataset.releases]

    def by_table(self) -> dict[str, PartitionManifest | ReleaseManifest]:
        """All of them, by their manifests' keys."""
        tables: list[PartitionManifest | ReleaseManifest] = [
            *self.partitions.values(),
            *self.releases,
        ]
        return {each.table: each for each in tables}

    def changed(self, etags: Mapping[str, str]) -> list[str]:
        """Keys of pointers that are new, changed or gone, compared with `list_pointers`."""
        known = {key: partition.etag for key, partition in self.partitions.items()}
        known |= {key: dataset.etag for key, dataset in self.datasets.items()}
        return sorted(
            key for key in known.keys() | etags.keys() if known.get(key) != etags.get(key)
        )

    def updated(self, store: ObjectStore, keys: Iterable[str]) -> "CurrentTables":
        """The tables after reading these pointers again."""
        partitions, datasets = dict(self.partitions), dict(self.datasets)
        with ThreadPoolExecutor(POINTER_READERS) as pool:
            for key, pointed in pool.map(lambda key: (key, _read_pointer(store, key)), keys):
                partitions.pop(key, None)
                datasets.pop(key, None)
                if isinstance(pointed, PartitionManifest):
                    partitions[key] = pointed
                elif pointed is not None:
                    datasets[key] = pointed
        return CurrentTables(partitions, datasets)


def list_pointers(store: ObjectStore) -> dict[str, str]:
    """ETags of all pointers by key, from two listings."""
    return {
        listed.key: listed.etag
        for folder, leaf in ((Folder.MANIFESTS, "/current.json"), (Folder.DATASETS, "/latest.json"))
        for listed in store.listing(folder.prefix)
        if listed.key.endswith(leaf)
    }


def read_partition_manifest(
    store: ObjectStore, prompt_set: str, seed: int
) -> PartitionManifest | None:
    """The current manifest of a partition; None if it has none."""
    current, etag = read_current(store, prompt_set, seed)
    if current is None or etag is None:
        return None
    rows, fingerprint = current.rows, current.fingerprint
    return PartitionManifest(prompt_set, seed, etag, current.manifest, fingerprint, rows)


def _read_pointer(store: ObjectStore, key: str) -> PartitionManifest | DatasetReleases | None:
    folder, name, *rest = key.split("/")
    if folder == Folder.MANIFESTS:
        return read_partition_manifest(store, name, int(rest[0].removeprefix("seed=")))
    latest = store.get(key)
    if latest is None:
        return None
    # A release published after this GET changes the ETag, so the next look finds it.
    releases = tuple(
        ReleaseManifest(
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
    return DatasetReleases(latest.etag, releases)
