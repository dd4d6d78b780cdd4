"""The bucket: its verbs, and objects written in parts."""

from nanobanana_pipeline.storage.client import s3_client, s3_config
from nanobanana_pipeline.storage.store import ListedObject, ObjectStore, StoredObject
from nanobanana_pipeline.storage.uploads import Multipart, abort_uploads

__all__ = [
    "ListedObject",
    "Multipart",
    "ObjectStore",
    "StoredObject",
    "abort_uploads",
    "s3_client",
    "s3_config",
]
