"""Figures against an independent computation, and bytes that are no good picture."""

import hashlib
import io

import imagehash
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter
from scipy import ndimage

from nanobanana_pipeline.features.measure import Features, measure

SIDE = 256


def noise(side: int = SIDE) -> Image.Image:
    levels = np.random.default_rng(7).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return Image.fromarray(levels)


def landscape() -> Image.Image:
    """Smooth, with some shapes."""
    x, y = np.meshgrid(np.arange(512), np.arange(384))
    levels = np.stack([x // 2, y // 2, (x + y) // 4], axis=2).astype(np.uint8)
    picture = Image.fromarray(levels)
    ImageDraw.Draw(picture).ellipse((100, 80, 260, 300), fill=(230, 40, 10))
    return picture


def encoded(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def measured(data: bytes) -> Features:
    return measure(hashlib.sha256(data).hexdigest(), data)


def test_a_flat_grey_picture_has_neither_entropy_nor_edges() -> None:
    found = measured(encoded(Image.new("RGB", (SIDE, 128), (119, 119, 119))))
    assert (found.mean, found.entropy, found.sharpness, found.blank) == (119.0, 0.0, 0.0, True)
    assert (found.format, found.mode, found.width, found.height) == ("png", "RGB", SIDE, 128)
    assert found.error is None


@pytest.mark.parametrize("picture", [noise(), landscape()], ids=["noise", "landscape"])
def test_figures_are_those_of_an_independent_computation(picture: Image.Image) -> None:
    data = encoded(picture)
    found = measured(data)
    colours = np.asarray(picture, dtype=np.float64)
    grey = np.floor(colours @ [0.299, 0.587, 0.114] + 0.5)
    assert found.mean == pytest.approx(grey.mean(), abs=0.05)
    exact = np.asarray(picture.convert("L"))
    shares = np.bincount(exact.ravel(), minlength=256) / exact.size
    shares = shares[shares > 0]
    assert found.entropy == pytest.approx(-(shares * np.log2(shares)).sum())
    edges = ndimage.laplace(exact.astype(np.float64))[1:-1, 1:-1]
    assert found.sharpness == pytest.approx(edges.var())
    assert found.phash == str(imagehash.phash(Image.open(io.BytesIO(data))))
    assert found.blank is False
    assert found.size == len(data)


def test_noise_is_sharp_and_blurring_takes_it_away() -> None:
    sharp = measured(encoded(noise()))
    blurred = measured(encoded(noise().filter(ImageFilter.GaussianBlur(3))))
    assert sharp.entropy is not None
    assert sharp.entropy > 7
    assert sharp.sharpness is not None
    assert blurred.sharpness is not None
    assert sharp.sharpness > 100 * blurred.sharpness


def test_perceptual_hashes_are_near_for_what_looks_alike() -> None:
    original = measured(encoded(landscape()))
    again = measured(encoded(landscape(), "JPEG", quality=60))
    other = measured(encoded(landscape().rotate(180)))
    hashes = [imagehash.hex_to_hash(str(found.phash)) for found in (original, again, other)]
    assert len(str(original.phash)) == 16
    assert hashes[0] - hashes[1] <= 4
    assert hashes[0] - hashes[2] > 16


def test_blank_is_what_shows_nothing() -> None:
    black = Image.new("RGB", (SIDE, SIDE))
    ImageDraw.Draw(black).rectangle((0, 0, 20, 20), fill="white")
    assert measured(encoded(black)).blank is True
    # Equally bright, and yet two colours.
    halves = Image.new("RGB", (SIDE, SIDE), (200, 0, 0))
    halves.paste((0, 102, 0), (0, 0, SIDE, SIDE // 2))
    found = measured(encoded(halves))
    assert found.entropy == pytest.approx(0, abs=1)
    assert found.blank is False


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_every_format_is_measured(kind: str) -> None:
    found = measured(encoded(landscape(), kind))
    assert found.format == {"PNG": "png", "JPEG": "jpg", "WEBP": "webp"}[kind]
    assert (found.width, found.height, found.error) == (512, 384, None)
    assert found.thumbnail is not None
    with Image.open(io.BytesIO(found.thumbnail)) as thumbnail:
        assert (thumbnail.format, thumbnail.size) == ("WEBP", (128, 96))


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1"])
def test_modes_are_told_and_measured(mode: str) -> None:
    found = measured(encoded(landscape().convert(mode)))
    assert (found.mode, found.error) == (mode, None)


def test_transparency_is_left_out() -> None:
    seen = landscape()
    unseen = seen.copy()
    unseen.putalpha(0)
    plain, clear = measured(encoded(seen)), measured(encoded(unseen))
    assert (clear.mean, clear.sharpness, clear.phash) == (plain.mean, plain.sharpness, plain.phash)
    palette = seen.convert("P")
    assert measured(encoded(palette, transparency=bytes(range(256)))).error is None


def test_sixteen_bits_are_scaled_down() -> None:
    deep = Image.fromarray(np.full((64, 64), 0x8000, dtype=np.uint16))
    found = measured(encoded(deep))
    assert (found.mode, found.mean) == ("I;16", 128.0)


@pytest.mark.parametrize("size", [(1, 1), (2, 500), (500, 1)])
def test_the_smallest_pictures_have_no_edges(size: tuple[int, int]) -> None:
    found = measured(encoded(Image.new("RGB", size, "red")))
    assert (found.sharpness, found.error) == (0.0, None)


def test_what_cannot_be_decoded_has_a_reason_and_nothing_else() -> None:
    whole = encoded(noise())
    filter_broken = encoded(landscape(), "WEBP", lossless=True)
    middle = len(filter_broken) // 2
    garbled = filter_broken[:middle] + bytes(200) + filter_broken[middle + 200 :]
    for data, reason in [
        (b"", "empty"),
        (b"<html>", "not a PNG"),
        (whole[: len(whole) // 2], "damaged"),
        (garbled, "cannot be decoded"),
    ]:
        found = measured(data)
        assert reason in str(found.error)
        assert found == Features(hashlib.sha256(data).hexdigest(), error=found.error)


def test_bytes_under_another_name_are_not_measured() -> None:
    found = measure("0" * 64, encoded(noise(16)))
    assert "not its name" in str(found.error)
    assert found.mean is None


def test_the_same_bytes_give_the_same_figures() -> None:
    data = encoded(noise())
    assert measured(data) == measured(data)
