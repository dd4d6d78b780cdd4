import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

from tests.emulator.account import Account

COMMAND = [sys.executable, "-m", "nanobanana_pipeline.emulator"]


@contextmanager
def emulator(*options: str) -> Iterator[tuple[subprocess.Popen[str], Account]]:
    with subprocess.Popen(
        [*COMMAND, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            base_url = process.stdout.readline().strip()
            assert base_url.endswith("/api/v1/enterprise/nano_banana/")
            yield process, Account(base_url)
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("end", "exit_code"), [(signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, 0)]
)
def test_a_signal_stops_it_promptly_whatever_is_under_way(
    end: signal.Signals, exit_code: int
) -> None:
    with emulator("--mode", "sync", "--latency", "60") as (process, account):
        idle = requests.Session()
        assert idle.get(f"{account.root_url}/healthz", timeout=5).json() == {"status": "ok"}
        errors: list[type[BaseException]] = []

        def wait_for_an_answer() -> None:
            try:
                account.text2img()
            except requests.RequestException as error:
                errors.append(type(error))

        buyer = threading.Thread(target=wait_for_an_answer)
        buyer.start()
        while account.bought() == 0:
            time.sleep(0.01)
        begun = time.monotonic()
        process.send_signal(end)
        _, complaints = process.communicate(timeout=30)
        assert time.monotonic() - begun < 20
        buyer.join(5)
        assert process.returncode == exit_code
        assert errors == [requests.ConnectionError]
        assert complaints == ""


def test_a_webhook_that_hangs_does_not_hold_up_the_end() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as hanging,
        emulator("--latency=0") as (process, account),
    ):
        hanging.settimeout(5)
        account.buy(webhook=f"http://127.0.0.1:{hanging.getsockname()[1]}/")
        connection, _ = hanging.accept()
        with connection:
            begun = time.monotonic()
            process.send_signal(signal.SIGTERM)
            _, complaints = process.communicate(timeout=30)
            assert time.monotonic() - begun < 20
            assert complaints == ""


def test_kill_9_loses_no_purchase(tmp_path: Path) -> None:
    options = ("--data", str(tmp_path), "--latency", "60")
    with emulator(*options) as (process, account):
        ids = [account.buy(seed=seed)["id"] for seed in (1, 2)]
        process.kill()
    with emulator(*options) as (_, account):
        assert [account.fetch(each)["status"] for each in ids] == ["processing", "processing"]


def test_its_options_reach_it() -> None:
    options = ["--cap=2", "--latency=0:0", "--format=jpg", "--retry-after=3", "--mood=failed=0.25"]
    with emulator(*options, "--mood", "rate_limited=1") as (_, account):
        assert account.admin("moods")["failed"] == 0.25
        assert account.text2img().json()["retry_after"] == 3
        account.tell("moods", rate_limited=0, failed=0)
        image = account.get(account.buy()["future_links"][0])
        assert image.headers["content-type"] == "image/jpeg"
        assert account.admin("stats")["cap"] == 2


@pytest.mark.parametrize(
    ("option", "complaint"),
    [
        ("--latency=soon", "wants seconds"),
        ("--latency=3:1", "above the longest"),
        ("--mood=sulky=1", "is not a mood"),
        ("--mood=failed", "wants name=rate"),
    ],
)
def test_wrong_options_are_refused_with_the_reason(option: str, complaint: str) -> None:
    ended = subprocess.run([*COMMAND, option], capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert complaint in ended.stderr


def test_a_port_in_use_is_refused_with_the_reason() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        option = f"--port={taken.getsockname()[1]}"
        ended = subprocess.run([*COMMAND, option], capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "in use" in ended.stderr
