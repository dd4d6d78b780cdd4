"""Many pictures at once, in processes that may die."""

import hashlib
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from nanobanana_pipeline.features import workers
from nanobanana_pipeline.features.workers import _process as new_process
from nanobanana_pipeline.features.workers import measure_all
from nanobanana_pipeline.storage import ObjectStore
from tests.features.counting import DEADLY, dying


@pytest.fixture(autouse=True)
def _own_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_process", new_process)


def stored(store: ObjectStore, bodies: list[bytes]) -> dict[str, str]:
    keys = {hashlib.sha256(body).hexdigest(): f"images/{n}" for n, body in enumerate(bodies)}
    for key, body in zip(keys.values(), bodies, strict=True):
        store.put(key, body)
    return keys


def pictures(count: int) -> list[bytes]:
    found = []
    for number in range(count):
        out = io.BytesIO()
        Image.new("RGB", (64, 64), (number, 0, 0)).save(out, "PNG")
        found.append(out.getvalue())
    return found


def test_rows_come_in_order_and_what_is_missing_has_a_reason(store: ObjectStore) -> None:
    keys = stored(store, [*pictures(4), b"no picture"])
    missing = "f" * 64
    keys[missing] = "images/nowhere"
    seen: list[int] = []
    rows = measure_all(store, keys, seen.append)
    assert [row.image_sha256 for row in rows] == list(keys)
    assert seen == [1, 2, 3, 4, 5, 6]
    assert [row.error for row in rows[:4]] == [None] * 4
    assert "not a PNG" in str(rows[4].error)
    assert "is missing" in str(rows[5].error)


def test_a_process_that_dies_of_a_picture_stops_no_other(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "measure", dying)
    keys = stored(store, [DEADLY, *pictures(3)])
    rows = measure_all(store, keys, lambda _: None)
    assert "died" in str(rows[0].error)
    assert [row.error for row in rows[1:]] == [None] * 3


def test_processes_do_not_outlive_a_parent_that_is_killed(store: ObjectStore) -> None:
    keys = stored(store, pictures(3))
    program = f"""
import multiprocessing, time
from nanobanana_pipeline.features.workers import _process as new_process
from nanobanana_pipeline.features.workers import measure_all
from nanobanana_pipeline.storage import ObjectStore, s3_client

def hold(done):
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    time.sleep(600)

measure_all(ObjectStore(s3_client(), {store.bucket!r}, {store.prefix!r}), {keys!r}, hold)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        children = [int(pid) for pid in parent.stdout.readline().split()]
        assert children
        assert all(is_running(pid) for pid in children)
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
        deadline = time.monotonic() + 60
        while any(is_running(pid) for pid in children):
            assert time.monotonic() < deadline
            time.sleep(0.05)


def is_running(pid: int) -> bool:
    """Whether a process is there and no zombie that waits for an absent-minded init."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
