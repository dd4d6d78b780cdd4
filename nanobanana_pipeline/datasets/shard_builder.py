"""Builds the shards of a release from the images in the bucket, in bounded memory.

A shard's images are read once and written into all its formats as they come. A receipt, written
after all files of a shard, lists them, so that a build that was killed goes on with the others.
"""

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, CancelledError, Executor, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from typing import Final

import pyarrow as pa
from pydantic import TypeAdapter

from nanobanana_pipeline.bucket_keys import release_key, release_prefix
from nanobanana_pipeline.datasets.formats.base import PARQUET_MEDIA_TYPE, ShardFiles, ShardWriter
from nanobanana_pipeline.datasets.object_streams import Upload
from nanobanana_pipeline.datasets.release import Format, ReleaseFile
from nanobanana_pipeline.datasets.release_rows import taken
from nanobanana_pipeline.datasets.row_images import read_row_images
from nanobanana_pipeline.datasets.shard_layout import Shard
from nanobanana_pipeline.storage import ObjectStore
from nanobanana_pipeline.storage.cas import put_if_absent

__all__ = ["HELPERS", "INDEX", "build_shards"]

INDEX: Final = "index"
"""Where the indexes of tars lie. Not beside them: readers take every file there for a tar."""

SHARDS_AT_ONCE: Final = 4
HELPERS: Final = 24

_RECEIPT: Final = TypeAdapter(list[ReleaseFile])


def build_shards(
    store: ObjectStore,
    folder: tuple[str, str],
    table: pa.Table,
    shards: Sequence[Shard],
    formats: Mapping[Format, ShardFiles],
    earlier: Iterable[ReleaseFile] = (),
) -> list[ReleaseFile]:
    """Build the shards that are not there yet; gives the files of all, by format, split and number.

    Args:
        store: the bucket.
        folder: the dataset's name and the version that new files belong to.
        table: the release's rows with their keys.
        shards: all, as `assign_shards` gives them.
        formats: what to build, in the order of the files.
        earlier: files of the parent; those made of the very same rows are referred to, if they
            are there.
    """
    by_digest: dict[tuple[str, str | None], list[ReleaseFile]] = {}
    sizes = {each.key: each.size for each in store.listing(release_prefix(folder[0]))}
    for file in earlier:
        by_digest.setdefault((file.format, file.digest), []).append(file)
    files: list[ReleaseFile] = []
    with (
        ThreadPoolExecutor(HELPERS, "release-io") as helpers,
        ThreadPoolExecutor(SHARDS_AT_ONCE, "release-shard") as workers,
    ):
        stop = threading.Event()
        futures = []
        for shard in shards:
            missing = {}
            for name, kind in formats.items():
                existing = by_digest.get((name, shard.digest), [])
                if _are_stored(existing, sizes):
                    files += existing
                else:
                    missing[name] = kind
            if missing:
                job = _ShardJob(store, folder, table, shard, missing, helpers, stop)
                futures.append(workers.submit(job.run))
        try:
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            files += [file for future in done for file in future.result()]
        except BaseException:
            stop.set()
            for future in futures:
                future.cancel()
            raise
    order = list(formats)
    return sorted(files, key=lambda file: (order.index(Format(file.format)), file.path))


@dataclass(frozen=True)
class _ShardJob:
    store: ObjectStore
    folder: tuple[str, str]
    table: pa.Table
    shard: Shard
    formats: Mapping[Format, ShardFiles]
    helpers: Executor
    stop: threading.Event

    def run(self) -> list[ReleaseFile]:
        receipt = release_key(*self.folder, f"build/{self.shard.name}.json")
        files = self._stored_files(receipt)
        if files is None:
            files = self._build()
            body = json.dumps([asdict(file) for file in files]).encode()
            put_if_absent(self.store, receipt, body, content_type="application/json")
        return [file for file in files if file.format in self.formats]

    def _stored_files(self, receipt: str) -> list[ReleaseFile] | None:
        """The files that an earlier try has left, if all are there."""
        stored = self.store.get(receipt)
        if stored is None:
            return None
        files = _RECEIPT.validate_json(stored.body)
        sizes = {o.key: o.size for file in files for o in self.store.listing(file.key)}
        return files if _are_stored(files, sizes) else None

    def _build(self) -> list[ReleaseFile]:
        rows = taken(self.table, self.shard.places)
        uploads: dict[Format, Upload] = {}
        writers: dict[Format, ShardWriter] = {}
        with contextlib.ExitStack() as stack:
            for name, kind in self.formats.items():
                key = release_key(*self.folder, self._path(name, kind.suffix))
                upload = Upload(self.store, key, kind.media_type, self.helpers)
                uploads[name] = stack.enter_context(upload)
                writers[name] = kind.open(upload, rows.schema)
            for row, image in read_row_images(self.store, rows, self.helpers):
                if self.stop.is_set():
                    raise CancelledError
                for writer in writers.values():
                    writer.add(row, image)
            indexes = {name: writer.finish() for name, writer in writers.items()}
        files = []
        for name, upload in uploads.items():
            path = self._path(name, self.formats[name].suffix)
            files.append(self._file(name, path, upload.size, upload.sha256))
            index = indexes[name]
            if index is not None:
                path = self._path(INDEX, "parquet")
                key = release_key(*self.folder, path)
                self.store.put(key, index, content_type=PARQUET_MEDIA_TYPE)
                files.append(self._file(name, path, len(index), hashlib.sha256(index).hexdigest()))
        return files

    def _path(self, folder: str, suffix: str) -> str:
        return f"{folder}/{self.shard.name}.{suffix}"

    def _file(self, name: Format, path: str, size: int, sha256: str) -> ReleaseFile:
        return ReleaseFile(
            path=path,
            key=release_key(*self.folder, path),
            size=size,
            sha256=sha256,
            format=name,
            split=self.shard.split,
            shard=self.shard.number,
            rows=len(self.shard.places),
            digest=self.shard.digest,
        )


def _are_stored(files: Sequence[ReleaseFile], sizes: Mapping[str, int]) -> bool:
    return bool(files) and all(sizes.get(file.key) == file.size for file in files)
