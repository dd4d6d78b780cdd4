"""The frozen bucket of version 0.1.0 in S3: one to read, and a copy for each test that writes."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from typer.testing import CliRunner, Result

from nanobanana_pipeline.cli import app
from nanobanana_pipeline.emulator import EmulatorThread
from nanobanana_pipeline.storage import ObjectStore, bucket, s3_client
from tests.conftest import API_KEY, Emulators
from tests.later import later
from tests.stored.frozen import DATA, FrozenBucket

Command = Callable[..., Result]

WRITTEN = datetime(2026, 11, 30, 20, 34, tzinfo=UTC)
"""When the archive was made; S3 takes all its objects for new ones."""


@pytest.fixture(scope="session")
def frozen() -> FrozenBucket:
    return FrozenBucket.read(DATA / "bucket-0.1.0.tar.gz")


@pytest.fixture(scope="session")
def held(s3_url: str, frozen: FrozenBucket) -> ObjectStore:
    """The bucket as it was, under its own name, since manifests hold addresses; to be read only."""
    assert s3_url
    store = ObjectStore(s3_client(), "held")
    store.client.create_bucket(Bucket=store.bucket)
    return frozen.load(store)


@pytest.fixture
def copy(store: ObjectStore, frozen: FrozenBucket) -> ObjectStore:
    """A copy that may be written to."""
    return frozen.load(store)


@pytest.fixture
def emulator(emulators: Emulators) -> EmulatorThread:
    return emulators(image_format="webp")


def command(
    store: ObjectStore, emulator: EmulatorThread, monkeypatch: pytest.MonkeyPatch
) -> Command:
    monkeypatch.setenv("NANOBANANA_API_KEY", API_KEY)
    monkeypatch.setenv("NANOBANANA_BASE_URL", emulator.base_url)
    monkeypatch.setenv("NANOBANANA_ALLOWED_HOSTS", "127.0.0.1")
    monkeypatch.setenv("NANOBANANA_PRICE_PER_IMAGE", "0.04")
    monkeypatch.setenv("NANOBANANA_BUCKET", store.bucket)
    monkeypatch.setenv("NANOBANANA_PREFIX", store.prefix.rstrip("/"))
    return lambda *args: CliRunner().invoke(app, [str(arg) for arg in args])


@pytest.fixture
def reading(
    held: ObjectStore, emulator: EmulatorThread, monkeypatch: pytest.MonkeyPatch
) -> Command:
    """Runs a command on the bucket as it was."""
    return command(held, emulator, monkeypatch)


@pytest.fixture
def writing(
    copy: ObjectStore, emulator: EmulatorThread, monkeypatch: pytest.MonkeyPatch
) -> Command:
    """Runs a command on the copy, at a time when the killed run has been silent for long."""
    age = max(datetime.now(UTC) - WRITTEN, timedelta()) + timedelta(minutes=16)
    monkeypatch.setattr(bucket, "ObjectStore", lambda *_: later(copy, age))
    return command(copy, emulator, monkeypatch)
