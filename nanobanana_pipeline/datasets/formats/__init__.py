"""Formats in which releases are stored, one module a format: `FORMATS` lists them."""

from typing import Final

from nanobanana_pipeline.datasets.formats.base import ReleaseFormat
from nanobanana_pipeline.datasets.formats.croissant import CROISSANT_FORMAT
from nanobanana_pipeline.datasets.formats.huggingface import HUGGINGFACE_FORMAT
from nanobanana_pipeline.datasets.formats.parquet import PARQUET_FORMAT
from nanobanana_pipeline.datasets.formats.webdataset import WEBDATASET_FORMAT
from nanobanana_pipeline.datasets.release import Format

__all__ = ["FORMATS", "shards_of"]

FORMATS: Final[dict[Format, ReleaseFormat]] = {
    Format.WEBDATASET: WEBDATASET_FORMAT,
    Format.PARQUET: PARQUET_FORMAT,
    Format.HUGGINGFACE: HUGGINGFACE_FORMAT,
    Format.CROISSANT: CROISSANT_FORMAT,
}
"""What a recipe may name; files are stored in this order. docs/extending.md adds a format."""


def shards_of(name: Format) -> Format:
    """The format whose shards a release in this format holds."""
    return FORMATS[name].shards_of or name
