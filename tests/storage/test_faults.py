"""What is said while S3 is waited for."""

import logging
from concurrent.futures import ThreadPoolExecutor

import pytest
import tenacity

from nanobanana_pipeline.errors import StorageUnavailable
from nanobanana_pipeline.storage import ObjectStore, faults
from tests.provider.servers import free_port
from tests.s3_proxy import Refusal, S3Proxy
from tests.storage.test_store import SECRET, client_at


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Say it after the second try, and as if nothing had been said before."""
    monkeypatch.setattr(faults, "TELL_AFTER_SECONDS", 0.1)
    monkeypatch.setattr(faults._waiting, "_told", float("-inf"))
    monkeypatch.setattr(ObjectStore.get.retry, "stop", tenacity.stop_after_attempt(4))


def test_a_wrong_endpoint_is_named_early_and_once_however_many_ask(
    caplog: pytest.LogCaptureFixture,
) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    store = ObjectStore(client_at(url), "bucket")

    def ask(number: int) -> None:
        with pytest.raises(StorageUnavailable):
            store.get(f"key-{number}")

    with caplog.at_level(logging.WARNING), ThreadPoolExecutor(4) as pool:
        list(pool.map(ask, range(4)))
    [said] = [record.getMessage() for record in caplog.records]
    assert said.startswith("waiting for S3, at most 60 s: could not read s3://bucket/key-")
    assert url in said
    assert "correct AWS_ENDPOINT_URL_S3" in said
    assert SECRET not in said


def test_a_server_that_answers_is_not_taken_for_a_wrong_endpoint(
    s3_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with S3Proxy(s3_url) as proxy, caplog.at_level(logging.WARNING):
        proxy.rule = lambda _method, _path: Refusal(503, "SlowDown")
        with pytest.raises(StorageUnavailable):
            ObjectStore(client_at(proxy.url), "bucket").get("key")
    [said] = [record.getMessage() for record in caplog.records]
    assert "SlowDown" in said
    assert "AWS_ENDPOINT_URL_S3" not in said


def test_what_is_over_soon_is_not_said(
    s3_url: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faults, "TELL_AFTER_SECONDS", 60.0)
    with S3Proxy(s3_url) as proxy, caplog.at_level(logging.WARNING):
        proxy.rule = lambda _method, _path: Refusal(503, "SlowDown")
        with pytest.raises(StorageUnavailable):
            ObjectStore(client_at(proxy.url), "bucket").get("key")
    assert not caplog.records
