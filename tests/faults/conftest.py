"""S3 behind a proxy that can be told to fail, and an engine that does not wait long."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from nanobanana_pipeline.generation.engine import engine, submit
from tests.s3_proxy import S3Proxy


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit, "MAX_BACKOFF_SECONDS", 0.05)
    monkeypatch.setattr(submit, "OTHERS_CLAIM_POLL_SECONDS", 0.3)
    monkeypatch.setattr(engine, "STUCK_POLL_SECONDS", 0.2)


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
