"""Objects larger than memory: uploaded in parts (`Upload`), read a piece at a time (`pieces`)."""

import hashlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Executor, Future
from typing import Final, Self

from nanobanana_pipeline.errors import StorageError
from nanobanana_pipeline.storage import Multipart, ObjectStore

__all__ = ["Upload", "pieces"]

PART_BYTES: Final = 8 * 2**20
PARTS_UNDER_WAY: Final = 2


class Upload:
    """A new object, seen as a file that one can only append to.

    It is there, whole, once `close` has returned; if the block is left by an error, nothing is.
    What is there under the key is replaced. The helpers carry the parts over, side by side.
    Memory: three parts of 8 MiB at most.
    """

    def __init__(self, store: ObjectStore, key: str, content_type: str, helpers: Executor) -> None:
        self._store, self._key, self._type = store, key, content_type
        self._helpers = helpers
        self._buffer = bytearray()
        self._digest = hashlib.sha256()
        self._upload: Multipart | None = None
        self._under_way: deque[Future[str]] = deque()
        self._etags: list[str] = []
        self.size = 0
        self.closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_error: object) -> None:
        if kind is None:
            self.close()
            return
        self.closed = True
        if self._upload is not None:
            for part in self._under_way:
                part.cancel() or part.exception()
            self._upload.abort()

    @property
    def sha256(self) -> str:
        """Of what was written so far, in hexadecimal."""
        return self._digest.hexdigest()

    def write(self, data: bytes) -> int:
        """Append; waits for S3 where too much is under way."""
        view = memoryview(data).cast("B")
        self._digest.update(view)
        self.size += len(view)
        while len(view):
            room = PART_BYTES - len(self._buffer)
            self._buffer += view[:room]
            view = view[room:]
            if len(self._buffer) == PART_BYTES:
                self._send()
        return memoryview(data).nbytes

    def tell(self) -> int:
        """How many bytes were written."""
        return self.size

    def flush(self) -> None:
        """Nothing: only `close` makes an object."""

    def close(self) -> None:
        """Make the object; a second time does nothing."""
        if self.closed:
            return
        if self._upload is None:
            self._store.put(self._key, bytes(self._buffer), content_type=self._type)
        else:
            if self._buffer:
                self._send()
            while self._under_way:
                self._etags.append(self._under_way.popleft().result())
            self._upload.finish(self._etags, self.size)
        self.closed = True

    def _send(self) -> None:
        if self._upload is None:
            self._upload = Multipart(self._store, self._key, content_type=self._type)
        while len(self._under_way) >= PARTS_UNDER_WAY:
            self._etags.append(self._under_way.popleft().result())
        number = len(self._etags) + len(self._under_way) + 1
        body, self._buffer = bytes(self._buffer), bytearray()
        self._under_way.append(self._helpers.submit(self._upload.part, number, body))


def pieces(store: ObjectStore, key: str, size: int) -> Iterator[bytes]:
    """Read an object of `size` bytes, 8 MiB at a time.

    Raises:
        StorageError: it is missing or shorter.
    """
    for start in range(0, size, PART_BYTES):
        piece = store.get_range(key, start, min(PART_BYTES, size - start))
        if piece is None:
            raise StorageError(f"{store.uri(key)} is missing")
        yield piece
