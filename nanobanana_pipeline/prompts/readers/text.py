"""Files as UTF-8 text, or an error that says where a file stops being UTF-8."""

import codecs
import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Final, TextIO

from nanobanana_pipeline.errors import PromptTableError
from nanobanana_pipeline.prompts.readers.base import TableScan

__all__ = ["utf8_text"]

SCAN_BYTES: Final = 1 << 20


@contextmanager
def utf8_text(file: IO[bytes], scan: TableScan, newline: str) -> Iterator[TextIO]:
    """A file, from its beginning, as text without its byte order mark; the file stays open.

    Raises:
        PromptTableError: the file is not UTF-8.
    """
    text = io.TextIOWrapper(file, encoding="utf-8-sig", newline=newline)
    try:
        yield text
    except UnicodeDecodeError:
        raise _not_utf8(file, scan) from None
    finally:
        text.detach()


def _not_utf8(file: IO[bytes], scan: TableScan) -> PromptTableError:
    """Say where a file stops being UTF-8, which the error of a buffered reader does not know."""
    file.seek(0)
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset, lines, kept = 0, 1, b""
    while True:
        block = file.read(SCAN_BYTES)
        pending = kept + block
        try:
            decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            bad = pending[error.start]
            line = lines + pending[: error.start].count(b"\n")
            looks = "is UTF-16" if (offset, bad) in {(0, 0xFF), (0, 0xFE)} else "is not UTF-8"
            return scan.refusal(
                f"{looks} (byte 0x{bad:02X} at offset {offset + error.start:,}, line {line:,}): "
                "save it as UTF-8"
            )
        kept = decoder.getstate()[0]
        done = pending[: len(pending) - len(kept)]
        offset += len(done)
        lines += done.count(b"\n")
