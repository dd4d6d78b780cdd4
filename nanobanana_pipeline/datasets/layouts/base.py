"""What a layout on disk is: a function from a `PulledRelease` to files (`LayoutFile`)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from nanobanana_pipeline.datasets.formats import FORMATS, shards_of
from nanobanana_pipeline.datasets.formats.gallery import GALLERY
from nanobanana_pipeline.datasets.release import Format, Release, ReleaseFile
from nanobanana_pipeline.errors import ReleaseError

__all__ = ["ImageFile", "LayOut", "LayoutFile", "PulledRelease", "TextFile", "stored_files"]


@dataclass(frozen=True)
class ImageFile:
    """An image of the folder: its bytes, or the same pixels `as_png`."""

    path: str
    row: dict[str, Any]
    as_png: bool = False


@dataclass(frozen=True)
class TextFile:
    """A small file of the folder."""

    path: str
    body: bytes


LayoutFile = ImageFile | TextFile | ReleaseFile
"""A file of the folder; a `ReleaseFile` is copied to its own path."""


@dataclass(frozen=True)
class PulledRelease:
    """What a layout is made of.

    Attributes:
        layout: its name.
        split: the only one to pull; None for all.
        rows: reads the release's rows, in order: each a dict of its columns.
        attributes: the columns that come from the prompt table.
    """

    release: Release
    layout: str
    split: str | None
    rows: Callable[[], Iterator[dict[str, Any]]]
    attributes: list[str]


LayOut = Callable[[PulledRelease], Iterator[LayoutFile]]


def stored_files(pulled: PulledRelease, shards: Format) -> Iterator[ReleaseFile]:
    """The stored shards of a format, and the gallery where every split is pulled.

    Raises:
        ReleaseError: the release has none.
    """
    release = pulled.release
    files = release.shards(shards)
    if not files:
        needed = sorted(name for name in FORMATS if shards_of(name) == shards)
        raise ReleaseError(
            f"{release.name} {release.version} cannot be laid out as {pulled.layout}: that needs "
            f"one of the formats {', '.join(needed)}, and it was built as "
            f"{', '.join(release.recipe['formats'])}. Add one to the recipe and build again, or "
            "pull it as it is, with --as"
        )
    yield from (file for file in files if pulled.split in {None, file.split})
    if pulled.split is None:
        yield from (file for file in release.files if file.path == GALLERY)
