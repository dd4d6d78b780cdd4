"""The pictures that `img2img` and `multi_ref` start from.

A reference counts by its bytes wherever they can be had: given as base64, or lying on loopback.
Other addresses are never called; such a reference counts by its address, and its size is unknown.
"""

import base64
import functools
import hashlib
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass

import requests
from PIL import Image

from nanobanana_pipeline.emulator.background import is_loopback, run_in_background
from nanobanana_pipeline.emulator.rules import Schema
from nanobanana_pipeline.emulator.validation import InvalidOrderError

REF_IMAGE = "ref_image"
_MOST = 16
_MOST_BYTES = 64 * 2**20
_SECONDS = 10
_A_PIXEL = (  # a PNG
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR42mNgAAAAAgAB5Sfe/AAAAABJRU5ErkJggg=="
)
_DATA_URI = re.compile(r"data:[\w/+.-]*;base64,")


@dataclass(frozen=True, slots=True)
class Reference:
    """One picture to start from: the SHA-256 of its bytes or its address, and its size if known."""

    sha256: str
    size: tuple[int, int] | None


def reference_schema(endpoint: str) -> Schema:
    """Tell what `ref_image` takes, as a JSON Schema; whether it is an image, only reading tells."""
    one = {
        "type": "string",
        "minLength": 1,
        "description": "An HTTP(S) URL, or an image in base64, bare or as a `data:` URI.",
        "examples": [_A_PIXEL],
    }
    several = {"type": "array", "items": one, "minItems": 1, "maxItems": _MOST}
    return {"anyOf": [one, several]} if endpoint == "img2img" else several


async def read_references(body: Mapping[str, object], endpoint: str) -> list[Reference]:
    """Read `ref_image`: one string or an array for `img2img`, an array for `multi_ref`.

    Raises:
        InvalidOrderError: It is missing, or one of its references is no picture.
    """
    raw = body.get(REF_IMAGE)
    if raw is None or raw in ("", []):
        raise _wrong("is required")
    if isinstance(raw, str) and endpoint == "img2img":
        raw = [raw]
    if not isinstance(raw, list) or not all(isinstance(each, str) for each in raw):
        raise _wrong("must be an array of URLs or base64")
    if len(raw) > _MOST:
        raise _wrong(f"must not name more than {_MOST} images")
    return [await run_in_background(functools.partial(_read, each)) for each in raw]


def _read(raw: str) -> Reference:
    try:
        if not raw.startswith(("http://", "https://")):
            return _of_bytes(base64.b64decode(_DATA_URI.sub("", raw, count=1), validate=True))
        if is_loopback(raw):
            return _of_bytes(_download(raw))
        return Reference(hashlib.sha256(raw.encode()).hexdigest(), None)
    except ValueError as error:
        raise _wrong("must be a URL or base64 of an image") from error
    except (OSError, Image.DecompressionBombError) as error:
        raise _wrong("could not be loaded as an image") from error


def _of_bytes(image: bytes) -> Reference:
    with Image.open(io.BytesIO(image)) as picture:
        if not all(picture.size):
            raise OSError("an image without pixels")
        return Reference(hashlib.sha256(image).hexdigest(), picture.size)


def _download(url: str) -> bytes:
    with requests.Session() as session:
        session.trust_env = False  # no proxy, and no password of whoever runs the emulator
        with session.get(url, timeout=_SECONDS, stream=True, allow_redirects=False) as answer:
            if answer.status_code != requests.codes.ok:
                raise OSError(f"{answer.status_code} instead of an image")
            content = bytearray()
            for piece in answer.iter_content(2**16):
                content += piece
                if len(content) > _MOST_BYTES:
                    raise OSError("larger than a reference may be")
    return bytes(content)


def _wrong(words: str) -> InvalidOrderError:
    return InvalidOrderError({REF_IMAGE: [f"{REF_IMAGE} {words}"]})
