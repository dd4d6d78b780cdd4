"""What an entry of `output` stands for: a URL, a URL of base64 text, inline base64, a data URI."""

import base64
import binascii
import re
from typing import Final

from nanobanana_pipeline.errors import ImageBroken
from nanobanana_pipeline.provider.downloads import Downloader

__all__ = ["is_url", "receive", "unwrap"]

DATA_URI: Final = b"data:"
LOOKED_AT: Final = 256

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_BASE64 = re.compile(rb"[A-Za-z0-9+/=_\s-]+")


def is_url(output: str) -> bool:
    """Whether an output names a place, rather than being the picture itself."""
    return _URL.match(output.strip()) is not None


def receive(downloader: Downloader, output: str) -> bytes:
    """The picture's own bytes. What they are is told from them, not from what was asked for.

    Raises:
        ImageBroken: text that is neither a URL nor base64.
        DownloadError: as `Downloader.download`.
    """
    output = output.strip()
    if is_url(output):
        return unwrap(downloader.download(output))
    text = output.encode()
    return unwrap(text) if text.startswith(DATA_URI) else _decoded(text)


def unwrap(data: bytes) -> bytes:
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
