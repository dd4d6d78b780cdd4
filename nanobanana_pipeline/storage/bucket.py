"""Opens the bucket that the settings name."""

from typing import TYPE_CHECKING

from nanobanana_pipeline.bucket_keys import check_bucket, claim_bucket
from nanobanana_pipeline.settings import Settings
from nanobanana_pipeline.storage.client import s3_client
from nanobanana_pipeline.storage.store import ObjectStore

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

__all__ = ["open_bucket"]


def open_bucket(
    settings: Settings, *, claim: bool = True, client: "S3Client | None" = None
) -> ObjectStore:
    """The bucket of these settings, once it is sure that it is of the right realm.

    Args:
        settings: from `Settings.load`.
        claim: probe a bucket that belongs to no realm yet, and claim it; else write nothing.
        client: of S3; one from AWS's own variables if None.

    Raises:
        SettingsError: the prefix holds another realm's pictures, or a newer layout.
        StorageError: the bucket is unusable.
    """
    store = ObjectStore(client or s3_client(), str(settings.bucket), settings.prefix)
    (claim_bucket if claim else check_bucket)(store, str(settings.realm))
    return store
