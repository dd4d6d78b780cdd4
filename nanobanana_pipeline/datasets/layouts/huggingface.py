"""A folder that Hugging Face's tools read: Parquet shards, the dataset card and what it shows."""

from collections.abc import Iterator

from nanobanana_pipeline.datasets.formats.croissant import CROISSANT
from nanobanana_pipeline.datasets.formats.huggingface import CARD, card
from nanobanana_pipeline.datasets.layouts.base import (
    LayoutFile,
    PulledRelease,
    TextFile,
    stored_files,
)
from nanobanana_pipeline.datasets.release import Format

__all__ = ["lay_out_huggingface"]


def lay_out_huggingface(pulled: PulledRelease) -> Iterator[LayoutFile]:
    """The shards with a card of the splits that are pulled."""
    files = list(stored_files(pulled, Format.PARQUET))
    yield TextFile(CARD, card(pulled.release, pulled.split).encode())
    yield from files
    for file in pulled.release.files:
        if (file.format == Format.HUGGINGFACE and file.path != CARD) or (
            file.path == CROISSANT and pulled.split is None
        ):
            yield file
