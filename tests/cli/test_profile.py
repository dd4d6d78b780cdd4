"""`demo` and `dev` as a user starts them: real processes, real servers, nothing left behind."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from PIL import Image

from nanobanana_pipeline import local
from nanobanana_pipeline.local import free_port

START_SECONDS = 120
STOP_SECONDS = 60


def nanobanana(*args: object, log: Path, **more: Any) -> subprocess.Popen[bytes]:
    """Start the command with its output in a file."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "NANOBANANA"))}
    with log.open("wb") as output:
        return subprocess.Popen(
            [Path(sys.executable).with_name("nanobanana"), *map(str, args)],
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**environment, "COLUMNS": "200"},
            **more,
        )


def processes_of(data: Path) -> list[str]:
    """Command lines and environments that name this data folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                known = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
                if str(data).encode() in known:
                    found.append((entry / "cmdline").read_text().replace("\0", " "))
            except OSError:
                continue  # it ended while we looked
    return found


def files_with(folder: Path, secret: str) -> list[Path]:
    """Files that hold a secret: S3's volumes, Dagster's storage, logs, everything."""
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and secret.encode() in path.read_bytes()
    ]


def wait_until_gone(data: Path) -> list[str]:
    deadline = time.monotonic() + STOP_SECONDS
    while (left := processes_of(data)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return left


@pytest.fixture
def data(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "data"
    assert not wait_until_gone(tmp_path / "data")


def test_the_demo_makes_a_dataset_and_goes_on_where_it_ended(data: Path, tmp_path: Path) -> None:
    for settled in ("12 bought", "nothing to buy"):
        log = tmp_path / "demo.log"
        process = nanobanana("demo", "--data", data, log=log)
        assert process.wait(START_SECONDS) == 0, log.read_text()
        said = log.read_text()
        assert settled in said
        assert said.count("12 settled") >= 2
        assert str(data / "contact_sheet.png") in said
    with Image.open(data / "contact_sheet.png") as sheet:
        assert sheet.width > 1000
    assert files_with(data, local.API_KEY) == []
    # The S3 server must know its own secret; nobody else may write it down.
    assert files_with(data, local.SECRET_KEY) == [data / "s3" / "s3.json"]


def start_dev(data: Path, log: Path, **more: Any) -> tuple[subprocess.Popen[bytes], str]:
    port = free_port()
    process = nanobanana("dev", "--data", data, "--port", port, log=log, **more)
    url = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + START_SECONDS
    while "Ctrl-C ends everything" not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)
    return process, url


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_dev_serves_the_ui_and_ends_with_all_its_children(
    data: Path, tmp_path: Path, how: signal.Signals
) -> None:
    log = tmp_path / "dev.log"
    # As a shell starts background jobs: SIGINT is ignored from the start.
    process, url = start_dev(
        data, log, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)
    )
    query = {"query": "{ assetNodes { assetKey { path } } }"}
    answer = requests.post(f"{url}/graphql", json=query, timeout=30).json()
    names = {node["assetKey"]["path"][0] for node in answer["data"]["assetNodes"]}
    assert names == {"prompt_set", "generated_images"}, json.dumps(answer)
    process.send_signal(how)
    assert process.wait(STOP_SECONDS) == 0
    assert not wait_until_gone(data)


def test_children_follow_a_parent_that_was_killed(data: Path, tmp_path: Path) -> None:
    process, _ = start_dev(data, tmp_path / "dev.log")
    process.kill()
    process.wait()
    assert not wait_until_gone(data)
