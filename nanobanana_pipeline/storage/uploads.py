"""Objects written in parts: they can be read, whole, once the last step is done."""

from collections.abc import Sequence
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from nanobanana_pipeline.storage.faults import (
    MISSING_CODES,
    S3_FAULTS,
    code_of,
    patient,
    s3_errors,
    translated,
)
from nanobanana_pipeline.storage.store import ObjectStore

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

__all__ = ["Multipart", "abort_uploads"]


class Multipart:
    """One object on its way, which cannot be read before `finish`. Safe to share between threads.

    What has its key is replaced.

    Raises:
        StorageError: S3 refuses; so does every method.
    """

    def __init__(self, store: ObjectStore, key: str, *, content_type: str) -> None:
        self._client = store.client
        self._where: Any = {"Bucket": store.bucket, "Key": store.prefix + key}
        self._uri = store.uri(key)
        self._upload = self._start(content_type)

    @patient
    def part(self, number: int, body: bytes) -> str:
        """Write part 1 to 10,000, of at least 5 MiB unless it is the last; gives its ETag."""
        with s3_errors(f"write part {number} of", self._uri):
            return self._client.upload_part(
                **self._where, UploadId=self._upload, PartNumber=number, Body=body
            )["ETag"]

    @patient
    def finish(self, etags: Sequence[str], size: int) -> None:
        """Make an object of `size` bytes of the parts, by their ETags in order."""
        parts: Any = [{"PartNumber": n, "ETag": etag} for n, etag in enumerate(etags, 1)]
        try:
            self._client.complete_multipart_upload(
                **self._where, UploadId=self._upload, MultipartUpload={"Parts": parts}
            )
        except S3_FAULTS as error:
            # Sent again after its answer was lost: the upload is over, and the object is there.
            if code_of(error) != "NoSuchUpload" or self._stored_size() != size:
                raise translated(error, "finish", self._uri) from error

    def abort(self) -> None:
        """Give up, and free the parts; it is no error if all is over already."""
        _abort(self._client, self._where, self._upload, self._uri)

    @patient
    def _start(self, content_type: str) -> str:
        with s3_errors("begin to write", self._uri):
            return self._client.create_multipart_upload(**self._where, ContentType=content_type)[
                "UploadId"
            ]

    def _stored_size(self) -> int | None:
        with s3_errors("look at", self._uri, MISSING_CODES):
            return self._client.head_object(**self._where)["ContentLength"]
        return None


@patient
def abort_uploads(store: ObjectStore, prefix: str, age_seconds: float) -> int:
    """Give up the uploads under `prefix` that were begun at least so long ago; counts them.

    Raises:
        StorageError: S3 refuses.
    """
    with s3_errors("list the uploads to", store.uri(prefix)):
        answer = store.client.list_multipart_uploads(
            Bucket=store.bucket, Prefix=store.prefix + prefix
        )
    now = parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
    old = [
        upload
        for upload in answer.get("Uploads", [])
        if (now - upload["Initiated"]).total_seconds() >= age_seconds
    ]
    for upload in old:
        where = {"Bucket": store.bucket, "Key": upload["Key"]}
        _abort(store.client, where, upload["UploadId"], store.uri(prefix))
    return len(old)


@patient
def _abort(client: "S3Client", where: Any, upload: str, uri: str) -> None:  # noqa: ANN401
    with s3_errors("give up writing", uri, {"NoSuchUpload"}):
        client.abort_multipart_upload(**where, UploadId=upload)
