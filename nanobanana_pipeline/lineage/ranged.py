"""An object of the bucket as a file of which only parts are read."""

import io
from typing import Final

from nanobanana_pipeline.errors import StorageError
from nanobanana_pipeline.storage import ObjectStore

__all__ = ["RangedFile"]

LEAST: Final = 2**16
"""Bytes of one GET at least: as much as a Parquet reader wants of the end of a file at first."""


class RangedFile(io.RawIOBase):
    """A file to be read, whose parts are fetched when they are needed. To be used in one thread.

    Args:
        store: the bucket.
        key: the object's.
        size: bytes it must have.

    Reading raises `StorageError` where the object is missing or shorter.
    """

    def __init__(self, store: ObjectStore, key: str, size: int) -> None:
        self._store = store
        self._key = key
        self._size = size
        self._at = 0
        self._start = 0
        self._held = b""

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """Where the next read begins."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go somewhere else; nothing is fetched."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = base + offset
        return self._at

    def read(self, size: int = -1) -> bytes:
        """Read up to `size` bytes, or to the end."""
        end = self._size if size < 0 else min(self._at + size, self._size)
        if end <= self._at:
            return b""
        if self._at < self._start or end > self._start + len(self._held):
            # Whole files smaller than one GET are fetched whole.
            start = max(0, min(self._at, self._size - LEAST))
            self.fetch(start, end)
        found = self._held[self._at - self._start : end - self._start]
        self._at = end
        return found

    def fetch(self, start: int, end: int) -> None:
        """Have these bytes at hand, in one GET; what was at hand before is let go."""
        held = self._store.get_range(self._key, start, end - start)
        if held is None:
            raise StorageError(f"{self._store.uri(self._key)} is missing")
        self._start, self._held = start, held
