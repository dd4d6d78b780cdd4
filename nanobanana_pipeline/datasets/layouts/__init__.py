"""Layouts of a release on disk, one module a layout: `LAYOUTS` lists them.

``webdataset``, ``parquet`` and ``huggingface`` copy stored files; the others are made on pull.
"""

from enum import StrEnum
from typing import Final

from nanobanana_pipeline.datasets.layouts.base import LayOut
from nanobanana_pipeline.datasets.layouts.geneval import lay_out_geneval
from nanobanana_pipeline.datasets.layouts.huggingface import lay_out_huggingface
from nanobanana_pipeline.datasets.layouts.parquet import lay_out_parquet
from nanobanana_pipeline.datasets.layouts.partiprompts import lay_out_partiprompts
from nanobanana_pipeline.datasets.layouts.webdataset import lay_out_webdataset

__all__ = ["LAYOUTS", "Layout"]


class Layout(StrEnum):
    """How a release is laid out on disk."""

    WEBDATASET = "webdataset"
    PARQUET = "parquet"
    HUGGINGFACE = "huggingface"
    GENEVAL = "geneval"
    PARTIPROMPTS = "partiprompts"


LAYOUTS: Final[dict[Layout, LayOut]] = {
    Layout.WEBDATASET: lay_out_webdataset,
    Layout.PARQUET: lay_out_parquet,
    Layout.HUGGINGFACE: lay_out_huggingface,
    Layout.GENEVAL: lay_out_geneval,
    Layout.PARTIPROMPTS: lay_out_partiprompts,
}
"""docs/extending.md adds one."""
