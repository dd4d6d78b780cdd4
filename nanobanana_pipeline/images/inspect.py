"""Whether bytes are the picture that was asked for, told from the bytes alone.

Structure only: magic numbers, sizes, chunk checksums, ends. Decoding every pixel costs ten times
as much and belongs to the features of pictures, not to getting them.
"""

import io
import warnings
from dataclasses import dataclass, replace
from typing import Final

from PIL import Image, UnidentifiedImageError

from nanobanana_pipeline.errors import ImageBroken
from nanobanana_pipeline.images.containers import JPEG_END, jpeg_segments
from nanobanana_pipeline.images.provenance import provenance_marks

__all__ = ["CONTENT_TYPES", "MAX_IMAGE_BYTES", "ImageFacts", "inspect"]

MAX_IMAGE_BYTES: Final = 64 * 2**20
MAX_PIXELS: Final = 64_000_000
CONTENT_TYPES: Final = {"png": "image/png", "jpg": "image/jpeg", "webp": "image/webp"}
PILLOW_FORMATS: Final = ("PNG", "JPEG", "WEBP")
EXTENSIONS: Final = {"PNG": "png", "JPEG": "jpg", "MPO": "jpg", "WEBP": "webp"}
"""By Pillow's names. MPO is a JPEG with more pictures behind it, such as a gain map for HDR."""
PNG_END: Final = b"\0\0\0\0IEND\xaeB`\x82"
RIFF_HEADER_BYTES: Final = 8


@dataclass(frozen=True)
class ImageFacts:
    """What the bytes say of themselves.

    Attributes:
        format: ``png``, ``jpg`` or ``webp``.
        width, height: pixels.
        marks: of provenance, sorted; see `provenance`.
    """

    format: str
    width: int
    height: int
    marks: tuple[str, ...] = ()


def inspect(data: bytes, *, width: int | None = None, height: int | None = None) -> ImageFacts:
    """Look at a picture's structure; `width` and `height` were asked for, in pixels (None: any).

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
            with Image.open(io.BytesIO(data), formats=PILLOW_FORMATS) as image:
                facts = ImageFacts(EXTENSIONS[image.format or ""], *image.size)
                _check_size(facts, width, height)
                image.verify()
    except Image.DecompressionBombError as error:
        raise ImageBroken(str(error)) from error
    except UnidentifiedImageError:
        start = data[:60].decode("utf-8", "replace")
        raise ImageBroken(f"not a PNG, JPEG or WebP picture; it starts with {start!r}") from None
    except ImageBroken:
        raise
    except Exception as error:  # a stranger's bytes may make a decoder raise anything
        raise ImageBroken(f"damaged: {error}") from error
    _check_end(facts.format, data)
    return replace(facts, marks=provenance_marks(facts.format, data))


def _check_size(facts: ImageFacts, width: int | None, height: int | None) -> None:
    if facts.width * facts.height > MAX_PIXELS:
        raise ImageBroken(f"{facts.width}×{facts.height} pixels are more than {MAX_PIXELS:,}")
    if (width or facts.width, height or facts.height) != (facts.width, facts.height):
        raise ImageBroken(
            f"{facts.width}×{facts.height} pixels, not {width or 'any'}×{height or 'any'} as asked"
        )


def _check_end(image_format: str, data: bytes) -> None:
    """What Pillow's `verify` leaves open: a PNG without its last bytes, half a JPEG or WebP.

    What follows the end is let be: it belongs to the bytes as they came, and harms no picture.
    """
    # From behind: looking through a whole picture for it takes as long as hashing it.
    if image_format == "png" and data.rfind(PNG_END) < 0:
        raise ImageBroken("a PNG without its end: cut off")
    # The first picture's end: that of a thumbnail within its header does not count.
    if image_format == "jpg" and all(marker != JPEG_END for marker, _ in jpeg_segments(data)):
        raise ImageBroken("a JPEG without its end: cut off")
    if image_format == "webp":
        declared = int.from_bytes(data[4:8], "little") + RIFF_HEADER_BYTES
        if len(data) < declared:
            raise ImageBroken(f"a WebP of {declared} bytes of which {len(data)} came: cut off")
