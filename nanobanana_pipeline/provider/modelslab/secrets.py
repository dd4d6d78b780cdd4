"""Strikes secrets out of the vendor's answers."""

import json
from collections.abc import Iterator

__all__ = ["mask"]


def mask(body: bytes, *secrets: str) -> bytes:
    """Strike secrets out of an answer: one that quotes them must not carry them into any log."""
    for secret in secrets:
        for spelling in _spellings(secret):
            body = body.replace(spelling, b"***")
    return body


def _spellings(secret: str) -> Iterator[bytes]:
    """How JSON may write a secret: as it is, with escapes, with escaped slashes as PHP does."""
    for text in (secret, json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1]):
        yield text.encode()
        yield text.replace("/", "\\/").encode()
