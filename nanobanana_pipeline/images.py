"""Whether bytes are the picture that was asked for, told from the bytes alone.

Structure only: magic numbers, sizes, chunk checksums, ends. Decoding every pixel costs ten times
as much and belongs to the features of pictures, not to getting them.
"""

import io
import struct
import warnings
from dataclasses import dataclass
from typing import Final

from PIL import Image, UnidentifiedImageError

from nanobanana_pipeline.errors import ImageBroken

__all__ = ["CONTENT_TYPES", "MAX_IMAGE_BYTES", "ImageFacts", "inspect"]

MAX_IMAGE_BYTES: Final = 64 * 2**20
MAX_PIXELS: Final = 64_000_000
CONTENT_TYPES: Final = {"png": "image/png", "jpg": "image/jpeg", "webp": "image/webp"}
EXTENSIONS: Final = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp"}
JPEG_END: Final = b"\xff\xd9"
RIFF_HEADER_BYTES: Final = 8


@dataclass(frozen=True)
class ImageFacts:
    """What the bytes say of themselves: format (``png``, ``jpg``, ``webp``) and pixels."""

    format: str
    width: int
    height: int


def inspect(data: bytes, *, width: int | None = None, height: int | None = None) -> ImageFacts:
    """Look at a picture's structure.

    Args:
        data: the whole file.
        width: pixels that were asked for; None to accept any.
        height: the same.

    Raises:
        ImageBroken: no picture, a format that is not kept, cut off, damaged, too many pixels, or
            not of the size that was asked for.
    """
    if not data:
        raise ImageBroken("the answer is empty")
    try:
        # The bomb warning is ours to give, as an error with figures.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=list(EXTENSIONS)) as image:
                facts = ImageFacts(EXTENSIONS[image.format or ""], *image.size)
                _check_size(facts, width, height)
                image.verify()
    except Image.DecompressionBombError as error:
        raise ImageBroken(str(error)) from error
    except UnidentifiedImageError:
        start = data[:60].decode("utf-8", "replace")
        raise ImageBroken(f"not a PNG, JPEG or WebP picture; it starts with {start!r}") from None
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, IndexError) as error:
        raise ImageBroken(f"damaged: {error}") from error
    _check_end(facts.format, data)
    return facts


def _check_size(facts: ImageFacts, width: int | None, height: int | None) -> None:
    if facts.width * facts.height > MAX_PIXELS:
        raise ImageBroken(f"{facts.width}×{facts.height} pixels are more than {MAX_PIXELS:,}")
    if (width, height) not in {(None, None), (facts.width, facts.height)}:
        raise ImageBroken(f"{facts.width}×{facts.height} pixels, not {width}×{height} as asked")


def _check_end(image_format: str, data: bytes) -> None:
    """What Pillow's `verify` leaves open: JPEG and WebP that stop in the middle."""
    if image_format == "jpg" and JPEG_END not in data[-64:]:
        raise ImageBroken("a JPEG without its end: cut off")
    if image_format == "webp":
        declared = int.from_bytes(data[4:8], "little") + RIFF_HEADER_BYTES
        if len(data) < declared:
            raise ImageBroken(f"a WebP of {declared} bytes of which {len(data)} came: cut off")
