"""Faults that moods put into images: into their bytes, and into the answers that carry them."""

import functools
import io
import struct
import zlib
from collections.abc import AsyncIterator, Callable, Mapping

from PIL import Image
from starlette.responses import HTMLResponse, RedirectResponse, Response, StreamingResponse

from nanobanana_pipeline.emulator import answers

OVERSIZED_BYTES = 96 * 2**20
_HTML = b"<!DOCTYPE html><html><body><h1>One moment, please</h1></body></html>"
_LESS = 32  # pixels of each side
_WRONG_SIZE = (512, 512)
_BOMB_SIDE = 40_000
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_AFTER_HEADER = len(_SIGNATURE) + 25  # the chunk IHDR
_PIECE = bytes(2**20)


def _encoded(picture: Image.Image, image_format: str) -> bytes:
    out = io.BytesIO()
    picture.convert("RGB").save(out, image_format)
    return out.getvalue()


def _wrong_size(image: bytes) -> bytes:
    picture = Image.open(io.BytesIO(image))
    return _encoded(picture.resize(_WRONG_SIZE), str(picture.format))


def _smaller(image: bytes) -> bytes:
    picture = Image.open(io.BytesIO(image))
    sides = (picture.width - _LESS, picture.height - _LESS)
    return _encoded(picture.resize(sides), str(picture.format))


def _avif(image: bytes) -> bytes:
    out = io.BytesIO()
    Image.open(io.BytesIO(image)).convert("RGB").save(out, "AVIF", speed=10)
    return out.getvalue()


def _lie(image: bytes) -> bytes:
    """Encode as another type than the name promises."""
    picture = Image.open(io.BytesIO(image))
    return _encoded(picture, "PNG" if picture.format == "JPEG" else "JPEG")


def _corrupt(image: bytes) -> bytes:
    """Flip a byte in the middle: of a PNG's chunk, whose CRC then fails, or of the scan data."""
    middle = len(image) // 2
    return image[:middle] + bytes([image[middle] ^ 0x55]) + image[middle + 1 :]


def _chunk(name: bytes, content: bytes) -> bytes:
    check = struct.pack(">I", zlib.crc32(name + content))
    return struct.pack(">I", len(content)) + name + content + check


@functools.cache
def _bomb() -> bytes:
    """Make a small PNG that unpacks to 200 MB of black."""
    rows = zlib.compressobj(1)
    row = bytes(1 + _BOMB_SIDE // 8)
    pixels = b"".join(rows.compress(row) for _ in range(_BOMB_SIDE)) + rows.flush()
    header = struct.pack(">IIBBBBB", _BOMB_SIDE, _BOMB_SIDE, 1, 0, 0, 0, 0)
    return _SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", pixels) + _chunk(b"IEND", b"")


def _box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", 8 + len(content)) + kind + content


def _marked(image: bytes) -> bytes:
    """Put in a mark of provenance, where C2PA has its own: a manifest store with nothing in it."""
    if image.startswith(_SIGNATURE):
        return image[:_AFTER_HEADER] + _chunk(b"caBX", _C2PA_STORE) + image[_AFTER_HEADER:]
    if image.startswith(b"\xff\xd8"):
        # JPEG XT: the box's instance number, and which of its segments this is, from 1.
        segment = b"JP" + struct.pack(">HI", 1, 1) + _C2PA_STORE
        length = struct.pack(">H", len(segment) + 2)
        return image[:2] + b"\xff\xeb" + length + segment + image[2:]
    return image


# A JUMBF superbox that holds its description alone (ISO/IEC 19566-5): C2PA's type, the toggles
# "requestable" and "has a label", the label.
_C2PA_TYPE = bytes.fromhex("63327061 0011 0010 8000 00aa00389b71")
_C2PA_STORE = _box(b"jumb", _box(b"jumd", _C2PA_TYPE + b"\x03" + b"c2pa\0"))


# Each mood of Stage.BYTES: however the picture is delivered, its bytes are these.
SPOILT: Mapping[str, Callable[[bytes], bytes]] = {
    "wrong_size": _wrong_size,
    "smaller_size": _smaller,
    "avif": _avif,
    "picture_html": lambda _: _HTML,
    "picture_cut": lambda image: image[: len(image) // 2],
    "lying_extension": _lie,
    "corrupt_chunk": _corrupt,
    "provenance": _marked,
    "image_bomb": lambda _: _bomb(),
}


def _placeholder(_: Response, __: str) -> Response:
    return HTMLResponse(_HTML)


def _half(answer: Response, _: str) -> Response:
    body = bytes(answer.body)  # its Content-Length fits: only the bytes tell
    return Response(body[: len(body) // 2], media_type=answer.media_type)


# Each mood of Stage.IMAGE: the first GET of a picture is answered so, and the next ones well.
ONCE: Mapping[str, Callable[[Response, str], Response]] = {
    "image_404": lambda _, __: answers.not_found(),
    "image_html": _placeholder,
    "image_empty": lambda answer, _: Response(b"", media_type=answer.media_type),
    "truncated_image": _half,
}


def _oversized(answer: Response, _: str) -> Response:
    image = bytes(answer.body)

    async def endless() -> AsyncIterator[bytes]:
        yield image
        for _ in range(OVERSIZED_BYTES // len(_PIECE)):
            yield _PIECE

    return StreamingResponse(endless(), media_type=answer.media_type)


# Each mood of Stage.LINK: every GET of a picture is answered so.
ALWAYS: Mapping[str, Callable[[Response, str], Response]] = {
    "expired_link": lambda _, __: answers.not_found(),
    "image_redirect_private": lambda _, __: RedirectResponse("http://169.254.169.254/latest/", 302),
    "image_redirect": lambda answer, url: (
        answer if url.endswith("?moved") else RedirectResponse(f"{url}?moved", 302)
    ),
    "oversized": _oversized,
    "text_plain": lambda answer, _: Response(bytes(answer.body), media_type="text/plain"),
}
