"""What S3 and boto3 say when something fails, in this project's words."""

from typing import Final

import tenacity
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
)

from nanobanana_pipeline.errors import StorageError, StorageFull, StorageUnavailable

__all__ = [
    "LOST_RACE_CODES",
    "MISSING_CODES",
    "S3_FAULTS",
    "code_of",
    "patient",
    "translated",
]

LOST_RACE_CODES = frozenset(
    {"PreconditionFailed", "ConditionalRequestConflict", "412", "NoSuchKey", "404"}
)
MISSING_CODES = frozenset({"NoSuchKey", "404", "NotFound"})
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

patient: Final = tenacity.retry(
    retry=tenacity.retry_if_exception_type(StorageUnavailable),
    wait=tenacity.wait_exponential_jitter(multiplier=0.1, max=5),
    stop=tenacity.stop_after_delay(60),
    reraise=True,
)


def code_of(error: Exception) -> str:
    """S3's own code of an error; "" where boto3 failed without an answer."""
    if isinstance(error, ClientError):
        return str(error.response.get("Error", {}).get("Code", ""))
    return ""


def translated(error: Exception, verb: str, where: str) -> StorageError:
    """One of `S3_FAULTS` as the error to raise from it; the one place where that is done.

    Args:
        error: what boto3 raised.
        verb: what was tried, such as "write".
        where: the object's address.

    Returns:
        `StorageUnavailable` where trying again may help, `StorageFull` where room is needed,
        else `StorageError` with how to mend it.
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
