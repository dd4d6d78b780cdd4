"""Thumbnails of a release's rows: read from the tables of features, drawn anew where missing."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import pyarrow as pa

from nanobanana_pipeline.datasets.row_images import read_image
from nanobanana_pipeline.errors import ImageBroken, ReleaseError
from nanobanana_pipeline.features.measure import thumbnail
from nanobanana_pipeline.features.table import FEATURE_COLUMNS, read_current_features
from nanobanana_pipeline.storage import ObjectStore
from nanobanana_pipeline.storage.versioned import read_table

__all__ = ["read_thumbnails"]

THUMBNAILS_AT_ONCE: Final = 4


def read_thumbnails(store: ObjectStore, rows: pa.Table) -> dict[str, bytes]:
    """A thumbnail of each distinct picture: a WebP, longest side 128 pixels.

    One partition's table of features is read after the other, so memory holds one of them.

    Returns:
        By SHA-256, in the rows' order.

    Raises:
        ReleaseError: a picture is missing, damaged, or cannot be decoded.
    """
    columns = ["prompt_set", "seed", "image_sha256", "image_key", "row_id"]
    frame = rows.select(columns).to_pandas().drop_duplicates("image_sha256")
    found: dict[str, bytes] = {}
    for (name, seed), wanted in frame.groupby(["prompt_set", "seed"]):
        current, _ = read_current_features(store, str(name), int(seed))
        if current is None:
            continue
        table = read_table(store, current.table, FEATURE_COLUMNS, ["image_sha256", "thumbnail"])
        table = table[table["image_sha256"].isin(wanted["image_sha256"])].dropna()
        found.update(zip(table["image_sha256"], table["thumbnail"], strict=True))
    missing = frame[~frame["image_sha256"].isin(found)].to_dict("records")
    with ThreadPoolExecutor(THUMBNAILS_AT_ONCE, "thumbnails") as helpers:
        drawn = helpers.map(lambda row: _drawn(store, row), missing)
        found.update(zip((row["image_sha256"] for row in missing), drawn, strict=True))
    return {sha256: found[sha256] for sha256 in frame["image_sha256"]}


def _drawn(store: ObjectStore, row: dict[Any, Any]) -> bytes:
    try:
        return thumbnail(read_image(store, row))
    except ImageBroken as error:
        raise ReleaseError(f"{store.uri(row['image_key'])} cannot be shown: {error}") from error
