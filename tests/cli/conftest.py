"""The commands in this process, against a real bucket and an emulator."""

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from nanobanana_pipeline.cli import app
from nanobanana_pipeline.emulator import EmulatorThread
from nanobanana_pipeline.storage import ObjectStore
from tests.conftest import API_KEY, Emulators

Command = Callable[..., Result]


@pytest.fixture
def emulator(emulators: Emulators) -> EmulatorThread:
    return emulators()


@pytest.fixture
def nanobanana(
    store: ObjectStore, emulator: EmulatorThread, monkeypatch: pytest.MonkeyPatch
) -> Command:
    """Runs a command with a user's environment."""
    monkeypatch.setenv("NANOBANANA_API_KEY", API_KEY)
    monkeypatch.setenv("NANOBANANA_BASE_URL", emulator.base_url)
    monkeypatch.setenv("NANOBANANA_BUCKET", store.bucket)
    monkeypatch.setenv("NANOBANANA_PREFIX", store.prefix.rstrip("/"))
    monkeypatch.setenv("NANOBANANA_ALLOWED_HOSTS", "127.0.0.1")
    return lambda *args: CliRunner().invoke(app, [str(arg) for arg in args])


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "animals.csv"
    path.write_text("id,Prompt,width,height\n1,a fox,1024,1024\n2,a whale,1024,1024\n")
    return path
