"""Pulls a release into a folder, in any of `LAYOUTS`, and verifies stored releases."""

import hashlib
import io
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import pyarrow.compute as pc
from PIL import Image

from nanobanana_pipeline.datasets.layouts import LAYOUTS, Layout
from nanobanana_pipeline.datasets.layouts.base import ImageFile, PulledRelease, TextFile
from nanobanana_pipeline.datasets.object_streams import pieces
from nanobanana_pipeline.datasets.release import MANIFEST, Release, ReleaseFile, read_release_arrow
from nanobanana_pipeline.datasets.release_rows import attributes, rows_of
from nanobanana_pipeline.datasets.row_images import read_image
from nanobanana_pipeline.errors import ReleaseError, StorageError
from nanobanana_pipeline.storage import ObjectStore
from nanobanana_pipeline.wording import counted

__all__ = ["PullResult", "pull", "verify"]

DOWNLOADS_AT_ONCE: Final = 8
PART: Final = ".part"


@dataclass(frozen=True)
class FileFault:
    """A file of a release that is not what was published."""

    path: str
    uri: str
    what: str


@dataclass(frozen=True)
class PullResult:
    """Files that `pull` wrote and kept, and the bytes of both."""

    written: int
    kept: int
    size: int


def verify(store: ObjectStore, release: Release) -> Iterator[FileFault]:
    """Read every file of a release again, and compare sizes and hashes.

    Raises:
        StorageUnavailable: S3 stayed silent: nothing is known then.
    """
    with ThreadPoolExecutor(DOWNLOADS_AT_ONCE) as pool:
        for fault in pool.map(lambda file: _fault(store, file), release.files):
            if fault is not None:
                yield fault


def pull(
    store: ObjectStore, release: Release, folder: Path, layout: Layout, split: str | None = None
) -> PullResult:
    """Lay a release down in a folder; every byte is checked on the way.

    What is there already, whole, stays: a pull that was ended goes on. The folder is made if
    needed; a `split` of None pulls all.

    Raises:
        ReleaseError: the release has no such format or split, a file is missing or damaged, or the
            folder holds files that do not belong to it; those are left alone.
    """
    if split is not None and split not in release.splits:
        raise ReleaseError(
            f"{release.name} {release.version} has no split {split!r}; there are "
            f"{', '.join(release.splits)}"
        )
    folder = folder.resolve()
    writers = dict(_plan(store, release, layout, split))
    _refuse_strangers(folder, writers)
    with ThreadPoolExecutor(DOWNLOADS_AT_ONCE) as pool:
        written = list(pool.map(lambda path: writers[path](folder / path), writers))
    size = sum((folder / path).stat().st_size for path in writers)
    return PullResult(sum(written), len(written) - sum(written), size)


_Writer = Callable[[Path], bool]
"""Writes one file; False where it was there already, whole."""


def _plan(
    store: ObjectStore, release: Release, layout: Layout, split: str | None
) -> Iterator[tuple[str, _Writer]]:
    verify_command = f"nanobanana release verify {release.name} --version {release.version} --mend"
    pulled = PulledRelease(
        release, layout, split, lambda: _rows(store, release, split), attributes(release.columns)
    )
    for file in LAYOUTS[layout](pulled):
        match file:
            case TextFile(path, body):
                yield path, partial(_write, body)
            case ImageFile(path, row, as_png=True):
                yield path, partial(_write_png, store, row)
            case ImageFile(path, row):
                image = row["image_key"], row["bytes"], row["image_sha256"]
                yield path, partial(_copy, store, *image, "nanobanana audit")
            case ReleaseFile(path, key, size, sha256):
                yield path, partial(_copy, store, key, size, sha256, verify_command)


def _rows(store: ObjectStore, release: Release, split: str | None) -> Iterator[dict[str, Any]]:
    manifest = read_release_arrow(store, release, MANIFEST)
    if split is not None:
        manifest = manifest.filter(pc.equal(manifest["split"], split))
    return rows_of(manifest)


def _write(body: bytes, path: Path) -> bool:
    if path.is_file() and path.read_bytes() == body:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + PART)
    part.write_bytes(body)
    part.replace(path)
    return True


def _write_png(store: ObjectStore, row: dict[str, Any], path: Path) -> bool:
    png = io.BytesIO()
    with Image.open(io.BytesIO(read_image(store, row))) as image:
        image.save(png, "PNG")
    return _write(png.getvalue(), path)


def _copy(store: ObjectStore, key: str, size: int, sha256: str, remedy: str, path: Path) -> bool:
    """Copy an object; `remedy` is the command to run when it is not what was published."""
    if path.is_file() and path.stat().st_size == size:
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() == sha256:
                return False
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + PART)
    digest = hashlib.sha256()
    try:
        with part.open("wb") as file:
            for piece in pieces(store, key, size):
                digest.update(piece)
                file.write(piece)
    except StorageError as error:
        if _size_there(store, key) == size:
            raise
        raise ReleaseError(f"{error}: run {remedy}") from error
    if digest.hexdigest() != sha256:
        part.unlink()
        raise ReleaseError(
            f"{store.uri(key)} is damaged: its SHA-256 is not what was published; run {remedy}"
        )
    part.replace(path)
    return True


def _refuse_strangers(folder: Path, writers: dict[str, _Writer]) -> None:
    """Readers take every shard of a folder: those of another release would count twice."""
    for path in writers:
        if not (folder / path).resolve().is_relative_to(folder):
            raise ReleaseError(f"a file of the release would lie outside of {folder}: {path!r}")
    for found in folder.rglob("*"):
        path = found.relative_to(folder).as_posix()
        if found.is_file() and path.removesuffix(PART) not in writers:
            raise ReleaseError(
                f"{folder} holds {path}, which is no part of this release laid out like this: "
                "pull into another folder, or move it away"
            )


def _fault(store: ObjectStore, file: ReleaseFile) -> FileFault | None:
    fault = partial(FileFault, file.path, store.uri(file.key))
    size = _size_there(store, file.key)
    if size is None:
        return fault("missing")
    if size != file.size:
        return fault(f"{counted(size, 'byte')} instead of {file.size:,}")
    digest = hashlib.sha256()
    for piece in pieces(store, file.key, file.size):
        digest.update(piece)
    return None if digest.hexdigest() == file.sha256 else fault("damaged: its SHA-256 differs")


def _size_there(store: ObjectStore, key: str) -> int | None:
    return next((found.size for found in store.listing(key) if found.key == key), None)
