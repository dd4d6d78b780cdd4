"""`demo` and `dev` as a user starts them: real processes, real servers, nothing left behind."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import requests
from PIL import Image
from typer.testing import CliRunner

from nanobanana_pipeline import local
from nanobanana_pipeline.cli import app
from nanobanana_pipeline.cli.profile import dagster_home
from nanobanana_pipeline.emulator import EmulatorThread
from nanobanana_pipeline.generation.manifest.manifest import read_current
from nanobanana_pipeline.local import free_port
from nanobanana_pipeline.storage import ObjectStore
from tests.conftest import API_KEY, Emulators
from tests.launching import bought
from tests.s3_proxy import wait_until

pytestmark = pytest.mark.timeout(900)  # Dagster's servers, on a machine that may be busy

START_SECONDS = 240
STOP_SECONDS = 150
GRPC_ABORT = "Check failed"
"""Dagster's daemon ends so now and then, natively, at its start."""


def nanobanana(
    *args: object, log: Path, more_env: Mapping[str, str] | None = None, **more: Any
) -> subprocess.Popen[bytes]:
    """Start the command with its output in a file."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "NANOBANANA"))}
    with log.open("wb") as output:
        return subprocess.Popen(
            [Path(sys.executable).with_name("nanobanana"), *map(str, args)],
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**environment, "COLUMNS": "200", **(more_env or {})},
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
    with dg.DagsterInstance.from_config(str(data / "dagster")) as instance:
        runs = instance.get_runs()
        release = instance.get_latest_materialization_event(dg.AssetKey(["datasets", "sample"]))
    targets = {key.to_user_string() for run in runs for key in run.asset_selection or ()}
    assert targets == {"prompt_set", "generated_images", "image_features", "datasets/sample"}
    assert release is not None
    assert release.asset_materialization is not None
    assert {"samples of train", "samples of test"} <= set(release.asset_materialization.metadata)
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
        if process.poll() is not None and GRPC_ABORT in log.read_text():
            return start_dev(data, log, **more)
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)
    return process, url


def test_dev_serves_the_ui_and_ends_with_all_its_children(data: Path, tmp_path: Path) -> None:
    """By SIGINT; `tests.graphql.running_dev` ends it by SIGTERM."""
    log = tmp_path / "dev.log"
    # As a shell starts background jobs: SIGINT is ignored from the start.
    process, url = start_dev(
        data,
        log,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
        more_env={"UV_RUN_RECURSION_DEPTH": "1"},  # as `uv run` marks what it runs
    )
    assert f'eval "$(uv run nanobanana environment --data {data})"' in log.read_text()
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    known = [Path(f"/proc/{child}/environ").read_bytes().split(b"\0") for child in children]
    assert sum(b"DAGSTER_GRPC_TIMEOUT_SECONDS=300" in variables for variables in known) == 1
    query = {"query": "{ assetNodes { assetKey { path } } }"}
    answer = requests.post(f"{url}/graphql", json=query, timeout=30).json()
    names = {node["assetKey"]["path"][0] for node in answer["data"]["assetNodes"]}
    assert names >= {"prompt_set", "generated_images", "image_features"}, json.dumps(answer)
    run = f"{sys.executable} -c 'from nanobanana_pipeline.cli import app; app()'"
    status = subprocess.run(
        ["bash", "-c", f'eval "$({run} environment --data "$1")" && {run} status', "-", str(data)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "no partition has a manifest yet" in status.stdout
    process.send_signal(signal.SIGINT)
    assert process.wait(STOP_SECONDS) == 0
    assert not wait_until_gone(data)


def test_a_run_waits_for_a_code_server_that_does_not_answer(data: Path) -> None:
    with dg.DagsterInstance.from_config(str(dagster_home(data))) as instance:
        queue = instance.get_concurrency_config().run_queue_config
    assert queue is not None
    assert (queue.max_user_code_failure_retries, queue.user_code_failure_retry_delay) == (3, 60)
    assert [each["key"] for each in queue.tag_concurrency_limits] == ["dagster/partition"]


def test_the_environment_of_servers_that_do_not_run_is_refused(data: Path) -> None:
    result = CliRunner().invoke(app, ["environment", "--data", str(data)])
    assert (result.exit_code, "nanobanana dev" in result.output) == (2, True)


def test_children_follow_a_parent_that_was_killed(data: Path, tmp_path: Path) -> None:
    process, _ = start_dev(data, tmp_path / "dev.log")
    process.kill()
    process.wait()
    assert not wait_until_gone(data)


def test_an_interrupted_generate_accounts_for_what_it_did_and_goes_on(
    tmp_path: Path, store: ObjectStore, emulators: Emulators
) -> None:
    emulator = emulators(latency_seconds=(0.5, 1.0))
    table = tmp_path / "many.csv"
    rows = "".join(f"number {n},1024,1024\n" for n in range(60))
    table.write_text(f"prompt,width,height\n{rows}")
    environment = {
        "NANOBANANA_API_KEY": API_KEY,
        "NANOBANANA_BASE_URL": emulator.base_url,
        "NANOBANANA_BUCKET": store.bucket,
        "NANOBANANA_PREFIX": store.prefix.rstrip("/"),
        "NANOBANANA_ALLOWED_HOSTS": "127.0.0.1",
    } | {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    log = tmp_path / "generate.log"
    for how, code in ((signal.SIGINT, 130), (signal.SIGTERM, 130), (None, 0)):
        process = nanobanana("generate", table, "--seeds", "1", log=log, more_env=environment)
        if how is not None:
            wait_for_purchases(emulator, bought(emulator) + 10)
            process.send_signal(how)
        assert process.wait(START_SECONDS) == code, log.read_text()
        if how is not None:
            assert "the same command goes on from here" in log.read_text()
            current, _ = read_current(store, "many", 1)
            assert current is not None
            assert current.cells["settled"] > 0
    record = requests.get(f"{emulator.root_url}/admin/purchases", timeout=10).json()
    assert (record["total"], record["bought_twice"]) == (60, 0)


def wait_for_purchases(emulator: EmulatorThread, count: int) -> None:
    wait_until(lambda: bought(emulator) >= count, START_SECONDS)
