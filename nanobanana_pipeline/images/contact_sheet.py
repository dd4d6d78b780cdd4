"""Many pictures on one: what a partition looks like, at a glance."""

import io
import math
import unicodedata
import warnings
from collections.abc import Sequence
from functools import cache
from typing import Final, Literal

from PIL import Image, ImageDraw, ImageFont

from nanobanana_pipeline.errors import ImageBroken

__all__ = ["caption", "contact_sheet", "shrunk", "strip"]

TILE = 256
FONT_SIZE = 13
LINE = 16
LINES = 2
MARGIN = 8
STRIP_SIDES = range(96, 40, -8)
STRIP_QUALITY = 10
DASHES: Final = str.maketrans("–—", "--")
NO_LETTER: Final = "\uffff"

Font = ImageFont.ImageFont | ImageFont.FreeTypeFont


def caption(prompt: str, prompt_id: str, seed: int | None = None) -> str:
    """What to write below a picture, in letters that the sheets' font has.

    It is the only one that is the same on every machine, and has those of ASCII and few others. The
    prompt is written without accents; its id stands for one with other letters. The seed is named
    where pictures of several lie on one sheet.
    """
    text = _bare(prompt)
    if not all(map(_is_drawn, text)):
        text = "".join(letter if _is_drawn(letter) else "?" for letter in _bare(prompt_id))
    return text if seed is None else f"seed {seed}: {text}"


def contact_sheet(
    pictures: Sequence[tuple[bytes, str]],
    *,
    columns: int = 6,
    tile: int = TILE,
    image_format: Literal["PNG", "WEBP"] = "PNG",
) -> bytes:
    """Lay encoded images out in rows, each with its `caption` in at most two lines.

    Args:
        pictures: images and captions.
        columns: most pictures a row.
        tile: pixels of the longest side that a picture may have on the sheet.
        image_format: of the sheet, which is returned encoded.

    Raises:
        ValueError: there are no pictures.
    """
    if not pictures:
        raise ValueError("a contact sheet needs at least one picture")
    columns = min(columns, len(pictures))
    rows = math.ceil(len(pictures) / columns)
    step_x, step_y = tile + MARGIN, tile + LINES * LINE + 2 * MARGIN
    sheet = Image.new("RGB", (columns * step_x + MARGIN, rows * step_y + MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    font = _font()
    for number, (data, said) in enumerate(pictures):
        x = MARGIN + number % columns * step_x
        y = MARGIN + number // columns * step_y
        small = _small(data, tile)
        sheet.paste(small, (x + (tile - small.width) // 2, y + (tile - small.height) // 2))
        for at, line in enumerate(_wrapped(said, font, tile)):
            draw.text((x, y + tile + 3 + at * LINE), line, fill="black", font=font)
    out = io.BytesIO()
    sheet.save(out, image_format)
    return out.getvalue()


def strip(pictures: Sequence[bytes], most_bytes: int) -> bytes | None:
    """The first pictures side by side, as a WebP: as many as fit, then as large as fits.

    Returns:
        A WebP of at most `most_bytes`; None where not even one picture fits.
    """
    for count in range(len(pictures), 0, -1):
        for side in STRIP_SIDES:
            row = Image.new("RGB", (side * count, side), "white")
            for number, data in enumerate(pictures[:count]):
                row.paste(_small(data, side), (number * side, 0))
            out = io.BytesIO()
            row.save(out, "WEBP", quality=STRIP_QUALITY, method=6)
            if out.tell() <= most_bytes:
                return out.getvalue()
    return None


def shrunk(data: bytes, side: int) -> bytes:
    """A picture as a WebP without loss whose longest side has at most `side` pixels.

    Of a JPEG no more is decoded than that needs.

    Raises:
        ImageBroken: its pixels cannot be decoded.
    """
    out = io.BytesIO()
    try:
        # A palette with transparency is warned of; transparency is left out anyway.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _small(data, side).save(out, "WEBP", lossless=True)
    except Exception as error:  # a stranger's bytes may make a decoder raise anything
        raise ImageBroken(f"its pixels cannot be decoded: {error}") from error
    return out.getvalue()


def _bare(text: str) -> str:
    """A text without its accents, and with plain dashes."""
    parted = unicodedata.normalize("NFKD", text).translate(DASHES)
    return "".join(char for char in parted if not unicodedata.combining(char))


@cache
def _is_drawn(letter: str) -> bool:
    """Whether the font has it; for what it lacks it draws a box."""
    font = _font()
    return letter.isspace() or bytes(font.getmask(letter)) != bytes(font.getmask(NO_LETTER))


def _font() -> Font:
    return ImageFont.load_default(size=FONT_SIZE)


def _small(data: bytes, side: int) -> Image.Image:
    with Image.open(io.BytesIO(data)) as image:
        image.draft("RGB", (side, side))
        small = image.convert("RGB")
    small.thumbnail((side, side))
    return small


def _wrapped(text: str, font: Font, width: int) -> list[str]:
    """A caption in lines of at most `width` pixels; what does not fit the last is cut off."""
    lines: list[str] = []
    words = text.split()
    while words and len(lines) < LINES - 1:
        fitting = 1
        while fitting < len(words) and font.getlength(" ".join(words[: fitting + 1])) <= width:
            fitting += 1
        lines.append(_fitted(" ".join(words[:fitting]), font, width))
        words = words[fitting:]
    return [*lines, _fitted(" ".join(words), font, width)] if words else lines


def _fitted(line: str, font: Font, width: int) -> str:
    if font.getlength(line) <= width:
        return line
    while line and font.getlength(f"{line}…") > width:
        line = line[:-1]
    return f"{line}…"
