"""Releases as they are stored (`Release`, `ReleaseFile`), and how they are found and read.

``datasets/<name>/<version>/release.json`` names every file with its size and hash; a release
counts once ``datasets/<name>/latest.json`` leads to it, directly or through the parents of the one
that it names. Nothing of a release is ever changed.
"""

import hashlib
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter, ValidationError

from nanobanana_pipeline.bucket_keys import Folder, latest_release_key, release_key
from nanobanana_pipeline.errors import ReleaseError
from nanobanana_pipeline.storage import ObjectStore, StoredObject
from nanobanana_pipeline.storage.cas import RESTORE, parse_json
from nanobanana_pipeline.storage.versioned import SCHEMA_KEY, as_frame

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "BUILD_QUIET_SECONDS",
    "CHANGELOG",
    "MANIFEST",
    "REJECTED",
    "EveryRelease",
    "Format",
    "Release",
    "ReleaseFile",
    "all_releases",
    "dataset_names",
    "find_release",
    "parse_latest",
    "read_latest",
    "read_release",
    "read_release_arrow",
    "read_release_table",
    "table_bytes",
]

SCHEMA: Final = 1
MANIFEST: Final = "manifest.parquet"
CHANGELOG: Final = "changelog.parquet"
REJECTED: Final = "rejected.parquet"
BUILD_QUIET_SECONDS: Final = 24 * 3600
"""A build writes a shard now and then: one that wrote nothing for so long was killed."""


class Format(StrEnum):
    """What a release is published as; `formats.FORMATS` says how."""

    WEBDATASET = "webdataset"
    PARQUET = "parquet"
    HUGGINGFACE = "huggingface"
    CROISSANT = "croissant"


class EveryRelease(StrEnum):
    """What stands in place of a format for files that every release has."""

    MANIFEST = "manifest"


@dataclass(frozen=True)
class ReleaseFile:
    """One file; what belongs to shards is None for others.

    Attributes:
        path: in the release, as `pull` lays it down.
        key: where it lies in the bucket, below the prefix; in an earlier version's folder, where
            nothing in it has changed since.
        size: bytes.
        shard: its number in the split.
        digest: of what a shard was made of.
    """

    path: str
    key: str
    size: int
    sha256: str
    format: Format | EveryRelease
    split: str | None = None
    shard: int | None = None
    rows: int | None = None
    digest: str | None = None


@dataclass(frozen=True)
class Release:
    """The content of ``release.json``.

    Attributes:
        version: ``v1``, ``v2``, …; a number that was begun and given up is left out.
        fingerprint: SHA-256, in hexadecimal, of the recipe and of all rows.
        parent: the version that this one continues, or None.
        created: when its build began, ISO 8601 in UTC.
        recipe: as `Recipe.model_dump` gives it.
        rows, images, size: pictures in it, distinct ones, and their bytes.
        splits, kinds: rows of each split, and of each image format.
        columns: each column's name and Arrow type, in order.
        changes: rows added, removed and changed since the parent; {} without one.
        next_key: the first number that no row of this chain of releases has had.
        files: all but ``release.json`` itself.
    """

    name: str
    version: str
    fingerprint: str
    parent: str | None
    created: str
    code_version: str
    recipe: Mapping[str, Any]
    rows: int
    images: int
    size: int
    splits: Mapping[str, int]
    kinds: Mapping[str, int]
    columns: Mapping[str, str]
    changes: Mapping[str, int]
    next_key: int
    files: tuple[ReleaseFile, ...] = field(repr=False)
    schema: int = SCHEMA

    def file(self, path: str) -> ReleaseFile:
        """A file by its path.

        Raises:
            ReleaseError: there is none.
        """
        for file in self.files:
            if file.path == path:
                return file
        raise ReleaseError(f"{self.name} {self.version} has no {path}")

    def shards(self, format_: Format, suffix: str = "") -> list[ReleaseFile]:
        """The shards of a format, by split and number."""
        return [f for f in self.files if f.format == format_ and f.path.endswith(suffix)]

    def to_json(self) -> bytes:
        """What lies in the bucket."""
        return json.dumps(asdict(self), indent=1, ensure_ascii=False).encode()


_RELEASE: Final = TypeAdapter(Release)


def read_latest(store: ObjectStore, dataset: str) -> Release | None:
    """A dataset's current release; None if there is none."""
    return parse_latest(store, dataset, store.get(latest_release_key(dataset)))


def parse_latest(store: ObjectStore, dataset: str, found: StoredObject | None) -> Release | None:
    """The release that a dataset's ``latest.json``, as it was read, leads to; None if none."""
    if found is None:
        return None
    where = store.uri(latest_release_key(dataset))
    version, sha256 = parse_json(
        found.body,
        where,
        lambda body: [str(json.loads(body)[name]) for name in ("version", "sha256")],
        SCHEMA,
        error=ReleaseError,
    )
    return read_release(store, dataset, version, sha256)


def read_release(
    store: ObjectStore, dataset: str, version: str, sha256: str | None = None
) -> Release:
    """Read a version's ``release.json``, whether or not it was ever published.

    Raises:
        ReleaseError: it is missing, damaged, its bytes have another SHA-256 than `sha256`
            (hexadecimal), or it was written by a newer version.
    """
    key = release_key(dataset, version, "release.json")
    where = store.uri(key)
    found = store.get(key)
    if found is None:
        raise ReleaseError(f"{where} is missing: {RESTORE}")
    if sha256 is not None and hashlib.sha256(found.body).hexdigest() != sha256:
        raise ReleaseError(f"{where} is not what was published, its SHA-256 differs: {RESTORE}")
    return parse_json(found.body, where, partial(_parsed, where), SCHEMA, error=ReleaseError)


def _parsed(where: str, body: bytes) -> Release:
    try:
        return _RELEASE.validate_json(body)
    except ValidationError as error:
        if {fault["type"] for fault in error.errors()} == {"enum"}:
            raise ReleaseError(
                f"{where} names a format that this version does not know: "
                "upgrade nanobanana-pipeline"
            ) from error
        raise


def all_releases(store: ObjectStore, dataset: str) -> Iterator[Release]:
    """A dataset's releases, the latest first."""
    release = read_latest(store, dataset)
    while release is not None:
        yield release
        release = read_release(store, dataset, release.parent) if release.parent else None


def find_release(store: ObjectStore, dataset: str, version: str | None = None) -> Release:
    """A release by its version; the latest if None.

    Raises:
        ReleaseError: there is none.
    """
    known = []
    for release in all_releases(store, dataset):
        if version in (None, release.version):
            return release
        known.append(release.version)
    if known:
        raise ReleaseError(f"{dataset} has no release {version}; there are {', '.join(known)}")
    raise ReleaseError(
        f"{store.uri('')} has no release of {dataset!r}: see nanobanana release list, or build one "
        "with nanobanana release build"
    )


def dataset_names(store: ObjectStore) -> list[str]:
    """Every dataset that has a release, by name."""
    keys = (key.split("/") for key in store.keys(Folder.DATASETS.prefix))
    return [parts[1] for parts in keys if parts[2:] == ["latest.json"]]


def read_release_table(
    store: ObjectStore, release: Release, path: str, columns: list[str] | None = None
) -> "pd.DataFrame":
    """A table of a release: its manifest, changelog or rejected rows."""
    return as_frame(read_release_arrow(store, release, path, columns))


def read_release_arrow(
    store: ObjectStore, release: Release, path: str, columns: list[str] | None = None
) -> pa.Table:
    """The same, as it is stored."""
    file = release.file(path)
    found = store.get(file.key)
    if found is None or hashlib.sha256(found.body).hexdigest() != file.sha256:
        what = "missing" if found is None else "damaged: its SHA-256 is not what was published"
        raise ReleaseError(
            f"{store.uri(file.key)} is {what}. It cannot be made again: {RESTORE}, and see with "
            f"nanobanana release verify {release.name} --version {release.version} that all is as "
            "published"
        )
    # Not `pq.read_table`, which is made for many files and imports pandas.
    table = pq.ParquetFile(io.BytesIO(found.body)).read(columns)
    return table.replace_schema_metadata()


def table_bytes(table: pa.Table) -> bytes:
    """A table as `read_release_table` reads it."""
    body = io.BytesIO()
    pq.write_table(
        table.replace_schema_metadata({SCHEMA_KEY: str(SCHEMA).encode()}), body, compression="zstd"
    )
    return body.getvalue()
