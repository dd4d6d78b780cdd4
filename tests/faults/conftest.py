"""S3 behind a proxy that can be told to fail."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.s3_proxy import S3Proxy


def server_of(data: Path) -> int:
    """The process of the S3 server that keeps this folder."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it may end while it is looked at
            if f"-dir={data}\0".encode() in (process / "cmdline").read_bytes():
                return int(process.name)
    raise LookupError(f"no S3 server keeps {data}")


@pytest.fixture
def proxy(s3_url: str) -> Iterator[S3Proxy]:
    with S3Proxy(s3_url) as proxy:
        yield proxy
