"""What a picture says of its own making: which marks of provenance its bytes bear.

Marks are found, not believed: no signature is checked. Each is looked for where its format has it:

- ``c2pa``: a C2PA manifest store. PNG chunk ``caBX``, JPEG APP11 segments with a JUMBF superbox of
  C2PA's type or label, WebP chunk ``C2PA`` (C2PA specification, "Embedding manifests into assets").
- ``xmp``: an XMP packet. PNG iTXt chunk ``XML:com.adobe.xmp``, JPEG APP1 segment (Adobe's XMP
  specification, part 3, "Embedding XMP metadata"), WebP chunk ``XMP `` (RFC 9649, 2.7).
- ``iptc``: an IPTC IIM record. JPEG APP13 segment with Photoshop's image resource 0x0404 (Adobe
  Photoshop File Formats, "Image resource blocks"), PNG text chunk ``Raw profile type iptc``
  (ImageMagick's way; ExifTool's list of PNG TextualData tags names it).
- ``trained_algorithmic_media``: one of them names the digital source type of pictures that a model
  has drawn (IPTC NewsCodes, ``http://cv.iptc.org/newscodes/digitalsourcetype/``).
"""

import re
import zlib
from collections import defaultdict
from collections.abc import Iterator
from typing import Final

from nanobanana_pipeline.images.containers import jpeg_segments, png_chunks, webp_chunks

__all__ = ["provenance_marks"]

C2PA, XMP, IPTC = "c2pa", "xmp", "iptc"
TRAINED: Final = "trained_algorithmic_media"

SOURCE_TYPE: Final = re.compile(
    rb"[dD]igital[sS]ource[tT]ype(?:[^A-Za-z]|rdf:resource){0,40}w?trainedAlgorithmicMedia"
)
"""The property or the vocabulary, then the term: in an address, XML, JSON, or CBOR, which writes
the term's length as ``w``. ``compositeWithTrainedAlgorithmicMedia`` is another term."""

PNG_XMP: Final = b"XML:com.adobe.xmp"
PNG_IPTC: Final = b"Raw profile type iptc"
PNG_TEXTS: Final = frozenset({b"tEXt", b"zTXt", b"iTXt"})
MOST_UNPACKED: Final = 4 * 2**20
"""Bytes of one picture's compressed texts that are looked at: a few may unfold without end."""
JPEG_XMP: Final = b"http://ns.adobe.com/xap/1.0/\0"
PHOTOSHOP: Final = b"Photoshop 3.0\0"
IPTC_RESOURCE: Final = 0x0404
APP1, APP11, APP13 = 0xE1, 0xEB, 0xED
JUMBF: Final = b"JP"
C2PA_TYPE: Final = bytes.fromhex("63327061 0011 0010 8000 00aa00389b71")
C2PA_LABEL: Final = b"c2pa\0"
JUMBF_SEGMENT_HEADER: Final = 8
BOX_HEADER: Final = 8
LONG_BOX_HEADER: Final = 16
LABEL_IN_DESCRIPTION: Final = 17
WEBP_MARKS: Final = {b"C2PA": C2PA, b"XMP ": XMP}

Found = Iterator[tuple[str, bytes]]
"""A mark, and the bytes that may name the digital source type."""


def provenance_marks(image_format: str, data: bytes) -> tuple[str, ...]:
    """The marks that a picture (``png``, ``jpg`` or ``webp``) bears, sorted.

    Never raises, and takes time in proportion to the file.
    """
    marks = set()
    for mark, packet in FORMAT_READERS[image_format](data):
        marks.add(mark)
        if SOURCE_TYPE.search(packet):
            marks.add(TRAINED)
    return tuple(sorted(marks))


def _in_png(data: bytes) -> Found:
    left = MOST_UNPACKED
    for kind, content in png_chunks(data):
        if kind == b"caBX":
            yield C2PA, bytes(content)
        elif kind in PNG_TEXTS:
            keyword, _, rest = bytes(content).partition(b"\0")
            if keyword == PNG_IPTC or (keyword, kind) == (PNG_XMP, b"iTXt"):
                text = _png_text(kind, rest, left)
                left -= len(text)
                yield (XMP, text) if keyword == PNG_XMP else (IPTC, _raw_profile(text))


def _png_text(kind: bytes, rest: bytes, most: int) -> bytes:
    """What follows the keyword of a PNG's text chunk, unpacked (W3C PNG, 11.3.3)."""
    packed = kind == b"zTXt"
    if kind == b"iTXt":
        packed = rest[:1] == b"\x01"
        # Flag and method, then language and translated keyword, each up to its zero.
        rest = rest[2:].partition(b"\0")[2].partition(b"\0")[2]
    elif packed:
        rest = rest[1:]
    if not packed:
        return rest
    try:
        return zlib.decompressobj().decompress(rest, most) if most > 0 else b""
    except zlib.error:
        return b""


def _raw_profile(text: bytes) -> bytes:
    """ImageMagick's profiles: a name, a length, and the bytes in hexadecimal digits."""
    try:
        return bytes.fromhex(text.split(maxsplit=2)[2].decode("ascii"))
    except (ValueError, IndexError):
        return b""


def _in_jpeg(data: bytes) -> Found:
    boxes: dict[bytes, dict[bytes, bytes]] = defaultdict(dict)
    resources = []
    for marker, view in jpeg_segments(data):
        if marker not in {APP1, APP11, APP13}:
            continue
        content = bytes(view)
        if marker == APP1 and content.startswith(JPEG_XMP):
            yield XMP, content[len(JPEG_XMP) :]
        elif marker == APP13 and content.startswith(PHOTOSHOP):
            resources.append(content[len(PHOTOSHOP) :])
        elif marker == APP11 and content.startswith(JUMBF):
            # Segments of one box have its instance number, and each repeats the box's own header.
            part = content[JUMBF_SEGMENT_HEADER:]
            boxes[content[2:4] + part[: _header_bytes(part)]][content[4:8]] = part
    for parts in boxes.values():
        first, *others = (part for _, part in sorted(parts.items()))
        if _is_c2pa(first):
            yield C2PA, first + b"".join(part[_header_bytes(part) :] for part in others)
    for number, content in _resources(b"".join(resources)):
        if number == IPTC_RESOURCE:
            yield IPTC, content


def _header_bytes(box: bytes) -> int:
    return LONG_BOX_HEADER if box[:4] == b"\0\0\0\x01" else BOX_HEADER


def _is_c2pa(box: bytes) -> bool:
    """Whether a JUMBF superbox's description is that of a C2PA store (ISO/IEC 19566-5, A and D).

    A description is a UUID for the type, a byte of toggles, and the label up to a zero.
    """
    inside = box[_header_bytes(box) :]
    description = inside[_header_bytes(inside) :]
    labelled = description.startswith(C2PA_LABEL, LABEL_IN_DESCRIPTION)
    ours = labelled or description.startswith(C2PA_TYPE)
    return ours and (box[4:8], inside[4:8]) == (b"jumb", b"jumd")


def _resources(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Photoshop's image resources: ``8BIM``, number, name, length, content; all padded to even."""
    at = 0
    while data[at : at + 4] == b"8BIM" and at + 7 <= len(data):
        number = int.from_bytes(data[at + 4 : at + 6])
        name = 1 + data[at + 6]
        at += 6 + name + name % 2
        length = int.from_bytes(data[at : at + 4])
        yield number, data[at + 4 : at + 4 + length]
        at += 4 + length + length % 2


def _in_webp(data: bytes) -> Found:
    for kind, content in webp_chunks(data):
        if kind in WEBP_MARKS:
            yield WEBP_MARKS[kind], bytes(content)


FORMAT_READERS: Final = {"png": _in_png, "jpg": _in_jpeg, "webp": _in_webp}
