"""S3 behind a proxy that can be told to fail, and an engine that does not wait long."""

from collections.abc import Iterator

import pytest

from nanobanana_pipeline.generation import buy, engine
from tests.s3_proxy import S3Proxy


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buy, "MAX_BACKOFF_SECONDS", 0.05)
    monkeypatch.setattr(buy, "OTHERS_CLAIM_POLL_SECONDS", 0.3)
    monkeypatch.setattr(engine, "STUCK_POLL_SECONDS", 0.2)


@pytest.fixture
def proxy(s3_url: str) -> Iterator[S3Proxy]:
    with S3Proxy(s3_url) as proxy:
        yield proxy
