"""Repairs damaged shards of a release: builds them again from the images that they hold.

A shard's bytes follow from its rows, so what is built again is what was published, or nothing.
"""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import pyarrow.compute as pc

from nanobanana_pipeline.datasets.formats import FORMATS
from nanobanana_pipeline.datasets.formats.base import PARQUET_MEDIA_TYPE
from nanobanana_pipeline.datasets.object_streams import Upload
from nanobanana_pipeline.datasets.release import (
    MANIFEST,
    EveryRelease,
    Release,
    read_release_arrow,
)
from nanobanana_pipeline.datasets.release_rows import KEY_COLUMN
from nanobanana_pipeline.datasets.row_images import read_row_images
from nanobanana_pipeline.datasets.shard_builder import HELPERS, INDEX
from nanobanana_pipeline.errors import ReleaseError
from nanobanana_pipeline.storage import ObjectStore

__all__ = ["repair"]


def repair(store: ObjectStore, release: Release, path: str) -> None:
    """Make a shard, or the index of one, again under its own key.

    Raises:
        ReleaseError: it is no shard, a picture or the manifest is missing or damaged, or what
            comes out is not what was published: nothing is written then.
    """
    file = release.file(path)
    kind = None if isinstance(file.format, EveryRelease) else FORMATS[file.format].shards
    if kind is None:
        raise ReleaseError(
            f"{path} is no shard and cannot be made again: restore it from a backup or from the "
            "bucket's versions; some layouts have it in a folder that was pulled earlier"
        )
    manifest = read_release_arrow(store, release, MANIFEST)
    here = pc.and_(pc.equal(manifest["split"], file.split), pc.equal(manifest["shard"], file.shard))
    rows = manifest.filter(here).drop_columns(["shard", "row_sha256"]).sort_by(KEY_COLUMN)
    is_index = path.startswith(f"{INDEX}/")
    with ThreadPoolExecutor(HELPERS, "repair-io") as helpers:
        upload = Upload(store, file.key, kind.media_type, helpers)
        with nullcontext(_ByteCounter()) if is_index else upload as sink:
            writer = kind.open(sink, rows.schema)
            for row, image in read_row_images(store, rows, helpers):
                writer.add(row, image)
            index = writer.finish() or b""
            sha256 = hashlib.sha256(index).hexdigest() if is_index else upload.sha256
            if sha256 != file.sha256:
                raise ReleaseError(
                    f"{store.uri(file.key)} cannot be made again as it was published: this version "
                    "of the package, or of pyarrow, writes other bytes. Use the version that "
                    "release.json names as code_version, or restore the file from a copy"
                )
        if is_index:
            store.put(file.key, index, content_type=PARQUET_MEDIA_TYPE)


class _ByteCounter:
    """A sink that only counts."""

    def __init__(self) -> None:
        self._size = 0

    def write(self, data: bytes, /) -> int:
        self._size += len(data)
        return len(data)

    def tell(self) -> int:
        return self._size
