"""Opens the bucket that the settings name, and checks whose it is: one realm, one layout."""

import json
from typing import TYPE_CHECKING, Final

from nanobanana_pipeline.bucket_keys import MARKER
from nanobanana_pipeline.errors import SettingsError
from nanobanana_pipeline.settings import Settings
from nanobanana_pipeline.storage.bucket_check import ensure_checked
from nanobanana_pipeline.storage.client import s3_client
from nanobanana_pipeline.storage.store import ObjectStore

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

__all__ = ["check_bucket", "claim_bucket", "open_bucket"]

LAYOUT_VERSION: Final = 1


def open_bucket(
    settings: Settings, *, claim: bool = True, client: "S3Client | None" = None
) -> ObjectStore:
    """The bucket of these settings, once it is sure that it is of the right realm.

    With `claim` it is checked by experiment at its first use through an endpoint, and every 30
    days; one of no realm is claimed. Else nothing is written.
    Without `client` one is made from AWS's own variables.

    Raises:
        SettingsError: the prefix holds another realm's pictures, or a newer layout.
        StorageError: the bucket is unusable.
    """
    store = ObjectStore(client or s3_client(), str(settings.bucket), settings.prefix)
    (claim_bucket if claim else check_bucket)(store, str(settings.realm))
    return store


def claim_bucket(store: ObjectStore, realm: str) -> None:
    """Check that the bucket is fit (see `bucket_check`) and belongs to `realm`; claim a new one.

    Raises:
        SettingsError: the prefix holds another realm's pictures, or a newer layout.
        StorageError: the bucket is unusable.
    """
    is_claimed = check_bucket(store, realm)
    ensure_checked(store)
    if is_claimed:
        return
    body = json.dumps({"layout": LAYOUT_VERSION, "realm": realm}).encode()
    if store.create(MARKER, body, content_type="application/json") is None:
        check_bucket(store, realm)


def check_bucket(store: ObjectStore, realm: str) -> bool:
    """Whether the prefix belongs to `realm` already; False if to nobody. Writes nothing.

    Raises:
        SettingsError: the prefix holds another realm's pictures, or a newer layout.
        StorageError: the bucket is unusable.
    """
    found = store.get(MARKER)
    if found is None:
        return False
    try:
        marker = json.loads(found.body)
    except ValueError:
        marker = None
    if not isinstance(marker, dict):
        raise SettingsError(
            f"{store.uri(MARKER)} is not this package's marker: nobody can tell whose pictures lie "
            "there; use another NANOBANANA_PREFIX or NANOBANANA_BUCKET"
        )
    if marker.get("realm") != realm:
        raise SettingsError(
            f"{store.uri('')} holds pictures of realm {marker.get('realm')!r}, and these settings "
            f"are for realm {realm!r}: use another NANOBANANA_PREFIX or NANOBANANA_BUCKET, so that "
            "a rehearsal's pictures are never taken for real ones"
        )
    if marker.get("layout") != LAYOUT_VERSION:
        raise SettingsError(
            f"{store.uri(MARKER)} has layout {marker.get('layout')!r}; this version writes layout "
            f"{LAYOUT_VERSION}: upgrade nanobanana-pipeline"
        )
    return True
