"""The log of what a shard has settled, for the step that builds the manifest.

Settled entries never change, so that step need not read them from the ledger one by one. Where a
log is missing or damaged, it does.
"""

import gzip
import io
import logging
import threading
import zlib
from collections.abc import Iterator
from typing import Final

from nanobanana_pipeline.bucket_keys import run_settled_key
from nanobanana_pipeline.errors import StorageError
from nanobanana_pipeline.ledger import Entry
from nanobanana_pipeline.storage import ObjectStore

__all__ = ["ShardLog", "read_shard_log"]

log = logging.getLogger(__name__)

GZIP: Final = 16 + zlib.MAX_WBITS


class ShardLog:
    """The entries that a shard settles, compressed. Safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._packer = zlib.compressobj(wbits=GZIP)
        self._packed: list[bytes] = []

    def add(self, entry: Entry) -> None:
        """Add a settled entry."""
        line = entry.to_json() + b"\n"
        with self._lock:
            self._packed.append(self._packer.compress(line))

    def write(self, store: ObjectStore, run_id: str, shard: str) -> None:
        """Store the log where `read_shard_log` finds it; to be called once.

        Raises:
            StorageError: S3 refuses.
        """
        if self._packed:
            body = b"".join([*self._packed, self._packer.flush()])
            store.put(run_settled_key(run_id, shard), body)


def read_shard_log(store: ObjectStore, run_id: str, shard: str) -> Iterator[Entry]:
    """The entries that a shard has logged; none where it has written nothing.

    Raises:
        StorageError: S3 refuses.
    """
    key = run_settled_key(run_id, shard)
    found = store.get(key)
    if found is None:
        return
    try:
        with gzip.open(io.BytesIO(found.body)) as lines:
            for line in lines:
                yield Entry.from_json(line, store.uri(key))
    except (OSError, EOFError, zlib.error, StorageError) as error:
        log.warning("the ledger is read instead of the rest of %s: %s", store.uri(key), error)
