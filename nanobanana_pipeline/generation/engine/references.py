"""The bytes of reference pictures, as they were kept when the prompt set was made."""

import functools
import hashlib
from typing import Final

from nanobanana_pipeline.bucket_keys import reference_key
from nanobanana_pipeline.errors import StorageError
from nanobanana_pipeline.storage import ObjectStore

__all__ = ["KeptReferences"]

REMEMBERED: Final = 16


class KeptReferences:
    """Reads references from the bucket. Safe to share between threads."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self.read = functools.lru_cache(REMEMBERED)(self._read)

    def _read(self, sha256: str) -> bytes | None:
        """The bytes with this SHA-256; None if they are gone.

        Raises:
            StorageError: the object holds other bytes, or S3 refuses.
        """
        key = reference_key(sha256)
        found = self._store.get(key)
        if found is None:
            return None
        if hashlib.sha256(found.body).hexdigest() != sha256:
            raise StorageError(f"{self._store.uri(key)} is damaged: its SHA-256 is another")
        return found.body
