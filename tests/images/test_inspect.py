"""Bytes are looked at, not believed; and what is no whole picture is never taken for one."""

import io
import random
import struct
import time
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from nanobanana_pipeline.errors import ImageBroken
from nanobanana_pipeline.images.inspect import ImageFacts, inspect

SIZE = (96, 64)
FORMATS = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp"}


def picture(kind: str, size: tuple[int, int] = SIZE, mode: str = "RGB", **options: object) -> bytes:
    noise = random.Random(7).randbytes(size[0] * size[1] * len(mode))  # noqa: S311 - pixels
    out = io.BytesIO()
    Image.frombytes(mode, size, noise).save(out, kind, **options)
    return out.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_of(width: int, height: int) -> bytes:
    """A small PNG that says that it is this large."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + header + data + chunk(b"IEND", b"")


def is_broken(data: bytes) -> bool:
    try:
        inspect(data)
    except ImageBroken:
        return True
    return False


# --- whole pictures ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FORMATS)
def test_a_whole_picture_passes_with_its_facts(kind: str) -> None:
    data = picture(kind)
    before = bytes(data)
    assert inspect(data, width=96, height=64) == ImageFacts(FORMATS[kind], 96, 64)
    assert data == before


@pytest.mark.parametrize(
    "data",
    [
        picture("PNG", mode="RGBA"),
        picture("PNG", mode="L"),
        picture("PNG", optimize=True),
        picture("JPEG", progressive=True),
        picture("JPEG", quality=100, subsampling=0, optimize=True),
        picture("JPEG", mode="L"),
        picture("JPEG", mode="CMYK"),
        picture("JPEG", comment=b"\xff\xd9 not the end", exif=b"Exif\0\0\xff\xd8\xff\xd9thumbnail"),
        picture("JPEG", restart_marker_blocks=1),
        picture("WEBP", lossless=True),
        picture("WEBP", mode="RGBA"),
    ],
)
def test_the_kinds_of_each_format_pass(data: bytes) -> None:
    facts = inspect(data, width=96, height=64)
    assert (facts.width, facts.height) == SIZE


def test_a_large_picture_passes_quickly() -> None:
    out = io.BytesIO()
    Image.linear_gradient("L").resize((2048, 2048)).convert("RGB").save(out, "JPEG", quality=95)
    began = time.monotonic()
    assert inspect(out.getvalue(), width=2048, height=2048).format == "jpg"
    assert time.monotonic() - began < 0.5


def test_a_jpeg_with_more_pictures_behind_it_is_a_jpeg() -> None:
    first, second = Image.new("RGB", SIZE, "red"), Image.new("RGB", SIZE, "blue")
    out = io.BytesIO()
    first.save(out, "MPO", save_all=True, append_images=[second])
    assert inspect(out.getvalue(), width=96, height=64) == ImageFacts("jpg", 96, 64)


def test_provenance_marks_do_not_disturb() -> None:
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", "<x:xmpmeta/>")
    data = picture("PNG", pnginfo=info)
    marked = data[:33] + chunk(b"caBX", b"jumb" * 100) + data[33:]
    assert inspect(marked).format == "png"


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("garbage", [b"\n", b"\x00" * 1000, b"<html>trailing</html>" * 10])
def test_what_follows_a_whole_picture_is_let_be(kind: str, garbage: bytes) -> None:
    assert inspect(picture(kind) + garbage).format == FORMATS[kind]


@pytest.mark.parametrize("kind", FORMATS)
def test_no_size_asked_for_accepts_any_and_half_a_size_checks_half(kind: str) -> None:
    data = picture(kind)
    inspect(data)
    inspect(data, width=96)
    inspect(data, height=64)
    with pytest.raises(ImageBroken, match="96×64 pixels, not 64×any as asked"):
        inspect(data, width=64)


# --- what is none --------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "height"), [(64, 96), (96, 96), (95, 64), (1024, 1024)])
@pytest.mark.parametrize("kind", FORMATS)
def test_another_size_than_asked_is_refused(kind: str, width: int, height: int) -> None:
    with pytest.raises(ImageBroken, match=f"96×64 pixels, not {width}×{height} as asked"):
        inspect(picture(kind), width=width, height=height)


def test_no_bytes_are_refused() -> None:
    with pytest.raises(ImageBroken, match="empty"):
        inspect(b"")


@pytest.mark.parametrize(
    "data",
    [
        b"<!DOCTYPE html><html><body>404</body></html>",
        b'{"status": "error"}',
        b"\x00",
        b"\xff\xd8\xff",
        b"\x89PNG\r\n\x1a\n",
        b"RIFF\x10\x00\x00\x00WEBPVP8 ",
        b"iVBORw0KGgoAAAANSUhEUgAA",
        bytes(10_000),
        *(picture(kind) for kind in ("GIF", "BMP", "TIFF", "PPM", "ICO")),
        b"%PDF-1.7",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    ],
    ids=lambda data: repr(data[:12]),
)
def test_what_is_no_png_jpeg_or_webp_is_refused(data: bytes) -> None:
    with pytest.raises(ImageBroken):
        inspect(data)


def test_a_page_instead_of_a_picture_is_quoted_in_short() -> None:
    with pytest.raises(ImageBroken, match="it starts with '<html>") as refused:
        inspect(b"<html>" + b"x" * 10_000)
    assert len(str(refused.value)) < 200


# --- damage --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FORMATS)
def test_a_picture_cut_off_anywhere_is_refused(kind: str) -> None:
    data = picture(kind)
    places = {*range(0, len(data), 97), *range(80), *range(len(data) - 80, len(data))}
    assert [place for place in sorted(places) if not is_broken(data[:place])] == []


def test_a_cut_off_jpeg_with_a_whole_thumbnail_is_refused() -> None:
    thumbnail = picture("JPEG", (16, 16))
    data = picture("JPEG", exif=b"Exif\0\0" + thumbnail)
    assert not is_broken(data)
    assert is_broken(data[: len(data) // 2])
    assert is_broken(data[:-2])


def test_any_flipped_byte_in_a_png_is_found_by_a_checksum() -> None:
    data = picture("PNG", (16, 16))
    for place in range(8, len(data)):
        flipped = bytearray(data)
        flipped[place] ^= 0x20
        assert is_broken(bytes(flipped)), place


def test_a_png_whose_chunk_is_missing_its_checksum_is_refused() -> None:
    data = picture("PNG")
    at = data.index(b"IDAT")
    length = int.from_bytes(data[at - 4 : at])
    end = at + 4 + length
    assert is_broken(data[:end] + b"\x00\x00\x00\x00" + data[end + 4 :])


@pytest.mark.parametrize("side", [8_001, 20_000, 2**31 - 1])
def test_a_decompression_bomb_is_refused_by_its_header(side: int) -> None:
    began = time.monotonic()
    with pytest.raises(ImageBroken):
        inspect(png_of(side, side))
    assert time.monotonic() - began < 0.5


def test_a_bomb_within_a_text_chunk_is_refused_or_let_be_quickly() -> None:
    data = picture("PNG")
    bomb = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(200 * 2**20), 9))
    began = time.monotonic()
    is_broken(data[:33] + bomb + data[33:])
    assert time.monotonic() - began < 2


def test_a_picture_without_pixels_is_refused() -> None:
    assert is_broken(png_of(0, 10))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0))
    assert is_broken(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IEND", b""))


WHOLE: dict[str, bytes] = {kind: picture(kind, (24, 16)) for kind in FORMATS}


@given(
    st.sampled_from(sorted(WHOLE)),
    st.lists(st.tuples(st.integers(0, 1500), st.integers(0, 255)), max_size=6),
    st.integers(0, 3000),
    st.binary(max_size=40),
)
def test_damaged_bytes_never_raise_anything_else(
    kind: str, changes: list[tuple[int, int]], length: int, tail: bytes
) -> None:
    data = bytearray(WHOLE[kind])
    for place, value in changes:
        data[place % len(data)] = value
    is_broken(bytes(data[: length or 1]) + tail)


STARTS = [b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"RIFF\xff\0\0\0WEBP"]


@given(st.sampled_from(STARTS), st.binary(max_size=200))
def test_arbitrary_bytes_are_refused(start: bytes, data: bytes) -> None:
    assert is_broken(start + data)
