"""The images of a release's rows, checked against their SHA-256, and their thumbnails."""

import hashlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any, Final

import pyarrow as pa

from nanobanana_pipeline.datasets.release_rows import rows_of
from nanobanana_pipeline.errors import ImageBroken, ReleaseError
from nanobanana_pipeline.features.measure import thumbnail
from nanobanana_pipeline.features.table import FEATURE_COLUMNS, read_current_features
from nanobanana_pipeline.storage import ObjectStore
from nanobanana_pipeline.storage.versioned import read_table

__all__ = ["read_image", "read_row_images", "read_thumbnails"]

AHEAD_BYTES: Final = 16 * 2**20
AHEAD_ROWS: Final = 16
THUMBNAILS_AT_ONCE: Final = 4


def read_row_images(
    store: ObjectStore, rows: pa.Table, helpers: Executor
) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Each row with its image, in order; a few are fetched ahead."""
    ahead: deque[tuple[dict[str, Any], Future[bytes]]] = deque()
    held = 0
    try:
        for row in rows_of(rows):
            ahead.append((row, helpers.submit(read_image, store, row)))
            held += row["bytes"]
            while held > AHEAD_BYTES or len(ahead) > AHEAD_ROWS:
                first, image = ahead.popleft()
                held -= first["bytes"]
                yield first, image.result()
        while ahead:
            first, image = ahead.popleft()
            yield first, image.result()
    finally:
        for _, image in ahead:
            image.cancel()


def read_image(store: ObjectStore, row: dict[str, Any]) -> bytes:
    """A row's image, byte for byte."""
    found = store.get(row["image_key"])
    if found is None:
        raise ReleaseError(
            f"{store.uri(row['image_key'])} is missing, and row {row['row_id']} needs it: run "
            "nanobanana audit"
        )
    if hashlib.sha256(found.body).hexdigest() != row["image_sha256"]:
        raise ReleaseError(
            f"{store.uri(row['image_key'])} is damaged: its bytes have another SHA-256; run "
            "nanobanana audit"
        )
    return found.body


def read_thumbnails(store: ObjectStore, rows: pa.Table) -> dict[str, bytes]:
    """A thumbnail of each distinct picture by its SHA-256: a WebP, longest side 128 pixels.

    One partition's table of features is read after the other, so memory holds one of them.

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
