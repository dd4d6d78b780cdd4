"""`StoredReferences`: reads reference pictures, which were stored with their prompt set."""

import functools
import hashlib
from typing import Final

from nanobanana_pipeline.bucket_keys import reference_key
from nanobanana_pipeline.errors import StorageError
from nanobanana_pipeline.storage import ObjectStore

__all__ = ["StoredReferences"]

CACHED: Final = 16


class StoredReferences:
    """Reads references from the bucket. Safe to share between threads."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self.read = functools.lru_cache(CACHED)(self._read)

    def _read(self, sha256: str) -> bytes | None:
        """The bytes with this SHA-256; None if they are gone.

        Raises:
            StorageError: the object holds other bytes, or S3 refuses.
        """
        key = reference_key(sha256)
        stored = self._store.get(key)
        if stored is None:
            return None
        if hashlib.sha256(stored.body).hexdigest() != sha256:
            raise StorageError(f"{self._store.uri(key)} is damaged: its SHA-256 is another")
        return stored.body
