"""The commands, as tests of commands run them; and a release in every format, made once."""

import os
import uuid
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest

from nanobanana_pipeline import local
from nanobanana_pipeline.datasets.layouts import Layout
from nanobanana_pipeline.datasets.publish import build_release
from nanobanana_pipeline.datasets.pull import pull
from nanobanana_pipeline.datasets.release import MANIFEST, Release, read_release_table
from nanobanana_pipeline.storage import ObjectStore, s3_client
from tests.cli.conftest import emulator, nanobanana
from tests.datasets.release_rows import NOTHING_REJECTED, recipe, rows_of

__all__ = ["Published", "emulator", "nanobanana", "published"]

os.environ["HF_HUB_OFFLINE"] = "1"
"""The library `datasets` looks at it when it is imported."""


@dataclass(frozen=True)
class Published:
    store: ObjectStore
    release: Release
    folder: Path
    """Has the layouts `webdataset` and `huggingface` in folders of these names."""
    rows: pd.DataFrame
    """The manifest."""

    def shards(self, pattern: str) -> list[str]:
        """Shards on disk: ``webdataset/webdataset/*/*.tar``."""
        return sorted(map(str, self.folder.glob(pattern)))


@pytest.fixture(scope="session")
def published(s3_url: str, tmp_path_factory: pytest.TempPathFactory) -> Published:
    assert s3_url
    store = ObjectStore(s3_client(), local.BUCKET, f"test-{uuid.uuid4().hex}")
    wanted = recipe("webdataset", "parquet", "huggingface", "croissant", images=7)
    rows = rows_of(store, 40)
    release = build_release(store, wanted, rows, NOTHING_REJECTED, parent=None)
    folder = tmp_path_factory.mktemp("published")
    for layout in (Layout.WEBDATASET, Layout.HUGGINGFACE):
        pull(store, release, folder / layout, layout)
    return Published(store, release, folder, read_release_table(store, release, MANIFEST))
