"""Writing what may be written again after a lost answer."""

from typing import TYPE_CHECKING, Final

import tenacity

from nanobanana_pipeline.errors import StorageUnavailable

if TYPE_CHECKING:
    from nanobanana_pipeline.storage import ObjectStore

__all__ = ["create", "patient"]

patient: Final = tenacity.retry(
    retry=tenacity.retry_if_exception_type(StorageUnavailable),
    wait=tenacity.wait_exponential_jitter(multiplier=0.1, max=5),
    stop=tenacity.stop_after_delay(60),
    reraise=True,
)
"""Decorates a write that S3 may see twice; after a minute of silence it raises."""


@patient
def create(
    store: "ObjectStore",
    key: str,
    body: bytes,
    *,
    content_type: str = "application/octet-stream",
    sha256: bytes | None = None,
) -> None:
    """Write an object whose key says what is in it, unless it is there already.

    Raises:
        StorageUnavailable: S3 stayed silent.
        StorageError: the bucket refuses.
    """
    # None would mean that the same content is there already.
    store.create(key, body, content_type=content_type, sha256=sha256)
