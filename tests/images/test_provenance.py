"""Marks of provenance are found where each format has them, and nowhere else."""

import io
import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from nanobanana_pipeline.emulator.image_faults import SPOILT
from nanobanana_pipeline.images.inspect import inspect
from nanobanana_pipeline.images.provenance import provenance_marks

TERM = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
TRAINED = "trained_algorithmic_media"
PLAIN = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF/></x:xmpmeta>'


def xmp(source_type: str) -> bytes:
    return PLAIN.replace("<rdf:RDF/>", f"<rdf:RDF>{source_type}</rdf:RDF>").encode()


def saved(kind: str) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (24, 16), "red").save(out, kind)
    return out.getvalue()


def in_png(kind: bytes, content: bytes, *, at_end: bool = False) -> bytes:
    data = saved("PNG")
    chunk = struct.pack(">I", len(content)) + kind + content
    chunk += struct.pack(">I", zlib.crc32(kind + content))
    place = -12 if at_end else 33
    return data[:place] + chunk + data[place:]


def in_jpeg(*segments: tuple[int, bytes]) -> bytes:
    data = saved("JPEG")
    parts = [
        struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content
        for marker, content in segments
    ]
    return data[:2] + b"".join(parts) + data[2:]


def in_webp(kind: bytes, content: bytes) -> bytes:
    """An extended WebP (RFC 9649, 2.7) with one more chunk behind the picture."""
    flags = {b"XMP ": 4}.get(kind, 0)
    header = struct.pack("<4sIB3x3s3s", b"VP8X", 10, flags, b"\x17\0\0", b"\x0f\0\0")
    padded = content + b"\0" * (len(content) % 2)
    body = b"WEBP" + header + saved("WEBP")[12:]
    body += struct.pack("<4sI", kind, len(content)) + padded
    return struct.pack("<4sI", b"RIFF", len(body)) + body


def itxt(text: bytes, *, keyword: bytes = b"XML:com.adobe.xmp", packed: bool = False) -> bytes:
    body = zlib.compress(text) if packed else text
    return keyword + b"\0" + bytes([packed, 0]) + b"en\0translated\0" + body


def box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content) + 8) + kind + content


def store(content: bytes = b"", label: bytes = b"c2pa") -> bytes:
    """A JUMBF superbox with C2PA's description, and content."""
    of_type = label + bytes.fromhex("00110010800000aa00389b71")
    return box(b"jumb", box(b"jumd", of_type + b"\x03" + label + b"\0") + box(b"cbor", content))


def jumbf(data: bytes, *, instance: int = 1, piece: int = 60_000) -> list[tuple[int, bytes]]:
    """A box in APP11 segments, as ISO/IEC 19566-5, D.2 parts it."""
    header, rest = data[:8], data[8:]
    pieces = [rest[at : at + piece] for at in range(0, len(rest), piece)]
    return [
        (0xEB, b"JP" + struct.pack(">HI", instance, number) + header + part)
        for number, part in enumerate(pieces, 1)
    ]


def photoshop(*resources: tuple[int, bytes, bytes]) -> bytes:
    parts = []
    for number, name, content in resources:
        named = bytes([len(name)]) + name
        named += b"\0" * (len(named) % 2)
        padded = content + b"\0" * (len(content) % 2)
        parts.append(b"8BIM" + struct.pack(">H", number) + named)
        parts.append(struct.pack(">I", len(content)) + padded)
    return b"".join(parts)


IPTC = photoshop((0x03ED, b"odd", b"123"), (0x0404, b"", b"\x1c\x02\x78\0\x05a cat"))
JPEG_XMP = b"http://ns.adobe.com/xap/1.0/\0"
RAW = b"Raw profile type iptc"
PROFILE = b"\niptc\n      %d\n%s\n" % (len(IPTC), IPTC.hex().encode())
CBOR = b"\xa1\x71digitalSourceType\x78\x46" + TERM.encode() + b"\x64when"
CASES = {
    "png, nothing": (saved("PNG"), ()),
    "jpg, nothing": (saved("JPEG"), ()),
    "webp, nothing": (saved("WEBP"), ()),
    "png, c2pa": (in_png(b"caBX", store()), ("c2pa",)),
    "png, c2pa, drawn": (in_png(b"caBX", store(CBOR)), ("c2pa", TRAINED)),
    "png, c2pa behind the pixels": (in_png(b"caBX", store(), at_end=True), ("c2pa",)),
    "png, xmp": (in_png(b"iTXt", itxt(PLAIN.encode())), ("xmp",)),
    "png, xmp packed": (in_png(b"iTXt", itxt(xmp(TERM), packed=True)), (TRAINED, "xmp")),
    "png, xmp in a plain text is none": (in_png(b"tEXt", b"XML:com.adobe.xmp\0" + xmp(TERM)), ()),
    "png, iptc": (in_png(b"tEXt", RAW + b"\0" + PROFILE), ("iptc",)),
    "png, iptc packed": (in_png(b"zTXt", RAW + b"\0\0" + zlib.compress(PROFILE)), ("iptc",)),
    "png, iptc without digits": (in_png(b"tEXt", RAW + b"\0no digits"), ("iptc",)),
    "png, iptc torn": (in_png(b"zTXt", RAW + b"\0\0" + b"no zlib"), ("iptc",)),
    "png, other text": (in_png(b"tEXt", b"parameters\0" + TERM.encode()), ()),
    "jpg, c2pa": (in_jpeg(*jumbf(store())), ("c2pa",)),
    "jpg, c2pa in many parts, the word across two": (
        in_jpeg(*jumbf(store(b"x" * 200_000 + CBOR + b"y" * 90_000), piece=50_037)),
        ("c2pa", TRAINED),
    ),
    "jpg, c2pa after other boxes": (
        in_jpeg(*jumbf(store(label=b"jpg1")), *jumbf(store(CBOR), instance=2)),
        ("c2pa", TRAINED),
    ),
    "jpg, c2pa of the same number as another box": (
        in_jpeg(*jumbf(store(b"12345", label=b"jpg1")), *jumbf(store(b"1"))),
        ("c2pa",),
    ),
    "jpg, another box": (in_jpeg(*jumbf(store(CBOR, label=b"jpg1"))), ()),
    "jpg, app11 of another kind": (in_jpeg((0xEB, b"HDR_RI" + store(CBOR))), ()),
    "jpg, c2pa's word in a comment": (in_jpeg((0xFE, store(CBOR))), ()),
    "jpg, xmp": (in_jpeg((0xE1, JPEG_XMP + xmp(TERM))), (TRAINED, "xmp")),
    "jpg, exif": (in_jpeg((0xE1, b"Exif\0\0" + xmp(TERM))), ()),
    "jpg, iptc": (in_jpeg((0xED, b"Photoshop 3.0\0" + IPTC)), ("iptc",)),
    "jpg, iptc in two parts": (
        in_jpeg((0xED, b"Photoshop 3.0\0" + IPTC[:30]), (0xED, b"Photoshop 3.0\0" + IPTC[30:])),
        ("iptc",),
    ),
    "jpg, other resources": (
        in_jpeg((0xED, b"Photoshop 3.0\0" + photoshop((0x040F, b"", IPTC)))),
        (),
    ),
    "jpg, all": (
        in_jpeg(
            (0xE1, JPEG_XMP + PLAIN.encode()),
            *jumbf(store()),
            (0xED, b"Photoshop 3.0\0" + IPTC),
        ),
        ("c2pa", "iptc", "xmp"),
    ),
    "jpg, behind the end": (saved("JPEG") + in_jpeg(*jumbf(store())), ()),
    "webp, c2pa": (in_webp(b"C2PA", store(CBOR)), ("c2pa", TRAINED)),
    "webp, xmp": (in_webp(b"XMP ", xmp(TERM)), (TRAINED, "xmp")),
    "webp, another chunk": (in_webp(b"JUNK", xmp(TERM)), ()),
    "webp, behind the end": (saved("WEBP") + b"C2PA\x04\0\0\0abcd", ()),
}


@pytest.mark.parametrize(("data", "marks"), CASES.values(), ids=CASES)
def test_marks_are_found_where_the_format_has_them(data: bytes, marks: tuple[str, ...]) -> None:
    assert inspect(data).marks == marks


@pytest.mark.parametrize(
    ("source_type", "is_it"),
    [
        (f'<rdf:Description Iptc4xmpExt:DigitalSourceType="{TERM}"/>', True),
        (f"<Iptc4xmpExt:DigitalSourceType>\n {TERM}</Iptc4xmpExt:DigitalSourceType>", True),
        (f'<Iptc4xmpExt:DigitalSourceType rdf:resource="{TERM}"/>', True),
        ('<x Iptc4xmpExt:DigitalSourceType="trainedAlgorithmicMedia"/>', True),
        (TERM.replace("/trained", "/compositeWithTrained"), False),
        (TERM.replace("trainedAlgorithmicMedia", "digitalCapture"), False),
        ("<dc:description>no trainedAlgorithmicMedia at all</dc:description>", False),
    ],
)
def test_the_source_type_is_told_from_other_words(source_type: str, *, is_it: bool) -> None:
    found = inspect(in_webp(b"XMP ", xmp(source_type))).marks
    assert found == ((TRAINED, "xmp") if is_it else ("xmp",))


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_the_emulator_rehearses_them(kind: str) -> None:
    assert inspect(SPOILT["provenance"](saved(kind))).marks == ("c2pa",)


@pytest.mark.parametrize("name", CASES)
def test_what_is_cut_off_or_flipped_raises_nothing(name: str) -> None:
    data = CASES[name][0][:3_000]
    kind = name.partition(",")[0]
    for place in range(len(data)):
        provenance_marks(kind, data[:place])
        provenance_marks(kind, data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :])


STARTS = {"png": b"\x89PNG\r\n\x1a\n", "jpg": b"\xff\xd8\xff\xeb", "webp": b"RIFF\xff\xff\0\0WEBP"}


@given(st.sampled_from(sorted(STARTS)), st.binary(max_size=200))
def test_arbitrary_bytes_raise_nothing(kind: str, data: bytes) -> None:
    provenance_marks(kind, data)
    provenance_marks(kind, STARTS[kind] + data)


LARGE = 2**21
OPENING = b"digitalSourceType" + b" " * 40
TEXT = in_png(b"zTXt", RAW + b"\0\0" + zlib.compress(bytes(2**20)))[33:-12]
TIRING = {
    "segments": ("jpg", b"\xff\xd8" + b"\xff\xeb\0\x02" * (LARGE // 4), ()),
    "boxes": ("jpg", b"\xff\xd8" + (b"\xff\xeb\0\x14JP" + b"\0" * 16) * (LARGE // 22), ()),
    "chunks": ("png", STARTS["png"] + b"\0\0\0\0caBX\0\0\0\0" * (LARGE // 12), ("c2pa",)),
    "texts": ("png", STARTS["png"] + TEXT * (LARGE // len(TEXT)), ("iptc",)),
    "words": ("webp", in_webp(b"XMP ", OPENING * (LARGE // len(OPENING))), ("xmp",)),
    "resources": (
        "jpg",
        in_jpeg(*[(0xED, b"Photoshop 3.0\0" + photoshop((1, b"", b"")) * 4_000)] * 20),
        (),
    ),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("kind", "data", "marks"), TIRING.values(), ids=TIRING)
def test_no_bytes_make_the_walk_endless(kind: str, data: bytes, marks: tuple[str, ...]) -> None:
    assert provenance_marks(kind, data) == marks
