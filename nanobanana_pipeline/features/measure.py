"""Measures one image from all of its pixels: `Features`.

Runs in processes of its own: it imports nothing that they do not need. All figures are of the
colours alone, as training code sees them after Pillow's ``convert("RGB")``: transparency and the
orientation that EXIF names are left out. The same bytes give the same figures on any machine.
"""

import hashlib
import io
import warnings
from dataclasses import dataclass, field
from typing import Final

import imagehash
import numpy as np
from PIL import Image, ImageStat

from nanobanana_pipeline.errors import ImageBroken
from nanobanana_pipeline.images.inspect import inspect

__all__ = ["THUMBNAIL_SIDE", "Features", "measure", "thumbnail"]

BLANK_LEVELS: Final = 8
BLANK_SHARE: Final = 0.99
THUMBNAIL_SIDE: Final = 128
THUMBNAIL_QUALITY: Final = 80
LEVELS: Final = 256


@dataclass(frozen=True)
class Features:
    """A picture's row in the table of features; see its columns in `table`.

    Attributes:
        size: bytes.
        error: why it could not be measured; all else but its name is unknown then.
    """

    image_sha256: str
    format: str | None = None
    mode: str | None = None
    width: int | None = None
    height: int | None = None
    size: int | None = None
    mean: float | None = None
    entropy: float | None = None
    sharpness: float | None = None
    blank: bool | None = None
    phash: str | None = None
    provenance: str | None = None
    error: str | None = None
    thumbnail: bytes | None = field(default=None, repr=False)


def measure(sha256: str, data: bytes) -> Features:
    """Decode a picture and measure it. Never raises: what cannot be decoded has an `error`."""
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        return Features(sha256, error=f"its bytes have the SHA-256 {found}, which is not its name")
    try:
        facts = inspect(data)
        mode, picture = _decoded(data)
    except ImageBroken as error:
        return Features(sha256, error=str(error))
    grey = picture.convert("L")
    return Features(
        sha256,
        format=facts.format,
        mode=mode,
        width=picture.width,
        height=picture.height,
        size=len(data),
        mean=ImageStat.Stat(grey).mean[0],
        entropy=abs(grey.entropy()),  # of one level only it is a minus 0
        sharpness=_sharpness(grey),
        blank=_is_blank(picture),
        phash=str(imagehash.phash(grey)),
        provenance=" ".join(facts.marks) or None,
        thumbnail=_thumbnail(picture),
    )


def thumbnail(data: bytes) -> bytes:
    """A picture as small as `measure` makes it: a WebP, longest side 128 pixels.

    Raises:
        ImageBroken: its pixels cannot be decoded.
    """
    return _thumbnail(_decoded(data)[1])


def _decoded(data: bytes) -> tuple[str, Image.Image]:
    """Pillow's mode of a picture, and its colours."""
    try:
        # A palette with transparency is warned of; transparency is left out anyway.
        with warnings.catch_warnings(), Image.open(io.BytesIO(data)) as image:
            warnings.simplefilter("ignore")
            if image.mode.startswith("I"):
                # Pillow would cut 16 bits off at 255 instead of scaling them down.
                grey = (np.asarray(image) >> 8).astype(np.uint8)
                return image.mode, Image.fromarray(grey).convert("RGB")
            return image.mode, image.convert("RGB")
    except Exception as error:  # a stranger's bytes may make a decoder raise anything
        raise ImageBroken(f"its pixels cannot be decoded: {error}") from error


def _sharpness(grey: Image.Image) -> float:
    """Variance of the Laplacian: the sum of a pixel's four neighbours less four times itself."""
    levels = np.asarray(grey, dtype=np.int16)
    if min(levels.shape) < 3:  # noqa: PLR2004 - a pixel and its two neighbours
        return 0.0
    edges = levels[1:-1, :-2] + levels[1:-1, 2:] + levels[:-2, 1:-1] + levels[2:, 1:-1]
    edges -= 4 * levels[1:-1, 1:-1]
    # Whole numbers throughout: sums of floats differ from machine to machine.
    total, squares = int(edges.sum(dtype=np.int64)), np.square(edges, dtype=np.int32)
    count = edges.size
    return (count * int(squares.sum(dtype=np.int64)) - total**2) / count**2


def _is_blank(picture: Image.Image) -> bool:
    """Whether in each colour 99 % of the pixels lie within 8 of 256 levels.

    So a black picture stays blank with a small mark in its corner, and two colours equally bright
    are not.
    """
    counts = np.reshape(picture.histogram(), (3, LEVELS))
    within = np.lib.stride_tricks.sliding_window_view(counts, BLANK_LEVELS, axis=1).sum(axis=2)
    return bool((within.max(axis=1) >= BLANK_SHARE * counts.sum(axis=1)).all())


def _thumbnail(picture: Image.Image) -> bytes:
    small = picture.copy()
    small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    out = io.BytesIO()
    small.save(out, "WEBP", quality=THUMBNAIL_QUALITY)
    return out.getvalue()
