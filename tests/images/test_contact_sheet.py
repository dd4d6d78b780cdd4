"""Many pictures on one."""

import io

import numpy as np
import pytest
from PIL import Image, ImageFont

from nanobanana_pipeline.errors import ImageBroken
from nanobanana_pipeline.images.contact_sheet import caption, contact_sheet, shrunk, strip


def picture(colour: str, size: tuple[int, int] = (300, 200)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, colour).save(out, "PNG")
    return out.getvalue()


def noisy(seed: int) -> bytes:
    levels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(levels).resize((256, 256), Image.Resampling.NEAREST).save(out, "PNG")
    return out.getvalue()


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def test_pictures_lie_in_rows_with_their_captions_below() -> None:
    long = "a very long caption that goes on and on " * 5
    pictures = [(picture("red"), "short"), (picture("blue"), long), (picture("lime"), "")]
    sheet = opened(contact_sheet(pictures, columns=2, tile=128, image_format="WEBP"))
    assert sheet.format == "WEBP"
    rgb = sheet.convert("RGB")
    step_x, step_y = 128 + 8, (sheet.height - 8) // 2
    assert sheet.width == 2 * step_x + 8
    for x, y, channel in [(0, 0, 0), (1, 0, 2), (0, 1, 1)]:
        middle = rgb.getpixel((8 + x * step_x + 64, 8 + y * step_y + 64))
        assert isinstance(middle, tuple)
        assert middle.index(max(middle)) == channel

    def ink(x: int) -> int:
        """Dark pixels below a picture of the first row."""
        box = (8 + x * step_x, 8 + 128, 8 + x * step_x + 128, 8 + step_y)
        return sum(rgb.crop(box).convert("L").histogram()[:128])

    assert 0 < ink(0) < ink(1)
    # Captions stay below their own pictures: no ink between the columns.
    between = rgb.crop((step_x + 1, 140, step_x + 7, 8 + step_y)).convert("L")
    assert sum(between.histogram()[:128]) == 0


@pytest.mark.parametrize(
    ("prompt", "prompt_id", "said"),
    [
        ("a café – “São Paulo”,\nat dawn…", "p-1", "a cafe - “Sao Paulo”,\nat dawn..."),
        ("一只在雨中的猫", "cat-rain", "cat-rain"),
        ("Привет, мир", "p-1", "p-1"),
        ("a cat 😀", "p-1", "p-1"),
        ("猫", "猫-7", "?-7"),
    ],
)
def test_a_prompt_that_the_font_cannot_draw_is_named_by_its_id(
    prompt: str, prompt_id: str, said: str
) -> None:
    assert caption(prompt, prompt_id) == said
    assert caption(prompt, prompt_id, 7) == f"seed 7: {said}"
    font = ImageFont.load_default(size=13)
    box = bytes(font.getmask("\uffff"))
    assert not [letter for letter in said if letter != "\n" and bytes(font.getmask(letter)) == box]


def test_a_sheet_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        contact_sheet([])


def test_a_strip_shows_as_many_as_fit_and_as_large_as_fits() -> None:
    pictures = [noisy(seed) for seed in range(4)]
    size = {}
    for most in (20_000, 3_000, 700):
        row = strip(pictures, most)
        assert row is not None
        assert len(row) <= most
        size[most] = opened(row).size
    assert size[20_000] == (4 * 96, 96)
    width, height = size[3_000]
    assert width == 4 * height < 4 * 96
    width, height = size[700]
    assert width < 4 * height
    assert strip(pictures, 10) is None
    assert strip([], 700) is None


def test_a_picture_is_made_small_and_a_broken_one_is_named() -> None:
    small = opened(shrunk(picture("red", (300, 200)), 60))
    assert (small.format, small.size) == ("WEBP", (60, 40))
    # Not so small as to be made larger.
    assert opened(shrunk(picture("red", (30, 20)), 60)).size == (30, 20)
    for bytes_ in (b"no picture", noisy(1)[:-200]):
        with pytest.raises(ImageBroken, match="cannot be decoded"):
            shrunk(bytes_, 60)
