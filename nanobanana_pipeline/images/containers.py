"""The parts that PNG, JPEG and WebP files are made of, as their bytes say.

Each walk is bounds-checked, takes time in proportion to the file, and never raises: where the
structure breaks off, so does the walk.
"""

import re
from collections.abc import Iterator
from typing import Final

__all__ = ["JPEG_END", "jpeg_segments", "png_chunks", "webp_chunks"]

PNG_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
PNG_END_KIND: Final = b"IEND"
PNG_CHUNK_FRAME: Final = 8
PNG_CHUNK_CHECKSUM: Final = 4
JPEG_MARKER: Final = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])", re.DOTALL)
"""Neither a stuffed zero nor a restart: those are part of the compressed pixels."""
JPEG_START: Final = 0xD8
JPEG_END: Final = 0xD9
JPEG_WITHOUT_LENGTH: Final = frozenset({0x01, JPEG_START, JPEG_END})
RIFF_HEADER: Final = 12
RIFF_CHUNK_FRAME: Final = 8


def png_chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """A PNG's chunks up to its end, with their types and contents (W3C PNG, third edition, 5.3)."""
    view = memoryview(data)
    at = len(PNG_SIGNATURE) if data.startswith(PNG_SIGNATURE) else len(data)
    while at + PNG_CHUNK_FRAME <= len(data):
        length = int.from_bytes(data[at : at + 4])
        start = at + PNG_CHUNK_FRAME
        kind = data[at + 4 : start]
        yield kind, view[start : start + length]
        if kind == PNG_END_KIND:
            return
        at = start + length + PNG_CHUNK_CHECKSUM


def jpeg_segments(data: bytes) -> Iterator[tuple[int, memoryview]]:
    """The first picture's segments, up to `JPEG_END`, each with its marker (ITU-T T.81, B.1.1).

    Markers without content have an empty one; compressed pixels are passed over.
    """
    view = memoryview(data)
    at = 0
    while found := JPEG_MARKER.search(data, at):
        marker, at = found[1][0], found.end()
        if marker in JPEG_WITHOUT_LENGTH:
            yield marker, view[at:at]
            if marker == JPEG_END:
                return
            continue
        length = int.from_bytes(data[at : at + 2])
        yield marker, view[at + 2 : max(at + 2, at + length)]
        at += length


def webp_chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """A WebP's chunks, each with its FourCC and content (RFC 9649, 2.3 and 2.4)."""
    view = memoryview(data)
    end = min(len(data), int.from_bytes(data[4:8], "little") + RIFF_CHUNK_FRAME)
    at = RIFF_HEADER if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else end
    while at + RIFF_CHUNK_FRAME <= end:
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        start = at + RIFF_CHUNK_FRAME
        yield data[at : at + 4], view[start : min(start + length, end)]
        at = start + length + length % 2
