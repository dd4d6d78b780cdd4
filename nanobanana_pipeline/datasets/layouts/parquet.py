"""Parquet shards as they are stored."""

from collections.abc import Iterator

from nanobanana_pipeline.datasets.layouts.base import LayoutFile, PulledRelease, stored_files
from nanobanana_pipeline.datasets.release import Format

__all__ = ["lay_out_parquet"]


def lay_out_parquet(pulled: PulledRelease) -> Iterator[LayoutFile]:
    """The shards alone."""
    return stored_files(pulled, Format.PARQUET)
