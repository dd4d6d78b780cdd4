"""What S3 and boto3 say when something fails, in this project's words."""

import logging
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final

import tenacity
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
)
from tenacity.wait import wait_base

from nanobanana_pipeline.errors import StorageError, StorageFull, StorageUnavailable

__all__ = [
    "LOST_RACE_CODES",
    "MISSING_CODES",
    "PATIENCE_SECONDS",
    "S3_FAULTS",
    "UNANSWERED_CODES",
    "Patience",
    "code_of",
    "patient",
    "s3_errors",
    "translated",
]

log = logging.getLogger(__name__)

PATIENCE_SECONDS: Final = 60.0
TELL_AFTER_SECONDS: Final = 5.0
TELL_AGAIN_SECONDS: Final = 60.0
LOST_RACE_CODES = frozenset(
    {"PreconditionFailed", "ConditionalRequestConflict", "412", "NoSuchKey", "404"}
)
MISSING_CODES = frozenset({"NoSuchKey", "404", "NotFound"})
UNANSWERED_CODES = frozenset({"AccessDenied", "403", "NotImplemented", "501", "MethodNotAllowed"})
PASSING_CODES = frozenset(
    {
        "SlowDown",
        "ServiceUnavailable",
        "InternalError",
        "RequestTimeout",
        "OperationAborted",
        "Throttling",
        "ThrottlingException",
        "RequestLimitExceeded",
        "BadDigest",  # the bytes were damaged on the way
        "XAmzContentSHA256Mismatch",
        "IncompleteBody",
    }
)
FULL_CODES = frozenset(
    {
        "InsufficientStorage",
        "QuotaExceeded",  # Ceph, with 403
        "XMinioStorageFull",
        "XMinioAdminBucketQuotaExceeded",  # MinIO, with 400
    }
)
SERVER_ERROR, NOT_IMPLEMENTED, INSUFFICIENT_STORAGE = 500, 501, 507
# botocore says RuntimeError where refreshed credentials have expired already.
S3_FAULTS = (BotoCoreError, ClientError, RuntimeError)
FULL = "it is full: free space or raise the quota, then launch again"
EXPIRED = "renew the AWS session (with aws sso login, or new AWS_… variables), then launch again"
HINTS = {
    "NoSuchBucket": "create it, or correct NANOBANANA_BUCKET",
    "AccessDenied": "these credentials may not do this; check the bucket policy",
    "403": "these credentials may not do this; check AWS_ACCESS_KEY_ID and the bucket policy",
    "InvalidAccessKeyId": "check AWS_ACCESS_KEY_ID and AWS_ENDPOINT_URL_S3",
    "SignatureDoesNotMatch": "check AWS_SECRET_ACCESS_KEY",
    "ExpiredToken": EXPIRED,
    "ExpiredTokenException": EXPIRED,
    "TokenRefreshRequired": EXPIRED,
    "NotImplemented": "this S3 server cannot do it; use AWS S3 or SeaweedFS 4",
}


class _Waiting:
    """Says what is waited for, once a minute over all threads: a wrong address looks like this."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._told = float("-inf")

    def tell(self, state: tenacity.RetryCallState, most: float = PATIENCE_SECONDS) -> None:
        if state.outcome is None or (state.seconds_since_start or 0.0) < TELL_AFTER_SECONDS:
            return
        error = state.outcome.exception()
        now = time.monotonic()
        with self._lock:
            if now - self._told < TELL_AGAIN_SECONDS:
                return
            self._told = now
        # Where S3 itself has answered, it is found.
        cause = error.__cause__ if error is not None else None
        answered = cause is None or isinstance(cause, ClientError)
        hint = "" if answered else "; if it never answers, correct AWS_ENDPOINT_URL_S3"
        log.warning("waiting for S3, at most %.0f s: %s%s", most, error, hint)


_waiting: Final = _Waiting()
_PAUSE: Final = tenacity.wait_exponential_jitter(multiplier=0.1, max=5)
patient: Final = tenacity.retry(
    retry=tenacity.retry_if_exception_type(StorageUnavailable),
    wait=_PAUSE,
    stop=tenacity.stop_after_delay(PATIENCE_SECONDS),
    before_sleep=_waiting.tell,
    reraise=True,
)
"""Decorates what S3 may be asked twice; after a minute of silence it raises."""


class Patience:
    """What `patient` does, for a loop that decides after each failure whether to go on.

    Args:
        seconds: how long failures are borne.
        tries: so many at least are made, however long they take.
        pause: between tries; grows.
    """

    def __init__(self, seconds: float, *, tries: int = 1, pause: wait_base = _PAUSE) -> None:
        over = tenacity.stop_after_delay(seconds), tenacity.stop_after_attempt(tries)
        tell = partial(_waiting.tell, most=seconds)
        retrying = tenacity.Retrying(
            wait=pause, stop=tenacity.stop_all(*over), before_sleep=tell, reraise=True
        )
        self._tries = iter(retrying)
        self._try = next(self._tries)

    def after(self, error: StorageUnavailable) -> None:
        """Wait before the next try, or raise the error if that was the last one."""
        with self._try:
            raise error
        self._try = next(self._tries)


def code_of(error: Exception) -> str:
    """S3's own code of an error; "" where boto3 failed without an answer."""
    if isinstance(error, ClientError):
        return str(error.response.get("Error", {}).get("Code", ""))
    return ""


@contextmanager
def s3_errors(verb: str, where: str, none: Collection[str] = ()) -> Iterator[None]:
    """Raise boto3's errors as `translated` has them; those with one of the codes end the block."""
    try:
        yield
    except S3_FAULTS as error:
        if code_of(error) not in none:
            raise translated(error, verb, where) from error


def translated(error: Exception, verb: str, where: str) -> StorageError:
    """One of `S3_FAULTS` as the error to raise from it; `verb` was tried, such as "write".

    `StorageUnavailable` where trying again may help, `StorageFull` where room is needed, else
    `StorageError` with how to mend it. This is the one place where that is done.
    """
    code = code_of(error)
    if isinstance(error, ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        said = f"{code}: {error.response.get('Error', {}).get('Message', '')}"
        if code in FULL_CODES or status == INSUFFICIENT_STORAGE:
            return StorageFull(f"could not {verb} {where}: {said}; {FULL}")
        if code in PASSING_CODES or (status >= SERVER_ERROR and status != NOT_IMPLEMENTED):
            return StorageUnavailable(f"could not {verb} {where}: {said}")
        hint = f"; {HINTS[code]}" if code in HINTS else ""
        return StorageError(f"could not {verb} {where}: {said}{hint}")
    if isinstance(error, ParamValidationError):
        return StorageError(f"could not {verb} {where}: {error}")
    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return StorageError(
            f"could not {verb} {where}: {error}; set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or an AWS profile"
        )
    return StorageUnavailable(f"could not {verb} {where}: {error}")
