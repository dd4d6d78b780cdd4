"""Reading much of a bucket, a bounded way ahead."""

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, TypeVar

from nanobanana_pipeline.audit.cross_reference import AuditIndex, Stored
from nanobanana_pipeline.bucket_keys import Folder
from nanobanana_pipeline.errors import StorageError, StorageUnavailable
from nanobanana_pipeline.ledger import Held, Ledger, Outcome
from nanobanana_pipeline.storage import ObjectStore

__all__ = ["AuditProgress", "find_orphans", "list_entries", "read_ahead", "read_entries"]

OBJECT_READERS: Final = 16

_ENTRY: Final = re.compile(rf"{Folder.LEDGER}/([0-9a-f]{{2}})/(\1[0-9a-f]{{62}})\.json")
_REQUEST_KEY: Final = re.compile(r"[0-9a-f]{64}")
_IMAGE: Final = re.compile(
    rf"{Folder.IMAGES}/([0-9a-f]{{2}})/(\1[0-9a-f]{{62}})\.\w+(?:/[0-9a-f]{{64}})?"
)

Asked = TypeVar("Asked")
Reading = TypeVar("Reading")
AuditProgress = Callable[[str, int], None]
"""Called with what is being looked at and how much of it there was so far."""


def read_ahead(
    read: Callable[[Asked], Reading], asked: Iterable[Asked], readers: int = OBJECT_READERS
) -> Iterator[Reading]:
    """Answers in order, from a few threads that never run far ahead of who takes them."""
    pool = ThreadPoolExecutor(readers)
    waiting: deque[Future[Reading]] = deque()
    try:
        for each in asked:
            waiting.append(pool.submit(read, each))
            if len(waiting) > 2 * readers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def list_entries(store: ObjectStore, strange: Callable[[str], None]) -> Iterator[str]:
    """Request keys of the whole ledger, in order; `strange` is told of keys of nothing we know."""
    for key in store.keys(Folder.LEDGER.prefix):
        found = _ENTRY.fullmatch(key)
        if found:
            yield found[2]
        else:
            strange(key)


def read_entries(
    store: ObjectStore, request_keys: Iterable[str]
) -> Iterator[tuple[str, Held | StorageError | None]]:
    """Entries, with the error in place of those that cannot be read; None where there is none."""
    ledger = Ledger(store)

    def read(request_key: str) -> tuple[str, Held | StorageError | None]:
        try:
            return request_key, ledger.read(request_key)
        except StorageUnavailable:
            raise
        except StorageError as error:
            return request_key, error

    return read_ahead(read, request_keys)


def find_orphans(store: ObjectStore, index: AuditIndex) -> Iterator[Stored]:
    """Objects under ``images/`` that no entry names, once ledger and listing are in the index.

    A picture is stored before its entry says so. So whoever brought it is asked again, and what is
    accepted, or cannot be read, may name it still.
    """
    ledger = Ledger(store)

    def is_orphan(found: Stored, owners: set[str]) -> tuple[Stored, bool]:
        metadata = store.head(found.key)
        if metadata is None:
            return found, False
        owners = {*owners, metadata.get("request-key", "")}
        sha256 = _sha256(found.key)
        return found, not any(_may_name(ledger, owner, sha256) for owner in owners)

    pictures = ((found, index.owners(_sha256(found.key))) for found in index.unnamed())
    marks = ((found, {found.key.rpartition("/")[2]}) for found in index.unfounded_owners())
    for suspects in (pictures, marks):
        for found, orphaned in read_ahead(lambda each: is_orphan(*each), suspects):
            if orphaned:
                yield found


def _sha256(key: str) -> str:
    found = _IMAGE.fullmatch(key)
    return found[2] if found else ""


def _may_name(ledger: Ledger, request_key: str, sha256: str) -> bool:
    if not _REQUEST_KEY.fullmatch(request_key) or not sha256:
        return False
    try:
        held = ledger.read(request_key)
    except StorageUnavailable:
        raise
    except StorageError:
        return True
    if held is None:
        return False
    under_way = any(attempt.outcome is Outcome.ACCEPTED for attempt in held.entry.attempts)
    return under_way or any(image.sha256 == sha256 for image in held.entry.images)
