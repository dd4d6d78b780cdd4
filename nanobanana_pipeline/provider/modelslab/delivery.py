"""Reads the pictures that ModelsLab delivers.

An output is a URL of a picture, a URL of base64 text, inline base64 or a data URI. A URL below a
registered folder is an object in the customer's own bucket: it is read with S3's credentials.
"""

import base64
import binascii
import re
from typing import Final

from nanobanana_pipeline.errors import (
    DownloadRefused,
    ImageBroken,
    ImageGone,
    NotDelivered,
    ObjectTooLarge,
    StorageError,
    StorageUnavailable,
)
from nanobanana_pipeline.images.inspect import MAX_IMAGE_BYTES
from nanobanana_pipeline.provider.downloads import Downloader, is_url
from nanobanana_pipeline.provider.modelslab.own_bucket import OwnBucket
from nanobanana_pipeline.provider.protocol import Delivered, Original
from nanobanana_pipeline.storage import ObjectStore

__all__ = ["OutputReader"]

DATA_URI: Final = b"data:"
LOOKED_AT: Final = 256
MAY_NOT_WRITE: Final = (
    "if none arrives, the bucket refuses the ACL that the provider sets (it needs "
    "s3:PutObjectAcl, enabled ACLs and no BlockPublicAcls): nanobanana provider set-s3 tries it"
)

_BASE64 = re.compile(rb"[A-Za-z0-9+/=_\s-]+")


class OutputReader:
    """Reads outputs; a `protocol.ReadOutput`. Safe to share between threads.

    `delivery.json` in our own bucket names the registered folders; all other URLs are downloaded.
    """

    def __init__(self, store: ObjectStore, downloader: Downloader) -> None:
        self._store = store
        self._downloader = downloader
        self._own_bucket = OwnBucket(store)

    def __call__(self, output: str) -> Delivered:
        """The picture's own bytes. Their format is told from them, not from what was asked for."""
        output = output.strip()
        if not is_url(output):
            text = output.encode()
            return Delivered(_unwrap(text) if text.startswith(DATA_URI) else _decoded(text))
        place = self._own_bucket.locate(output)
        if place is None:
            try:
                return Delivered(_unwrap(self._downloader.download(output)))
            except (ImageGone, ImageBroken):
                # The folder may have been registered since this shard began.
                self._own_bucket.look_again()
                place = self._own_bucket.locate(output)
                if place is None:
                    raise
        return self._read_own(*place)

    def _read_own(self, bucket: str, key: str) -> Delivered:
        """Read an object of the customer's bucket; never by its public URL."""
        where = f"s3://{bucket}/{key}"
        try:
            found = self._store.read_object(bucket, key, MAX_IMAGE_BYTES)
        except StorageUnavailable:
            raise
        except ObjectTooLarge as error:
            raise ImageBroken(str(error)) from None
        except StorageError as error:
            raise DownloadRefused(
                f"{error}. The provider delivers there, so these credentials need s3:GetObject and "
                f"s3:ListBucket on s3://{bucket}; then launch again"
            ) from None
        if found is None:
            raise NotDelivered(f"{where}: there is no such object; {MAY_NOT_WRITE}")
        data = _unwrap(found.body)
        return Delivered(data, Original(bucket, key, found.etag) if data is found.body else None)


def _unwrap(data: bytes) -> bytes:
    """The picture in a file: the very same bytes, or what they say in base64 or as a data URI.

    Raises:
        ImageBroken: base64 that is none.
    """
    if data.startswith(DATA_URI):
        return _decoded(data.partition(b",")[2])
    # No picture format begins with a row of letters: magic numbers hold bytes that base64 does not.
    return _decoded(data) if _BASE64.fullmatch(data[:LOOKED_AT]) else data


def _decoded(text: bytes) -> bytes:
    packed = b"".join(text.split())
    try:
        return base64.b64decode(
            packed, altchars=b"-_" if b"-" in packed or b"_" in packed else None
        )
    except (binascii.Error, ValueError) as error:
        raise ImageBroken(f"neither a picture nor base64: {error}") from None
