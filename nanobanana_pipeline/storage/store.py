"""The bucket, seen through the few verbs the domain needs.

`create`, `update` and `adopt` are S3's conditional writes (``If-None-Match: *``, ``If-Match`` and
``x-amz-copy-source-if-match``). They are sent once: if the answer is lost, only the caller can tell
from a fresh read whether its own write was applied, so `StorageUnavailable` is raised and nothing
is sent again. All other calls repeat safely and are retried here, and nowhere else.
"""

import base64
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from nanobanana_pipeline.errors import ObjectTooLarge, StorageError
from nanobanana_pipeline.storage.faults import (
    LOST_RACE_CODES,
    MISSING_CODES,
    UNANSWERED_CODES,
    patient,
    s3_errors,
)

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

__all__ = ["ListedObject", "ObjectStore", "StoredObject"]


@dataclass(frozen=True)
class StoredObject:
    """One object as a single GET answered it.

    Attributes:
        etag: as S3 quotes it, fit for `ObjectStore.update`.
        age_seconds: the server's ``Date`` minus ``Last-Modified``: its clock alone, in seconds.
        metadata: user metadata, keys in lower case.
    """

    body: bytes = field(repr=False)
    etag: str
    last_modified: datetime
    age_seconds: float
    metadata: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class ListedObject:
    """One object as a LIST told of it.

    Attributes:
        size: bytes.
        etag: as S3 quotes it, the same that reading it gives.
        last_modified: by the S3 server's clock.
        age_seconds: the answer's ``Date`` minus `last_modified`: that clock alone, in seconds.
    """

    key: str
    size: int
    etag: str
    last_modified: datetime
    age_seconds: float


class ObjectStore:
    """The objects under one prefix of one bucket. Safe to share between threads.

    Args:
        client: a boto3 S3 client that does not retry by itself (see `s3_config`).
        bucket: the bucket's name.
        prefix: put before every key; "" or a path without leading slash.

    Every method raises `StorageUnavailable` when S3 gives no answer (after about a minute of
    trying, except for conditional writes) and `StorageError` when it refuses.
    """

    def __init__(self, client: "S3Client", bucket: str, prefix: str = "") -> None:
        self.client = client
        self.bucket = bucket
        self.prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""

    def __repr__(self) -> str:
        return f"ObjectStore({self.uri('')})"

    def uri(self, key: str) -> str:
        """The object's ``s3://`` address."""
        return f"s3://{self.bucket}/{self.prefix}{key}"

    def at(self, bucket: str, prefix: str) -> "ObjectStore":
        """Another place, seen with the same credentials."""
        return ObjectStore(self.client, bucket, prefix)

    @patient
    def get(self, key: str) -> StoredObject | None:
        """Read an object whole; None if there is none."""
        with s3_errors("read", self.uri(key), MISSING_CODES):
            return _read(self.client.get_object(Bucket=self.bucket, Key=self.prefix + key))
        return None

    @patient
    def head(self, key: str) -> Mapping[str, str] | None:
        """An object's user metadata; None if there is no such object."""
        with s3_errors("look at", self.uri(key), MISSING_CODES):
            return self.client.head_object(Bucket=self.bucket, Key=self.prefix + key)["Metadata"]
        return None

    @patient
    def put(self, key: str, body: bytes, *, content_type: str = "application/octet-stream") -> str:
        """Write an object, whatever was there; gives its ETag."""
        return self._put(key, body, content_type, None, {}) or ""  # None answers a condition only

    @patient
    def get_range(self, key: str, start: int, length: int) -> bytes | None:
        """Read a part of an object, `length` bytes from `start`; None if there is no such object.

        Raises:
            StorageError: the object is shorter.
        """
        span = f"bytes={start}-{start + length - 1}"
        with s3_errors(f"read {span} of", self.uri(key), MISSING_CODES):
            found = self.client.get_object(Bucket=self.bucket, Key=self.prefix + key, Range=span)
            body = found["Body"].read()
            if len(body) != length:
                raise StorageError(
                    f"{self.uri(key)} has {len(body):,} bytes where {span} should be"
                )
            return body
        return None

    @patient
    def versioning(self) -> str:
        """Whether the bucket keeps old versions, as S3 says it: "Enabled" or "Suspended".

        "" if it never did, or if S3 does not answer that question.
        """
        with s3_errors("read the versioning of", self.uri(""), UNANSWERED_CODES):
            return self.client.get_bucket_versioning(Bucket=self.bucket).get("Status", "")
        return ""

    def create(
        self,
        key: str,
        body: bytes,
        *,
        content_type: str = "application/octet-stream",
        metadata: Mapping[str, str] | None = None,
        sha256: bytes | None = None,
    ) -> str | None:
        """Write an object that is not there yet, once, without retries; metadata is ASCII.

        `sha256` is the body's digest (32 bytes) if it is known already.

        Returns:
            The new ETag; None if something is there already.
        """
        condition = {"IfNoneMatch": "*", "Metadata": dict(metadata or {})}
        return self._put(key, body, content_type, sha256, condition)

    def update(
        self, key: str, body: bytes, etag: str, *, content_type: str = "application/json"
    ) -> str | None:
        """Replace an object that is still as `etag` says, once, without retries.

        Returns:
            The new ETag; None if it has changed or is gone.
        """
        return self._put(key, body, content_type, None, {"IfMatch": etag})

    def adopt(
        self,
        bucket: str,
        source: str,
        etag: str,
        key: str,
        *,
        content_type: str,
        metadata: Mapping[str, str],
    ) -> bool:
        """Copy any object here, inside S3, once, without retries; the original stays.

        Args:
            bucket: where it lies.
            source: its whole key there.
            etag: as it was read; another object is not copied.
            key: where to.
            content_type: the MIME type that the copy gets.
            metadata: user metadata (ASCII) that the copy gets, instead of the original's.

        Returns:
            False if something is there already, or if the original has changed or is gone; `head`
            tells which.
        """
        with s3_errors(f"copy s3://{bucket}/{source} to", self.uri(key), LOST_RACE_CODES):
            self.client.copy_object(
                Bucket=self.bucket,
                Key=self.prefix + key,
                CopySource={"Bucket": bucket, "Key": source},
                CopySourceIfMatch=etag,
                IfNoneMatch="*",
                MetadataDirective="REPLACE",
                ContentType=content_type,
                Metadata=dict(metadata),
                ChecksumAlgorithm="SHA256",
            )
            return True
        return False

    @patient
    def delete(self, key: str) -> None:
        """Remove an object; it is no error if there is none."""
        with s3_errors("delete", self.uri(key)):
            self.client.delete_object(Bucket=self.bucket, Key=self.prefix + key)

    def keys(self, prefix: str, *, limit: int | None = None) -> Iterator[str]:
        """The keys that begin with `prefix`, to the letter, in order, a page at a time.

        With `limit` only the first so many (1 to 1,000), in one call.
        """
        pages = [self._page(prefix, {"MaxKeys": limit})] if limit else self._pages(prefix)
        for page in pages:
            for found in page.get("Contents", []):
                yield found["Key"].removeprefix(self.prefix)

    def listing(self, prefix: str) -> Iterator[ListedObject]:
        """The objects whose keys begin with `prefix`, to the letter, by key, a page at a time."""
        for page in self._pages(prefix):
            now = parsedate_to_datetime(page["ResponseMetadata"]["HTTPHeaders"]["date"])
            for found in page.get("Contents", []):
                modified: datetime = found["LastModified"]
                yield ListedObject(
                    key=found["Key"].removeprefix(self.prefix),
                    size=found["Size"],
                    etag=found["ETag"],
                    last_modified=modified,
                    age_seconds=(now - modified).total_seconds(),
                )

    @patient
    def open_url(self, url: str) -> bytes:
        """Read any ``s3://bucket/key`` with the same credentials."""
        bucket, _, key = url.removeprefix("s3://").partition("/")
        with s3_errors("read", url):
            found = self.client.get_object(Bucket=bucket, Key=key)
            return _read(found).body

    @patient
    def read_object(self, bucket: str, key: str, max_bytes: int) -> StoredObject | None:
        """Read an object of any bucket, by its whole key, with the same credentials; None if none.

        Raises:
            ObjectTooLarge: it has more than `max_bytes`, and is not read at all.
        """
        where = f"s3://{bucket}/{key}"
        with s3_errors("read", where, MISSING_CODES):
            answer = self.client.get_object(Bucket=bucket, Key=key)
            size = answer["ContentLength"]
            if size > max_bytes:
                answer["Body"].close()
                raise ObjectTooLarge(f"{where} has {size:,} bytes, more than {max_bytes:,}")
            return _read(answer)
        return None

    def _pages(self, prefix: str) -> Iterator[Any]:
        token: dict[str, Any] = {}
        while True:
            page = self._page(prefix, token)
            yield page
            if not page.get("IsTruncated"):
                return
            token = {"ContinuationToken": page["NextContinuationToken"]}

    @patient
    def _page(self, prefix: str, token: dict[str, Any]) -> Any:  # noqa: ANN401 - boto3's own dict
        with s3_errors("list", self.uri(prefix)):
            return self.client.list_objects_v2(
                Bucket=self.bucket, Prefix=self.prefix + prefix, **token
            )

    def _put(
        self,
        key: str,
        body: bytes,
        content_type: str,
        sha256: bytes | None,
        condition: Mapping[str, Any],
    ) -> str | None:
        digest = base64.b64encode(sha256 or hashlib.sha256(body).digest()).decode()
        with s3_errors("write", self.uri(key), LOST_RACE_CODES if condition else ()):
            return self.client.put_object(
                Bucket=self.bucket,
                Key=self.prefix + key,
                Body=body,
                ContentType=content_type,
                ChecksumSHA256=digest,
                **condition,
            )["ETag"]
        return None


def _read(answer: Any) -> StoredObject:  # noqa: ANN401
    modified: datetime = answer["LastModified"]
    now = parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
    return StoredObject(
        body=answer["Body"].read(),
        etag=answer["ETag"],
        last_modified=modified,
        age_seconds=(now - modified).total_seconds(),
        metadata=answer.get("Metadata", {}),
    )
