"""Tries what ModelsLab will do with a key for the customer's bucket, before it is given the key."""

import logging
import uuid
from collections.abc import Mapping
from typing import Final

from pydantic import SecretStr

from nanobanana_pipeline.errors import SettingsError, StorageError
from nanobanana_pipeline.storage import ObjectStore, s3_client
from nanobanana_pipeline.storage.faults import S3_FAULTS, code_of, translated

__all__ = ["check_delivery"]

log = logging.getLogger(__name__)

ACL: Final = "public-read"
"""The vendor asks for s3:PutObjectAcl and a public bucket, and does not name the ACL it sets."""
WRONG_KEY_CODES: Final = frozenset({"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken"})
DENIED_CODES: Final = frozenset({"AccessDenied", "403"})
UNREGISTERED: Final = "Nothing was registered"


def check_delivery(
    store: ObjectStore, bucket: str, folder: str, access_key_id: SecretStr, secret: SecretStr
) -> None:
    """Write a small object into the folder with the provider's key and an ACL, and remove it.

    Args:
        store: our own bucket; its credentials remove the object.
        bucket: that the provider is to write into.
        folder: in that bucket.
        access_key_id: of the key that the provider is to be given.
        secret: of that key.

    Raises:
        SettingsError: the provider's pictures would not arrive; says why and what to change.
        StorageError: S3 cannot be asked.
    """
    client = s3_client(
        aws_access_key_id=access_key_id.get_secret_value(),
        aws_secret_access_key=secret.get_secret_value(),
    )
    given = ObjectStore(client, bucket, folder)
    name = f"nanobanana-check-{uuid.uuid4().hex}.txt"
    where = given.uri("").rstrip("/")
    try:
        error = _put(given, name, {"ACL": ACL})
        if error is None:
            return
        code = code_of(error)
        if code == "AccessControlListNotSupported":
            raise SettingsError(
                f"{where} refuses ACLs ({code}), and the provider sets one on each picture, so "
                "that none would arrive: set the bucket's Object Ownership to 'Bucket owner "
                "preferred', which enables ACLs, or let it deliver into another bucket. "
                f"{UNREGISTERED}"
            )
        if code in WRONG_KEY_CODES:
            raise SettingsError(
                f"S3 does not accept the provider's key ({code}): check "
                "NANOBANANA_PROVIDER_AWS_ACCESS_KEY_ID and "
                f"NANOBANANA_PROVIDER_AWS_SECRET_ACCESS_KEY. {UNREGISTERED}"
            )
        if code not in DENIED_CODES:
            raise translated(error, "write with the provider's key to", where) from error
        if _put(given, name, {}) is None:
            raise SettingsError(
                f"the provider's key may write to {where}, and may not set the ACL {ACL} ({code}), "
                "which the provider does on each picture: allow the key s3:PutObjectAcl there, and "
                "switch off Block Public Access for ACLs (BlockPublicAcls) on the bucket and the "
                f"account. {UNREGISTERED}"
            )
        raise SettingsError(
            f"the provider's key may not write to {where} ({code}): allow it s3:PutObject and "
            f"s3:PutObjectAcl on {where}/*. {UNREGISTERED}"
        )
    finally:
        try:
            store.at(bucket, folder).delete(name)
        except StorageError as left:
            log.warning("what was written to try the key is left: %s", left)


def _put(given: ObjectStore, name: str, more: Mapping[str, str]) -> Exception | None:
    """Write the object; the error if S3 refuses."""
    try:
        given.client.put_object(
            Bucket=given.bucket,
            Key=given.prefix + name,
            Body=b"written by nanobanana provider set-s3 to try the provider's key\n",
            ContentType="text/plain",
            **more,  # type: ignore[arg-type]
        )
    except S3_FAULTS as error:
        return error
    return None
