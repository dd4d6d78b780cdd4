"""Real parts: one SeaweedFS a session, one fresh prefix a test, emulators on call."""

import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from nanobanana_pipeline import local
from nanobanana_pipeline.emulator import EmulatorConfig, EmulatorThread
from nanobanana_pipeline.provider.account import Account
from nanobanana_pipeline.settings import Settings
from nanobanana_pipeline.storage import ObjectStore, s3_client

API_KEY = "test-key-9f1c-must-stay-secret"
"""Tests look for this everywhere it must not be."""

Emulators = Callable[..., EmulatorThread]


@pytest.fixture(scope="session", autouse=True)
def _clean_environment() -> Iterator[None]:
    """No setting or cloud account of whoever runs the tests may leak in."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(("NANOBANANA_", "AWS_", "DAGSTER_", "OPENLINEAGE_", "OTEL_")):
                patch.delenv(name)
        yield


@pytest.fixture(scope="session")
def s3_url(tmp_path_factory: pytest.TempPathFactory, _clean_environment: None) -> Iterator[str]:
    """A real S3 server, and the environment that boto3 needs to find it."""
    with (
        local.s3_server(tmp_path_factory.mktemp("s3")) as url,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in local.s3_environment(url).items():
            patch.setenv(name, value)
        yield url


@pytest.fixture
def store(s3_url: str) -> ObjectStore:
    """An empty bucket, as far as a test can see."""
    assert s3_url
    return ObjectStore(s3_client(), local.BUCKET, f"test-{uuid.uuid4().hex}")


@pytest.fixture
def emulators() -> Iterator[Emulators]:
    """Starts emulators that end with the test: `emulators(latency_seconds=(0.1, 0.2), cap=5)`."""
    with ExitStack() as stack:

        def start(**config: object) -> EmulatorThread:
            return stack.enter_context(
                EmulatorThread(EmulatorConfig.model_validate({"latency_seconds": (0, 0), **config}))
            )

        yield start


def settings_for(base_url: str, store: ObjectStore, **more: object) -> Settings:
    """Settings as a user would have them for this provider and bucket."""
    return Settings.load(
        api_key=API_KEY,
        base_url=base_url,
        bucket=store.bucket,
        prefix=store.prefix.rstrip("/"),
        allowed_hosts=("127.0.0.1",),
        **more,
    )


def account_for(base_url: str, store: ObjectStore, **more: object) -> Account:
    """An account at this provider."""
    return Account.open(settings_for(base_url, store, **more))
