"""WebDataset tars with their indexes, and a card that names the tars alone."""

from collections.abc import Iterator

from nanobanana_pipeline.datasets.formats.huggingface import CARD, card_of_tars
from nanobanana_pipeline.datasets.layouts.base import (
    LayoutFile,
    PulledRelease,
    TextFile,
    stored_files,
)
from nanobanana_pipeline.datasets.release import Format

__all__ = ["lay_out_webdataset"]


def lay_out_webdataset(pulled: PulledRelease) -> Iterator[LayoutFile]:
    """The tars and indexes as they are stored."""
    files = list(stored_files(pulled, Format.WEBDATASET))
    yield TextFile(CARD, card_of_tars(pulled.release, pulled.split).encode())
    yield from files
