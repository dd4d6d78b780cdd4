"""The images of a release's rows, read from the bucket and checked against their SHA-256."""

import hashlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Executor, Future
from typing import Any, Final

import pyarrow as pa

from nanobanana_pipeline.errors import ReleaseError
from nanobanana_pipeline.storage import ObjectStore

__all__ = ["read_image", "read_row_images"]

AHEAD_BYTES: Final = 16 * 2**20
AHEAD_ROWS: Final = 16


def read_row_images(
    store: ObjectStore, rows: pa.Table, helpers: Executor
) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Each row with its image, in order; a few are fetched ahead.

    Raises:
        ReleaseError: a picture is missing or damaged.
    """
    ahead: deque[tuple[dict[str, Any], Future[bytes]]] = deque()
    held = 0
    try:
        for batch in rows.to_batches(max_chunksize=1_000):
            for row in batch.to_pylist():
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
    """A row's image, byte for byte.

    Raises:
        ReleaseError: it is missing or damaged.
    """
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
