"""The preview of a partition: a contact sheet of a few of its images."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from nanobanana_pipeline.bucket_keys import image_key, preview_key
from nanobanana_pipeline.errors import ImageBroken
from nanobanana_pipeline.generation.manifest.manifest import (
    CellState,
    CurrentManifest,
    open_manifest,
)
from nanobanana_pipeline.images.contact_sheet import caption, contact_sheet, shrunk
from nanobanana_pipeline.storage import ObjectStore
from nanobanana_pipeline.storage.versioned import as_frame

__all__ = ["read_sample_rows", "sample_pictures", "write_preview"]

SAMPLED_ROWS: Final = 1_000
"""Of fewer pictures every row is read; of more, every second, third, … row that has one."""
PICTURES: Final = 12
PREVIEW_ACROSS: Final = 4
SIDE: Final = 112
"""Four of them beside each other fit the column of a partition's page."""
PREVIEWS_AT_ONCE: Final = 4
COLUMNS_READ: Final = ["image_sha256", "format", "prompt", "prompt_id"]


def read_sample_rows(
    store: ObjectStore, current: CurrentManifest, columns: list[str]
) -> pd.DataFrame:
    """Sample a manifest: images from all over it, and every row that is not settled.

    The columns are state and image_sha256 at least.

    Returns:
        Rows in the manifest's order: each that was asked for and is not settled, refused ones among
        them; of those with a picture 500 to 1,000 where no two share one, all where they are fewer.

    Raises:
        StorageError: it is missing or damaged.
    """
    every = current.images // SAMPLED_ROWS + 1
    rows = open_manifest(store, current.manifest, columns)
    quiet = pa.array([CellState.SETTLED, CellState.NOT_REQUESTED], pa.string())
    kept, before = [], 0
    for some in rows:
        there = some["image_sha256"].is_valid().to_numpy(zero_copy_only=False)
        nth = before + np.cumsum(there) - 1
        before += int(there.sum())
        is_missing = pc.invert(pc.is_in(some["state"], quiet)).to_numpy(zero_copy_only=False)
        kept.append(some.filter(pa.array(is_missing | there & (nth % every == 0))))
    return as_frame(pa.Table.from_batches(kept, rows.schema))


def write_preview(store: ObjectStore, current: CurrentManifest, rows: pd.DataFrame) -> str | None:
    """Store the preview of a manifest, a WebP, if it is not there yet.

    Takes rows of `read_sample_rows`, with image_sha256, format, prompt and prompt_id at least;
    returns its key, or None where there is no picture that can be shown.

    Raises:
        StorageError: S3 refuses.
    """
    key = preview_key(current.prompt_set, current.seed, current.content)
    if store.head(key) is None:
        pictures = sample_pictures(store, rows, PICTURES)
        if not pictures:
            return None
        sheet = contact_sheet(pictures, columns=PREVIEW_ACROSS, tile=SIDE, image_format="WEBP")
        store.put(key, sheet, content_type="image/webp")
    return key


def sample_pictures(store: ObjectStore, rows: pd.DataFrame, count: int) -> list[tuple[bytes, str]]:
    """A few of a manifest's images from all over it, made small, with their captions.

    Those that are missing or cannot be decoded are left out: the audit finds them.

    Raises:
        StorageError: S3 refuses.
    """
    there = rows.dropna(subset="image_sha256").drop_duplicates("image_sha256")
    shown = min(count, len(there))
    places = [place * len(there) // shown for place in range(shown)]
    named = there.iloc[places][COLUMNS_READ].itertuples(index=False)
    with ThreadPoolExecutor(PREVIEWS_AT_ONCE, "preview") as helpers:
        found = list(helpers.map(partial(_small, store), [tuple(map(str, each)) for each in named]))
    return [each for each in found if each is not None]


def _small(store: ObjectStore, named: Sequence[str]) -> tuple[bytes, str] | None:
    sha256, kind, prompt, prompt_id = named
    stored = store.get(image_key(sha256, kind))
    if stored is None:
        return None
    try:
        return shrunk(stored.body, SIDE), caption(prompt, prompt_id)
    except ImageBroken:
        return None
