"""Races of writers over conditional writes, as `bucket_check` judges a bucket by.

In each round 16 writers create the same absent object, or update the same version of it; exactly
one may win, and a read must then give its bytes.
"""

import base64
import hashlib
import random
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from nanobanana_pipeline.bucket_keys import probe_key
from nanobanana_pipeline.errors import StorageError, StorageFull, StorageUnavailable
from nanobanana_pipeline.storage.cas import boot_clock
from nanobanana_pipeline.storage.faults import LOST_RACE_CODES, S3_FAULTS, code_of, translated
from nanobanana_pipeline.storage.store import ObjectStore, StoredObject

__all__ = ["WRITERS", "Race", "run_races"]

WRITERS: Final = 16
KEYS_AT_A_TIME: Final = 4
"""Rounds run on so many keys at a time: with 16 writers each they fill a client's 64 sockets."""
TRIES: Final = 5
"""A round without a winner is run so often: S3 may answer 409 to all that come at once."""
WINDOW_SECONDS: Final = 0.1
"""The writers of a round send within this time, each at a random instant."""
EVERY: Final = 27
"""One round in so many has all writers send at the same instant: the hardest test, but SeaweedFS
has those that meet a lock wait for a second each. Odd, so that creates and updates take turns."""

CREATE: Final = "one of 16 creates (If-None-Match)"
OCCUPIED: Final = "none of 16 creates over an object"
UPDATE: Final = "one of 16 updates (If-Match)"


@dataclass(frozen=True)
class Race:
    """One round.

    Attributes:
        kind: what must hold.
        fault: what happened instead.
        age: the object's age by S3 when it was read, and the seconds since its write began.
    """

    kind: str
    fault: str | None
    age: tuple[float, float] | None


def run_races(stores: Sequence[ObjectStore], rounds: int, renew: Callable[[], None]) -> list[Race]:
    """Run so many rounds; creates and updates take turns on fixed keys.

    Where objects cannot be deleted, creates race over nothing only the first time.

    Args:
        stores: the same bucket through one or more endpoints, which share the writers.
        rounds: how many.
        renew: called before each round.

    Raises:
        StorageError: S3 refuses writes altogether.
        StorageUnavailable: S3 does not answer.
    """
    chains = [range(first, (rounds + 1) // 2, KEYS_AT_A_TIME) for first in range(KEYS_AT_A_TIME)]
    with _held_back(stores), ThreadPoolExecutor(KEYS_AT_A_TIME) as pool:
        racing = [
            pool.submit(_chain, stores, probe_key(f"race-{number}"), pairs, rounds, renew)
            for number, pairs in enumerate(chains)
            if pairs
        ]
        return [race for each in racing for race in each.result()]


def _chain(
    stores: Sequence[ObjectStore],
    key: str,
    pairs: Sequence[int],
    rounds: int,
    renew: Callable[[], None],
) -> list[Race]:
    """Run the rounds of one key; ends early where no writer wins."""
    races: list[Race] = []
    with ThreadPoolExecutor(WRITERS) as writers:
        for pair in pairs:
            renew()
            is_free = _clear(stores[0], key)
            race, found = _round(
                *(stores, writers, key, CREATE if is_free else OCCUPIED),
                at_once=_is_at_once(2 * pair),
            )
            races.append(race)
            if found is None:
                break
            if 2 * pair + 1 < rounds:
                renew()
                race, found = _round(
                    *(stores, writers, key, UPDATE, found.etag),
                    at_once=_is_at_once(2 * pair + 1),
                )
                races.append(race)
                if found is None:
                    break
    _clear(stores[0], key)
    return races


def _is_at_once(number: int) -> bool:
    """Whether it is the turn of a round without a window; the first is the 14th."""
    return number % EVERY == EVERY // 2


def _clear(store: ObjectStore, key: str) -> bool:
    """Delete an object where that is allowed; whether it is gone."""
    try:
        store.delete(key)
    except StorageUnavailable:
        raise
    except StorageError:
        return store.head(key) is None
    return True


def _round(
    stores: Sequence[ObjectStore],
    writers: ThreadPoolExecutor,
    key: str,
    kind: str,
    etag: str | None = None,
    *,
    at_once: bool,
) -> tuple[Race, StoredObject | None]:
    """Race once; gives what lies there then, or None if the rounds cannot go on."""
    for number in range(TRIES):
        condition = {"IfNoneMatch": "*"} if etag is None else {"IfMatch": etag}
        nonce, start = uuid.uuid4().hex, _Start(at_once)
        bodies = [f"{nonce} {writer}".encode() for writer in range(WRITERS)]
        began = boot_clock()

        def send(
            writer: int,
            bodies: Sequence[bytes] = bodies,
            start: _Start = start,
            condition: Mapping[str, str] = condition,
        ) -> str | StorageUnavailable:
            start.enter()
            return _put(stores[writer % len(stores)], key, bodies[writer], condition)

        answers = dict(zip(bodies, writers.map(send, range(WRITERS)), strict=True))
        found = stores[0].get(key)
        age = (found.age_seconds, boot_clock() - began) if found is not None else None
        won = [body for body, answer in answers.items() if answer == ""]
        silent = [each for each in answers.values() if isinstance(each, StorageUnavailable)]
        fault = _fault(kind, answers, won, found)
        if won or fault or kind == OCCUPIED:
            # Its age is that of an earlier round where nothing was written.
            return Race(kind, fault, age if won else None), found
        if found is not None and found.body in answers:
            return Race(kind, None, age), found  # its answer was lost
        time.sleep(0.1 * 2**number)
        if etag is None:
            _clear(stores[0], key)
        elif found is not None:
            etag = found.etag
    if silent:
        raise silent[0]
    said = Counter(str(each) for each in answers.values())
    text = ", ".join(f"{code} to {count}" for code, count in said.most_common())
    if etag is not None and _takes_bare_etag(stores[0], key, etag):
        text += ", and takes an ETag only without its quotes, as Ceph's radosgw does"
    return Race(kind, f"no writer won, {TRIES} times; the server answers {text}", None), None


def _takes_bare_etag(store: ObjectStore, key: str, etag: str) -> bool:
    """Whether an update that was refused is taken with the ETag's quotes left out.

    RFC 9110 wants them, and the server's own answers have them.
    """
    bare = {"IfMatch": etag.strip('"')}
    wrong = {"IfMatch": etag.strip('"')[::-1]}
    return _put(store, key, b"", wrong) != "" and _put(store, key, b"", bare) == ""


def _fault(
    kind: str,
    answers: Mapping[bytes, str | StorageUnavailable],
    won: Sequence[bytes],
    found: StoredObject | None,
) -> str | None:
    """What is wrong with how a round has ended; a round without a winner may be repeated."""
    if len(won) > 1 or (won and kind == OCCUPIED):
        return f"{len(won)} of {WRITERS} writers were told that they won"
    body = found.body if found is not None else None
    if won and body not in won:
        if body in answers:
            return "the object holds the bytes of another writer than the one who won"
        return "a read after the write gives something else"
    if not won and body is not None and answers.get(body, "") != "":
        is_refused = not isinstance(answers[body], StorageUnavailable)
        if is_refused or kind == OCCUPIED:
            return "the object holds the bytes of a writer who was refused"
    return None


def _put(
    store: ObjectStore, key: str, body: bytes, condition: Mapping[str, str]
) -> str | StorageUnavailable:
    """Write once: "" if it won, S3's code if it lost, an error if that is unknown."""
    # Not through `ObjectStore`, which does not tell 412 from 409.
    digest = base64.b64encode(hashlib.sha256(body).digest()).decode()
    try:
        store.client.put_object(
            Bucket=store.bucket,
            Key=store.prefix + key,
            Body=body,
            ChecksumSHA256=digest,
            **condition,  # type: ignore[arg-type]  # boto3's stubs want each argument by its name
        )
    except S3_FAULTS as error:
        if (code := code_of(error)) in LOST_RACE_CODES:
            return code
        fault = translated(error, "write", store.uri(key))
        if isinstance(fault, StorageUnavailable) and not isinstance(fault, StorageFull):
            return fault
        raise fault from error
    return ""


_writer = threading.local()


class _Start:
    """Where the writers of one round wait for each other, with their requests signed."""

    def __init__(self, at_once: bool) -> None:  # noqa: FBT001
        self._barrier = threading.Barrier(WRITERS)
        self._window = 0.0 if at_once else WINDOW_SECONDS

    def enter(self) -> None:
        """Have this thread's next request wait."""
        _writer.start = self

    def wait(self) -> None:
        """Wait for the others, or until one of them has failed before it sent anything."""
        try:
            self._barrier.wait(5)
        except threading.BrokenBarrierError:
            return
        time.sleep(random.random() * self._window)  # noqa: S311 - no secret


@contextmanager
def _held_back(stores: Sequence[ObjectStore]) -> Iterator[None]:
    """Have boto3 hold each writer's request back once it is signed, which takes most of its time.

    Only so do they reach the server together: one process can sign only one at a time.
    """
    name = f"race-{uuid.uuid4().hex}"

    def wait(**_: object) -> None:
        start, _writer.start = getattr(_writer, "start", None), None
        if start is not None:
            start.wait()

    for store in stores:
        store.client.meta.events.register("before-send.s3.PutObject", wait, unique_id=name)
    try:
        yield
    finally:
        for store in stores:
            store.client.meta.events.unregister("before-send.s3.PutObject", unique_id=name)
