"""From pictures in the bucket to shards in the bucket, in bounded memory.

A shard's pictures are read once and written into all its formats as they come. A receipt, written
when all its files are there, says what they are: a build that was killed finds it, and goes on
with the other shards.
"""

import contextlib
import hashlib
import json
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import (
    FIRST_EXCEPTION,
    CancelledError,
    Executor,
    Future,
    ThreadPoolExecutor,
    wait,
)
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from nanobanana_pipeline.bucket_keys import release_key, release_prefix
from nanobanana_pipeline.datasets.formats.parquet import ParquetShard, shard_schema
from nanobanana_pipeline.datasets.formats.webdataset import Sink, TarShard
from nanobanana_pipeline.datasets.object_streams import Upload
from nanobanana_pipeline.datasets.release import ReleaseFile
from nanobanana_pipeline.datasets.release_rows import taken
from nanobanana_pipeline.errors import ReleaseError
from nanobanana_pipeline.storage.cas import put_if_absent

if TYPE_CHECKING:
    import pyarrow as pa

    from nanobanana_pipeline.datasets.shard_layout import Shard
    from nanobanana_pipeline.storage import ObjectStore

__all__ = ["HELPERS", "PACKED", "PARQUET_TYPE", "pack", "pictures", "read_picture"]

INDEX: Final = "index"
"""Where the indexes of tars lie. Not beside them: readers take every file there for a tar."""

SHARDS_AT_ONCE: Final = 4
HELPERS: Final = 24
AHEAD_BYTES: Final = 16 * 2**20
AHEAD_ROWS: Final = 16
PARQUET_TYPE: Final = "application/vnd.apache.parquet"


class _Packer(Protocol):
    def add(self, row: dict[str, Any], image: bytes) -> None: ...

    def finish(self) -> None: ...


@dataclass(frozen=True)
class _Kind:
    """A format that shards have: its files' extension and MIME type, and what writes them."""

    suffix: str
    type: str
    packer: "Callable[[Sink, pa.Schema], _Packer]"


PACKED: Final = {
    "webdataset": _Kind("tar", "application/x-tar", lambda sink, _: TarShard(sink)),
    "parquet": _Kind(
        "parquet", PARQUET_TYPE, lambda sink, schema: ParquetShard(sink, shard_schema(schema))
    ),
}
"""The formats whose files are shards with pictures in them."""


def pack(
    store: "ObjectStore",
    folder: tuple[str, str],
    table: "pa.Table",
    shards: "Sequence[Shard]",
    formats: Sequence[str],
    earlier: Iterable[ReleaseFile] = (),
) -> list[ReleaseFile]:
    """Make the shards that are not there yet.

    Args:
        store: the bucket.
        folder: the dataset's name and the version that new files belong to.
        table: the release's rows with their keys.
        shards: all, as `lay_out` gives them.
        formats: names out of `PACKED`.
        earlier: files of the parent; those made of the very same rows are referred to, if they
            are there.

    Returns:
        Every shard's files, by format, split and number.

    Raises:
        ReleaseError: a picture is missing or damaged.
        StorageError: the bucket refuses.
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
        jobs = []
        for shard in shards:
            there = {name: by_digest.get((name, shard.digest), []) for name in formats}
            missing = [name for name, found in there.items() if not _whole(found, sizes)]
            files += [
                file for name, found in there.items() if name not in missing for file in found
            ]
            if missing:
                todo = _Job(store, folder, table, shard, missing, helpers, stop)
                jobs.append(workers.submit(todo.run))
        try:
            ended, _ = wait(jobs, return_when=FIRST_EXCEPTION)
            files += [file for job in ended for file in job.result()]
        except BaseException:
            stop.set()
            for job in jobs:
                job.cancel()
            raise
    order = {name: number for number, name in enumerate(formats)}
    return sorted(files, key=lambda file: (order[file.format], file.path))


@dataclass(frozen=True)
class _Job:
    store: "ObjectStore"
    folder: tuple[str, str]
    table: "pa.Table"
    shard: "Shard"
    formats: Sequence[str]
    helpers: Executor
    stop: threading.Event

    def run(self) -> list[ReleaseFile]:
        receipt = release_key(*self.folder, f"build/{self.shard.name}.json")
        files = self._finished(receipt)
        if files is None:
            files = self._made()
            body = json.dumps([asdict(file) for file in files]).encode()
            put_if_absent(self.store, receipt, body, content_type="application/json")
        return [file for file in files if file.format in self.formats]

    def _finished(self, receipt: str) -> list[ReleaseFile] | None:
        """The files that an earlier try has left, if all are there."""
        found = self.store.get(receipt)
        if found is None:
            return None
        files = [ReleaseFile(**said) for said in json.loads(found.body)]
        sizes = {o.key: o.size for file in files for o in self.store.listing(file.key)}
        return files if _whole(files, sizes) else None

    def _made(self) -> list[ReleaseFile]:
        rows = taken(self.table, self.shard.places)
        uploads: dict[str, Upload] = {}
        packers: dict[str, _Packer] = {}
        with contextlib.ExitStack() as stack:
            for name in self.formats:
                kind = PACKED[name]
                key = release_key(*self.folder, self._path(name, kind.suffix))
                upload = Upload(self.store, key, kind.type, self.helpers)
                uploads[name] = stack.enter_context(upload)
                packers[name] = kind.packer(upload, rows.schema)
            for row, image in pictures(self.store, rows, self.helpers):
                if self.stop.is_set():
                    raise CancelledError
                for packer in packers.values():
                    packer.add(row, image)
            for packer in packers.values():
                packer.finish()
        files = []
        for name, upload in uploads.items():
            path = self._path(name, PACKED[name].suffix)
            files.append(self._file(name, path, upload.size, upload.sha256))
            packer = packers[name]
            if isinstance(packer, TarShard):
                path = self._path(INDEX, "parquet")
                body = packer.index()
                self.store.put(release_key(*self.folder, path), body, content_type=PARQUET_TYPE)
                files.append(self._file(name, path, len(body), hashlib.sha256(body).hexdigest()))
        return files

    def _path(self, folder: str, suffix: str) -> str:
        return f"{folder}/{self.shard.name}.{suffix}"

    def _file(self, name: str, path: str, size: int, sha256: str) -> ReleaseFile:
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


def _whole(files: Sequence[ReleaseFile], sizes: Mapping[str, int]) -> bool:
    return bool(files) and all(sizes.get(file.key) == file.size for file in files)


def pictures(
    store: "ObjectStore", rows: "pa.Table", helpers: Executor
) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Each row with its picture, in order; a few are fetched ahead.

    Raises:
        ReleaseError: a picture is missing or damaged.
    """
    ahead: deque[tuple[dict[str, Any], Future[bytes]]] = deque()
    held = 0
    try:
        for batch in rows.to_batches(max_chunksize=1_000):
            for row in batch.to_pylist():
                ahead.append((row, helpers.submit(read_picture, store, row)))
                held += row["bytes"]
                while held > AHEAD_BYTES or len(ahead) > AHEAD_ROWS:
                    first, image = ahead.popleft()
                    held -= first["bytes"]
                    yield first, image.result()
        while ahead:
            first, image = ahead.popleft()
            yield first, image.result()
    finally:
        for _, image in ahead:
            image.cancel()


def read_picture(store: "ObjectStore", row: dict[str, Any]) -> bytes:
    """A row's picture, byte for byte.

    Raises:
        ReleaseError: it is missing or damaged.
    """
    found = store.get(row["image_key"])
    if found is None:
        raise ReleaseError(
            f"{store.uri(row['image_key'])} is missing, and row {row['row_id']} needs it: run "
            "nanobanana audit"
        )
    if hashlib.sha256(found.body).hexdigest() != row["image_sha256"]:
        raise ReleaseError(
            f"{store.uri(row['image_key'])} is damaged: its bytes have another SHA-256; run "
            "nanobanana audit"
        )
    return found.body
