"""Releases on disk, and whether a release is still what was published."""

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from nanobanana_pipeline.datasets.formats.croissant import CROISSANT
from nanobanana_pipeline.datasets.formats.gallery import GALLERY
from nanobanana_pipeline.datasets.formats.huggingface import CARD, card, card_of_tars
from nanobanana_pipeline.datasets.formats.scorers import (
    ScoredPicture,
    ScorerFile,
    as_png,
    geneval,
    partiprompts,
)
from nanobanana_pipeline.datasets.object_streams import pieces
from nanobanana_pipeline.datasets.packing import read_picture
from nanobanana_pipeline.datasets.recipe import NEEDS_PARQUET, Format
from nanobanana_pipeline.datasets.release import MANIFEST, Release, ReleaseFile, read_release_table
from nanobanana_pipeline.datasets.release_rows import attributes
from nanobanana_pipeline.errors import ReleaseError, StorageError
from nanobanana_pipeline.wording import counted

if TYPE_CHECKING:
    from nanobanana_pipeline.storage import ObjectStore

__all__ = ["As", "FileFault", "Pulled", "pull", "verify"]

DOWNLOADS_AT_ONCE: Final = 8
PART: Final = ".part"


class As(StrEnum):
    """How a release is laid out on disk."""

    WEBDATASET = "webdataset"
    PARQUET = "parquet"
    HUGGINGFACE = "huggingface"
    GENEVAL = "geneval"
    PARTIPROMPTS = "partiprompts"


@dataclass(frozen=True)
class FileFault:
    """A file of a release that is not what was published."""

    path: str
    uri: str
    what: str


@dataclass(frozen=True)
class Pulled:
    """What `pull` did.

    Attributes:
        written: files.
        kept: files that were there already.
        size: bytes of both.
    """

    written: int
    kept: int
    size: int


def verify(store: "ObjectStore", release: Release) -> Iterator[FileFault]:
    """Read every file of a release again, and compare sizes and hashes.

    Raises:
        StorageUnavailable: S3 stayed silent: nothing is known then.
    """
    with ThreadPoolExecutor(DOWNLOADS_AT_ONCE) as pool:
        for fault in pool.map(lambda file: _fault(store, file), release.files):
            if fault is not None:
                yield fault


def pull(
    store: "ObjectStore",
    release: Release,
    folder: Path,
    layout: As,
    split: str | None = None,
) -> Pulled:
    """Lay a release down in a folder; every byte is checked on the way.

    What is there already, whole, stays: a pull that was ended goes on.

    Args:
        store: the bucket.
        release: which one.
        folder: where to; made if needed.
        layout: how.
        split: only that one; None for all.

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
    wanted = dict(_plan(store, release, layout, split))
    _refuse_strangers(folder, wanted)
    with ThreadPoolExecutor(DOWNLOADS_AT_ONCE) as pool:
        written = list(pool.map(lambda path: wanted[path](folder / path), wanted))
    size = sum((folder / path).stat().st_size for path in wanted)
    return Pulled(sum(written), len(written) - sum(written), size)


_Put = Callable[[Path], bool]
"""Makes one file, and says whether it was not there yet."""


def _plan(
    store: "ObjectStore", release: Release, layout: As, split: str | None
) -> Iterator[tuple[str, _Put]]:
    if layout in {As.GENEVAL, As.PARTIPROMPTS}:
        lay_out = geneval if layout is As.GENEVAL else partiprompts
        for part in lay_out(_rows(store, release, split), attributes(release.columns)):
            if isinstance(part, ScorerFile):
                yield part.path, _Body(part.body)
            else:
                yield part.path, _drawn(store, part)
        return
    format_ = "webdataset" if layout is As.WEBDATASET else "parquet"
    shards = release.shards(format_, "")
    if not shards:
        holders = [Format.WEBDATASET] if layout is As.WEBDATASET else sorted(NEEDS_PARQUET)
        raise ReleaseError(
            f"{release.name} {release.version} cannot be laid out as {layout}: that needs one of "
            f"the formats {', '.join(holders)}, and it was built as "
            f"{', '.join(release.recipe['formats'])}. Add one to the recipe and build again, or "
            "pull it as it is, with --as"
        )
    files = [file for file in shards if split in (None, file.split)]
    if split is None:
        files += [file for file in release.files if file.path == GALLERY]
    splits = None if split is None else [split]
    if layout is As.WEBDATASET:
        yield CARD, _Body(card_of_tars(release, splits).encode())
    if layout is As.HUGGINGFACE:
        yield CARD, _Body(card(release, splits).encode())
        files += [
            file
            for file in release.files
            if (file.format == Format.HUGGINGFACE and file.path != CARD)
            or (file.path == CROISSANT and split is None)
        ]
    remedy = f"nanobanana release verify {release.name} --version {release.version} --mend"
    for file in files:
        yield file.path, _Copy(store, file.key, file.size, file.sha256, remedy)


def _rows(store: "ObjectStore", release: Release, split: str | None) -> Iterator[dict[str, Any]]:
    manifest = read_release_table(store, release, MANIFEST)
    if split is not None:
        manifest = manifest[manifest["split"] == split]
    for row in manifest.astype(object).where(manifest.notna(), None).to_dict("records"):
        yield {str(name): value for name, value in row.items()}


def _drawn(store: "ObjectStore", part: ScoredPicture) -> _Put:
    row = part.row
    if part.png:
        return _Converted(store, row)
    return _Copy(store, row["image_key"], row["bytes"], row["image_sha256"], "nanobanana audit")


@dataclass(frozen=True)
class _Body:
    body: bytes

    def __call__(self, path: Path) -> bool:
        if path.is_file() and path.read_bytes() == self.body:
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + PART)
        part.write_bytes(self.body)
        part.replace(path)
        return True


@dataclass(frozen=True)
class _Copy:
    store: "ObjectStore"
    key: str
    size: int
    sha256: str
    remedy: str
    """The command to run when it is not what was published."""

    def __call__(self, path: Path) -> bool:
        if path.is_file() and path.stat().st_size == self.size and _hash(path) == self.sha256:
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + PART)
        digest = hashlib.sha256()
        try:
            with part.open("wb") as file:
                for piece in pieces(self.store, self.key, self.size):
                    digest.update(piece)
                    file.write(piece)
        except StorageError as error:
            if _size_there(self.store, self.key) == self.size:
                raise
            raise ReleaseError(f"{error}: run {self.remedy}") from error
        if digest.hexdigest() != self.sha256:
            part.unlink()
            raise ReleaseError(
                f"{self.store.uri(self.key)} is damaged: its SHA-256 is not what was published; "
                f"run {self.remedy}"
            )
        part.replace(path)
        return True


@dataclass(frozen=True)
class _Converted:
    store: "ObjectStore"
    row: dict[str, Any]

    def __call__(self, path: Path) -> bool:
        return _Body(as_png(read_picture(self.store, self.row)))(path)


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _refuse_strangers(folder: Path, wanted: dict[str, _Put]) -> None:
    """Readers take every shard of a folder: those of another release would count twice."""
    for path in wanted:
        if not (folder / path).resolve().is_relative_to(folder):
            raise ReleaseError(f"a file of the release would lie outside of {folder}: {path!r}")
    for found in folder.rglob("*"):
        path = found.relative_to(folder).as_posix()
        if found.is_file() and path.removesuffix(PART) not in wanted:
            raise ReleaseError(
                f"{folder} holds {path}, which is no part of this release laid out like this: "
                "pull into another folder, or move it away"
            )


def _fault(store: "ObjectStore", file: ReleaseFile) -> FileFault | None:
    size = _size_there(store, file.key)
    if size is None:
        return FileFault(file.path, store.uri(file.key), "missing")
    if size != file.size:
        what = f"{counted(size, 'byte')} instead of {file.size:,}"
        return FileFault(file.path, store.uri(file.key), what)
    digest = hashlib.sha256()
    for piece in pieces(store, file.key, file.size):
        digest.update(piece)
    if digest.hexdigest() != file.sha256:
        return FileFault(file.path, store.uri(file.key), "damaged: its SHA-256 differs")
    return None


def _size_there(store: "ObjectStore", key: str) -> int | None:
    return next((found.size for found in store.listing(key) if found.key == key), None)
