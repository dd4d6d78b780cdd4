"""`nanobanana webhooks serve`, as a user starts it."""

import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from pydantic import SecretStr
from typer.testing import CliRunner

from nanobanana_pipeline import local
from nanobanana_pipeline.cli import app
from nanobanana_pipeline.storage import ObjectStore
from nanobanana_pipeline.storage.bucket import claim_bucket
from nanobanana_pipeline.webhooks.inbox import Inbox, Webhooks
from tests.webhooks.serving import ATTEMPT, SECRET

PUBLIC = "https://hooks.example/in"


@pytest.fixture
def environment(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's settings: no API key among them."""
    monkeypatch.setenv("NANOBANANA_BASE_URL", "https://provider.example/")
    monkeypatch.setenv("NANOBANANA_REALM", "own")
    monkeypatch.setenv("NANOBANANA_BUCKET", store.bucket)
    monkeypatch.setenv("NANOBANANA_PREFIX", store.prefix.rstrip("/"))
    monkeypatch.setenv("NANOBANANA_WEBHOOK_URL", PUBLIC)
    monkeypatch.setenv("NANOBANANA_WEBHOOK_SECRET", SECRET)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "serve.log"


@pytest.fixture
def process(log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A receiver on a free port, logging all it logs."""
    program = Path(sys.executable).with_name("nanobanana")
    with local.child(
        "the receiver",
        [str(program), "--verbose", "webhooks", "serve", "--port", "0"],
        log=log,
        ready=lambda: "listening on" in log.read_text(),
    ) as started:
        yield started


def serve(*args: object) -> str:
    """Start it where it must not start, and give what it says."""
    result = CliRunner().invoke(app, ["webhooks", "serve", *map(str, args)])
    assert result.exit_code == 2
    return result.output


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_it_receives_until_it_is_told_to_stop_and_shows_no_secrets(
    how: signal.Signals, process: subprocess.Popen[bytes], log: Path, store: ObjectStore
) -> None:
    found = re.search(r"listening on +(http://127\.0\.0\.1:\d+)\n", log.read_text())
    assert found
    webhooks = Webhooks(found[1], SecretStr(SECRET))
    address = webhooks.address(ATTEMPT)
    with requests.Session() as session:  # whose connection is open still when it is stopped
        assert session.post(address, json={"id": 7}, timeout=20).status_code == 204
        assert session.post(address + "0", json={"id": 7}, timeout=20).status_code == 403
        process.send_signal(how)
        assert process.wait(20) == 0
    assert [payload.provider_id for payload in Inbox(store).read(ATTEMPT)] == ["7"]
    said = log.read_text()
    assert (
        f"The provider calls {PUBLIC}/webhooks/…: see to it that this leads to {found[1]}" in said
    )
    assert f"a webhook for attempt {ATTEMPT}: kept" in said
    assert "Traceback" not in said
    assert SECRET not in said
    assert address.rpartition("/")[2] not in said
    command_line = Path(f"/proc/{process.pid}/cmdline")
    assert not command_line.exists() or SECRET.encode() not in command_line.read_bytes()


@pytest.mark.usefixtures("environment")
def test_without_webhook_settings_it_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NANOBANANA_WEBHOOK_URL")
    monkeypatch.delenv("NANOBANANA_WEBHOOK_SECRET")
    said = serve()
    assert "NANOBANANA_WEBHOOK_URL=" in said
    assert "NANOBANANA_WEBHOOK_SECRET=" in said


@pytest.mark.usefixtures("environment")
def test_another_realms_bucket_is_refused(store: ObjectStore) -> None:
    claim_bucket(store, "emulator")
    assert "holds pictures of realm 'emulator'" in serve("--port", 0)


@pytest.mark.usefixtures("environment")
def test_a_port_that_is_taken_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "--port" in serve("--port", taken.getsockname()[1])


@pytest.mark.usefixtures("environment")
def test_a_host_that_is_not_ours_is_told() -> None:
    assert "cannot listen on 192.0.2.1" in serve("--host", "192.0.2.1", "--port", 0)
