"""Checks by experiment that an S3 server keeps what the promise of buying nothing twice rests on.

`ensure_checked` runs the check at the first use of a bucket through an endpoint, and keeps its
`BucketVerdict` in the bucket for 30 days; `run_check` runs it at once, at any length.
"""

import base64
import hashlib
import json
import logging
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from http import HTTPStatus
from threading import Lock
from typing import Final
from urllib.parse import urlsplit

from botocore.exceptions import ClientError
from pydantic import BaseModel, ConfigDict, Field

from nanobanana_pipeline.bucket_keys import bucket_verdict_key, probe_key
from nanobanana_pipeline.errors import StorageError, StorageUnavailable
from nanobanana_pipeline.storage.cas import Won, boot_clock, parse_json, refuse_newer, write
from nanobanana_pipeline.storage.faults import S3_FAULTS, translated
from nanobanana_pipeline.storage.races import WRITERS, Race, run_races
from nanobanana_pipeline.storage.store import ObjectStore

__all__ = ["ROUNDS", "BucketVerdict", "check_copies", "ensure_checked", "run_check"]

log = logging.getLogger(__name__)

SCHEMA: Final = 1
ROUNDS: Final = 48
"""Races of the default check. A server that lets 1 % of losing writes through passes with a
probability of 0.99 ** (48 rounds * 15 losers) = 0.0007."""
KEPT_SECONDS: Final = 30 * 86_400.0
LEASE_SECONDS: Final = 60.0
"""A check whose lease has not changed for so long, as another one sees it, is taken for dead."""
LEASE_PATIENCE_SECONDS: Final = 5.0
MOST_SECONDS_YOUNG: Final = 2.0
MOST_SECONDS_OLD: Final = 5.0
USE: Final = "use AWS S3 or SeaweedFS 4"
NO_ETAG: Final = '"00000000000000000000000000000000"'


class Trial(BaseModel):
    """One property that was tried.

    Attributes:
        what: the property.
        tried: how often.
        held: how often it held.
        fault: what happened when it did not, and how to mend it.
        required: whether a bucket without it is refused; else there is a warning.
    """

    model_config = ConfigDict(frozen=True)

    what: str
    tried: int
    held: int
    fault: str | None = None
    required: bool = True


class BucketVerdict(BaseModel):
    """What the check of a bucket through one endpoint has found.

    Attributes:
        endpoint: through which it was checked, without credentials.
        checked: when, in ISO 8601.
        rounds: how many races there were.
        writers: how many writers took part in each.
        seconds: how long it took.
        trials: everything that was tried.
        versioning: the bucket's, as `ObjectStore.versioning` gives it.
    """

    model_config = ConfigDict(frozen=True, populate_by_name=True)

    schema_version: int = Field(default=SCHEMA, alias="schema")
    endpoint: str
    checked: str
    rounds: int
    writers: int
    seconds: float
    trials: tuple[Trial, ...]
    versioning: str = ""

    @property
    def faults(self) -> list[str]:
        """Why the bucket must not be used."""
        return [each.fault for each in self.trials if each.fault and each.required]

    @property
    def warnings(self) -> list[str]:
        """What does not hold, and is no reason to refuse the bucket."""
        return [each.fault for each in self.trials if each.fault and not each.required]


def ensure_checked(store: ObjectStore) -> None:
    """Check the bucket, unless a verdict of the last 30 days is there.

    A bucket whose versioning was switched since is checked again: Ceph's radosgw 16 lets one of 16
    creates win in a plain bucket, and all of them in a versioned one. A refusal is kept as well: a
    server that lets two writers win now and then may pass the next check. `run_check` replaces it.

    Raises:
        StorageError: it is not fit, or its verdict is of a newer version.
        StorageUnavailable: S3 did not answer.
    """
    verdict = _read(store)
    if verdict is None:
        with _lease(store) as renew:
            verdict = _read(store)  # another process may have checked meanwhile
            if verdict is None:
                verdict = _check([store], ROUNDS, renew, copies=False)
                _keep(store, verdict)
                for warning in verdict.warnings:
                    log.warning("%s", warning)
    if verdict.faults:
        raise StorageError(
            f"{store.uri('')} at {verdict.endpoint} is not fit, as its check of {verdict.checked} "
            f"found: {'; '.join(verdict.faults)}. When that is mended, check again: "
            "nanobanana bucket check"
        )


def run_check(
    stores: Sequence[ObjectStore], rounds: int, *, copies: bool = False
) -> list[BucketVerdict]:
    """Check the bucket now, and keep the verdicts if it is found unfit or was raced enough.

    Args:
        stores: the same bucket through one or more endpoints, which share the writers.
        rounds: of the race.
        copies: whether conditional copies are tried too; deliveries into an own bucket need them.

    Returns:
        A verdict for each endpoint.

    Raises:
        StorageError: S3 refuses to be used at all.
    """
    for store in stores:
        _refuse_newer_verdict(store)
    with _lease(stores[0]) as renew:
        common = _check(stores, rounds, renew, copies=copies)
        verdicts = [common.model_copy(update={"endpoint": _endpoint(each)}) for each in stores]
        if rounds >= ROUNDS or common.faults:
            for store, verdict in zip(stores, verdicts, strict=True):
                _keep(store, verdict)
    return verdicts


def check_copies(store: ObjectStore) -> None:
    """Make sure that S3 copies an object only as it was read, and over nothing.

    Raises:
        StorageError: it does not, so that pictures could be swapped under our hands.
    """
    with _lease(store):
        trial = _copies(store)
    if trial.fault:
        raise StorageError(trial.fault)


def _read(store: ObjectStore) -> BucketVerdict | None:
    """The verdict on this bucket through this endpoint; None if there is none, or an old one."""
    key = bucket_verdict_key(_endpoint(store))
    found = store.get(key)
    if found is None:
        return None
    verdict = parse_json(
        *(found.body, store.uri(key), BucketVerdict.model_validate_json, SCHEMA),
        remedy="nanobanana bucket check writes it anew",
    )
    is_valid = found.age_seconds < KEPT_SECONDS and verdict.versioning == store.versioning()
    return verdict if is_valid else None


def _refuse_newer_verdict(store: ObjectStore) -> None:
    """Leave alone what a newer version wrote; what is damaged may be replaced."""
    key = bucket_verdict_key(_endpoint(store))
    found = store.get(key)
    with suppress(ValueError, KeyError, TypeError):
        refuse_newer(store.uri(key), json.loads(found.body if found else b"")["schema"], SCHEMA)


def _keep(store: ObjectStore, verdict: BucketVerdict) -> None:
    body = verdict.model_dump_json(by_alias=True, indent=1).encode()
    key = bucket_verdict_key(verdict.endpoint)
    store.put(key, body, content_type="application/json")


def _endpoint(store: ObjectStore) -> str:
    """Where the store's client sends its calls, without credentials and query."""
    parts = urlsplit(store.client.meta.endpoint_url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}".rstrip("/")


@contextmanager
def _lease(store: ObjectStore) -> Iterator[Callable[[], None]]:
    """Let one process check at a time; gives what renews the lease, to be called in between.

    Whether a lease is still alive is judged by the waiting process's clock: S3's is under test.
    """
    key, nonce = probe_key("lease"), uuid.uuid4().hex
    count, etag, renewed, lock = 0, "", 0.0, Lock()

    def take(old: str | None) -> bool:
        nonlocal count, etag, renewed
        count += 1
        body = f"{nonce} {count}".encode()
        began = boot_clock()
        won = write(
            *(store, key, body, old),
            content_type="text/plain",
            patience_seconds=LEASE_PATIENCE_SECONDS,
        )
        if isinstance(won, Won):
            etag, renewed = won.etag, began
        return isinstance(won, Won)

    def renew() -> None:
        with lock:
            silent = boot_clock() - renewed
            if not etag or silent < LEASE_SECONDS / 4:
                return
            if silent > LEASE_SECONDS or not take(etag):
                raise StorageUnavailable(
                    f"the check of {store.uri('')} took too long between two rounds, and another "
                    "one may have begun: try again"
                )

    seen, since = "", boot_clock()
    while True:
        found = store.get(key)
        if found is not None and found.etag != seen:
            seen, since = found.etag, boot_clock()
        if found is not None and found.body and boot_clock() - since < LEASE_SECONDS:
            time.sleep(0.2)
            continue
        try:
            if take(found.etag if found else None):
                break
        except StorageUnavailable:
            break  # the races will say what is wrong with conditional writes
    try:
        yield renew
    finally:
        if etag:
            # Emptied, not deleted: another process may hold it already.
            with suppress(StorageError):
                store.update(key, b"", etag, content_type="text/plain")


def _check(
    stores: Sequence[ObjectStore], rounds: int, renew: Callable[[], None], *, copies: bool
) -> BucketVerdict:
    began, versioning = time.monotonic(), stores[0].versioning()
    races = run_races(stores, rounds, renew)
    trials = [_races_trial(kind, races) for kind in dict.fromkeys(each.kind for each in races)]
    trials += [_clock(races), *map(_checksums, stores)]
    if copies:
        trials.append(_copies(stores[0]))
    return BucketVerdict(
        endpoint=_endpoint(stores[0]),
        checked=datetime.now(UTC).isoformat(timespec="seconds"),
        rounds=rounds,
        writers=WRITERS,
        seconds=round(time.monotonic() - began, 1),
        trials=tuple(trials),
        versioning=versioning,
    )


def _races_trial(kind: str, races: Sequence[Race]) -> Trial:
    some = [each for each in races if each.kind == kind]
    faults = [each.fault for each in some if each.fault]
    fault = (
        f"{kind}: in {len(faults):,} of {len(some):,} rounds it did not hold (first: {faults[0]}), "
        f"so that requests could be bought twice or not at all; {USE}, and look for a proxy in "
        "between that does not pass If-Match and If-None-Match on as they are"
        if faults
        else None
    )
    return Trial(what=kind, tried=len(some), held=len(some) - len(faults), fault=fault)


def _clock(races: Sequence[Race]) -> Trial:
    ages = [each.age for each in races if each.age is not None]
    wrong = [
        (age, elapsed)
        for age, elapsed in ages
        if not -MOST_SECONDS_YOUNG <= age <= elapsed + MOST_SECONDS_OLD
    ]
    fault = None
    if wrong:
        age, elapsed = max(wrong, key=lambda each: abs(each[0]))
        fault = (
            f"an object written {elapsed:.1f} s before is {age:,.0f} s old by S3's own answer "
            "(Date minus Last-Modified), so that claims of live processes would expire early, or "
            "those of dead ones never; set the clocks of the S3 servers, and of proxies that write "
            "Date, by NTP"
        )
    what = "an object's age by S3's clock"
    return Trial(what=what, tried=len(ages), held=len(ages) - len(wrong), fault=fault)


def _checksums(store: ObjectStore) -> Trial:
    """Try whether bytes that are not as their checksum says are refused.

    Without this a bucket is warned of and not refused: only bytes that are damaged on the way are
    lost by it, and ``nanobanana audit --images all`` finds them.
    """
    key, fault = probe_key("checksum"), None
    wrong = base64.b64encode(hashlib.sha256(b"other bytes").digest()).decode()
    try:
        store.client.put_object(
            Bucket=store.bucket, Key=store.prefix + key, Body=b"bytes", ChecksumSHA256=wrong
        )
    except S3_FAULTS as error:
        answer = error.response if isinstance(error, ClientError) else {}
        status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        if status not in {HTTPStatus.BAD_REQUEST, HTTPStatus.NOT_IMPLEMENTED}:
            raise translated(error, "write", store.uri(key)) from error
        is_refused = status == HTTPStatus.BAD_REQUEST
    else:
        is_refused = False
        with suppress(StorageError):
            store.delete(key)
    if not is_refused:
        fault = (
            f"{store.uri('')} at {_endpoint(store)} stores bytes that are not as their SHA-256 "
            "checksum says: pictures that are damaged on the way would not be noticed before "
            f"nanobanana audit --images all; {USE}, or speak https"
        )
    return Trial(
        what="a wrong checksum is refused",
        tried=1,
        held=int(is_refused),
        fault=fault,
        required=False,
    )


def _copies(store: ObjectStore) -> Trial:
    """Try conditional copies, on fixed keys: to be called under the lease."""
    original, copy = probe_key("original"), probe_key("copy")

    def adopt(etag: str) -> bool:
        source = store.prefix + original
        return store.adopt(store.bucket, source, etag, copy, content_type="text/plain", metadata={})

    store.delete(copy)
    etag = store.put(original, b"1")
    try:
        swapped = adopt(NO_ETAG)
        copied = adopt(etag)
        again = adopt(etag)
    finally:
        store.delete(original)
        store.delete(copy)
    held = (not swapped) + copied + (not again)
    fault = (
        f"{store.uri('')} does not honour conditional copies (x-amz-copy-source-if-match, "
        f"If-None-Match): pictures cannot be taken over safely; {USE}"
    )
    what = "copy of what was read, over nothing"
    return Trial(what=what, tried=3, held=held, fault=None if held == 3 else fault)  # noqa: PLR2004
