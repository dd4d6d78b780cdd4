"""Compare-and-swap, the one way in which stored objects change, and the check of their schema.

A conditional write whose answer is lost looks like a defeat when it is sent again: its own first
copy stands in the way. So after a defeat or silence the object is read, and the write has won if
its own bytes lie there. Where only one of several writers may win, the bytes hold a nonce: a
`revision`, or the key of a new table.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Self, TypeVar

import tenacity
from pydantic import BaseModel, Field, ValidationError

from nanobanana_pipeline.errors import NanobananaError, StorageError, StorageUnavailable
from nanobanana_pipeline.storage.faults import PATIENCE_SECONDS, Patience, patient
from nanobanana_pipeline.storage.store import ObjectStore, StoredObject

__all__ = [
    "RESTORE",
    "Instant",
    "Won",
    "boot_clock",
    "contention",
    "parse_json",
    "put_if_absent",
    "refuse_newer",
    "swap",
    "write",
]

LEAST_ROUNDS: Final = 20
"""So many defeats are borne even where one round takes longer than the patience lasts."""
RESTORE: Final = "restore it from a backup or from the bucket's versions"
_BOOT_CLOCK: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)

Before = TypeVar("Before")
After = TypeVar("After")
Value = TypeVar("Value")


def boot_clock() -> float:
    """Seconds since the machine started, counting the time it slept where the system tells."""
    return time.clock_gettime(_BOOT_CLOCK)


@dataclass(frozen=True)
class Instant:
    """A moment by both clocks of this machine.

    The boot clock does not go on in a virtual machine that is stopped; the wall clock may be set.
    """

    boot: float
    wall: float

    @classmethod
    def now(cls) -> Self:
        """This moment."""
        return cls(boot_clock(), time.time())

    def elapsed(self) -> float:
        """Seconds since then by the clock that says more: what is one's own has ended by then."""
        return max(boot_clock() - self.boot, time.time() - self.wall)

    def least_elapsed(self) -> float:
        """Seconds since then by the clock that says less: only then has another's ended."""
        return min(boot_clock() - self.boot, time.time() - self.wall)


@dataclass(frozen=True)
class Won:
    """A conditional write that landed.

    Attributes:
        etag: the object's new one.
        sent_at: before the write was sent; before the first try, where answers were lost and any of
            the tries may have landed.
    """

    etag: str
    sent_at: Instant


def write(
    store: ObjectStore,
    key: str,
    body: bytes,
    etag: str | None,
    *,
    content_type: str = "application/json",
    patience_seconds: float = PATIENCE_SECONDS,
) -> Won | StoredObject | None:
    """Replace an object that is still as `etag` says, or create one where that is None.

    The same bytes are sent again while S3 is silent, or refuses though nothing has changed.

    Returns:
        `Won`; else what another writer has put there, or None if the object is gone.

    Raises:
        StorageUnavailable: S3 stayed silent, or refused for no reason, for `patience_seconds`.
    """
    began = Instant.now()
    patience = Patience(patience_seconds)
    while True:
        sent_at = Instant.now()
        try:
            if etag is None:
                new = store.create(key, body, content_type=content_type)
            else:
                new = store.update(key, body, etag, content_type=content_type)
        except StorageUnavailable as error:
            fault = error
        else:
            if new is not None:
                return Won(new, sent_at)
            fault = _refused(store.uri(key))
        found = store.get(key)
        if found is not None and found.body == body:
            return Won(found.etag, began)
        if (found.etag if found else None) != etag:
            return found
        patience.after(fault)


def contention(where: str, patience_seconds: float = PATIENCE_SECONDS) -> Callable[[], None]:
    """Bound a loop around `write`: the result is called after each defeat, and waits.

    It raises `StorageUnavailable` after `patience_seconds` and `LEAST_ROUNDS` defeats.
    """
    pause = tenacity.wait_random_exponential(multiplier=0.02, max=2)
    patience = Patience(patience_seconds, tries=LEAST_ROUNDS, pause=pause)
    lost = f"{where} was changed by other writers before each write: try again when fewer are busy"
    return lambda: patience.after(StorageUnavailable(lost))


def swap(
    store: ObjectStore,
    key: str,
    load: Callable[[StoredObject | None], Before],
    step: Callable[[Before], After],
    dump: Callable[[After], bytes],
    *,
    content_type: str = "application/json",
) -> tuple[Before, After]:
    """Change an object, on top of whatever other writers have made of it meanwhile.

    Args:
        store: the bucket.
        key: where the object lies.
        load: the value of the object, or of none; raises where it is damaged or too new.
        step: the new value; called again after a defeat. An equal one is not written.
        dump: the bytes of the new value.
        content_type: the MIME type.

    Returns:
        The values before and after.

    Raises:
        StorageUnavailable: as `write` and `contention`.
    """
    back_off = contention(store.uri(key))
    while True:
        found = store.get(key)
        before = load(found)
        after = step(before)
        is_same, etag = after == before, found.etag if found else None
        if is_same or isinstance(
            write(store, key, dump(after), etag, content_type=content_type), Won
        ):
            return before, after
        back_off()


@patient
def put_if_absent(
    store: ObjectStore,
    key: str,
    body: bytes,
    *,
    content_type: str = "application/octet-stream",
    sha256: bytes | None = None,
) -> None:
    """Write an object unless there is one: safe to repeat, the first one stays.

    Raises:
        StorageUnavailable: S3 stayed silent, or refused though nothing is there.
    """
    new = store.create(key, body, content_type=content_type, sha256=sha256)
    if new is None and store.head(key) is None:
        raise _refused(store.uri(key))


class _SchemaOnly(BaseModel):
    schema_version: int = Field(alias="schema")


def parse_json(
    body: bytes,
    where: str,
    parse: Callable[[bytes], Value],
    schema: int,
    *,
    error: type[NanobananaError] = StorageError,
    remedy: str = RESTORE,
) -> Value:
    """Read a stored JSON object, whose `schema` tells which version wrote it.

    Args:
        body: its bytes.
        where: its address.
        parse: makes the value, or raises ValueError, KeyError or TypeError.
        schema: the newest that this version knows.
        error: raised where the object is damaged, or a newer version wrote it.
        remedy: how to mend a damaged one.
    """
    try:
        # First: what a newer version means by the other fields is unknown here.
        refuse_newer(where, _SchemaOnly.model_validate_json(body).schema_version, schema, error)
        return parse(body)
    except (ValueError, KeyError, TypeError) as fault:
        raise error(f"{where} is damaged ({_reason(fault)}): {remedy}") from fault


def refuse_newer(
    where: str, schema: int, known: int, error: type[NanobananaError] = StorageError
) -> None:
    """Raise `error` if a newer version wrote what lies there."""
    if schema > known:
        raise error(
            f"{where} has schema {schema}, and this version knows {known}: "
            "upgrade nanobanana-pipeline"
        )


def _reason(fault: Exception) -> str:
    """What is wrong, in one line, without the value, which may be a secret."""
    if not isinstance(fault, ValidationError):
        return repr(fault)
    first = fault.errors(include_url=False, include_context=False, include_input=False)[0]
    return ": ".join([*map(str, first["loc"]), first["msg"]])


def _refused(where: str) -> StorageUnavailable:
    return StorageUnavailable(
        f"could not write {where}: the bucket answers 412 or 409 to every conditional write "
        "(If-Match, If-None-Match), though nothing has changed there; use AWS S3 or SeaweedFS 4, "
        "and look for a proxy in between that does not pass these headers on as they are"
    )
