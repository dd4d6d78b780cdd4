"""Many pictures on one: what a partition looks like, at a glance."""

import io
import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

__all__ = ["contact_sheet"]

TILE = 256
CAPTION = 22
MARGIN = 8


def contact_sheet(pictures: Sequence[tuple[bytes, str]], *, columns: int = 6) -> bytes:
    """Lay pictures out in rows, each with a caption of one line.

    Args:
        pictures: encoded images, which are only read, and their captions.
        columns: most pictures a row.

    Returns:
        A PNG.

    Raises:
        ValueError: there are no pictures.
    """
    if not pictures:
        raise ValueError("a contact sheet needs at least one picture")
    columns = min(columns, len(pictures))
    rows = math.ceil(len(pictures) / columns)
    step_x, step_y = TILE + MARGIN, TILE + CAPTION + MARGIN
    sheet = Image.new("RGB", (columns * step_x + MARGIN, rows * step_y + MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=13)
    for number, (data, caption) in enumerate(pictures):
        x = MARGIN + number % columns * step_x
        y = MARGIN + number // columns * step_y
        with Image.open(io.BytesIO(data)) as image:
            image.draft("RGB", (TILE, TILE))
            tile = image.convert("RGB")
        tile.thumbnail((TILE, TILE))
        sheet.paste(tile, (x + (TILE - tile.width) // 2, y + (TILE - tile.height) // 2))
        draw.text((x, y + TILE + 3), _fitted(caption, font), fill="black", font=font)
    out = io.BytesIO()
    sheet.save(out, "PNG")
    return out.getvalue()


def _fitted(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> str:
    line = " ".join(text.split())
    if font.getlength(line) <= TILE:
        return line
    while line and font.getlength(f"{line}…") > TILE:
        line = line[:-1]
    return f"{line}…"
