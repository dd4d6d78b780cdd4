"""Local servers: where they listen, and what may be done without keys."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
import requests

from nanobanana_pipeline import local
from nanobanana_pipeline.errors import LocalServerError
from nanobanana_pipeline.local import ports
from nanobanana_pipeline.storage import ObjectStore


def test_without_keys_objects_can_be_read_and_nothing_else(store: ObjectStore, s3_url: str) -> None:
    store.put("seed=1/sheet.webp", b"a sheet", content_type="image/webp")
    bucket = f"{s3_url}/{local.BUCKET}"
    key = f"{bucket}/{store.prefix}seed%3D1/sheet.webp"
    read = requests.get(f"{key}?v=1", timeout=10)
    assert (read.content, read.headers["Content-Type"]) == (b"a sheet", "image/webp")
    for method, url in [("GET", f"{bucket}?list-type=2"), ("PUT", key), ("DELETE", key)]:
        assert requests.request(method, url, data=b"other", timeout=10).status_code == 403
    kept = store.get("seed=1/sheet.webp")
    assert kept is not None
    assert kept.body == b"a sheet"


@pytest.mark.skipif(sys.platform != "linux", reason="ports are kept from others on Linux only")
def test_a_chosen_port_is_given_to_no_other_process() -> None:
    """Though nobody listens on it yet."""
    chosen = local.free_port()
    ask = "from nanobanana_pipeline import local; import itertools, secrets; "
    ask += f"draws = itertools.count({chosen - ports.LOWEST_PORT}); "
    ask += "secrets.randbelow = lambda _: next(draws); print(local.free_port())"
    other = subprocess.run([sys.executable, "-c", ask], check=True, capture_output=True, text=True)
    assert int(other.stdout) > chosen


def test_a_server_that_ends_is_not_taken_for_one_that_is_ready(tmp_path: Path) -> None:
    """Where another is ready in its place."""

    def another_is() -> bool:
        time.sleep(0.5)
        return True

    ends = ["bash", "-c", "exit 3"]
    with (
        pytest.raises(LocalServerError, match="the server ended with code 3"),
        local.child("the server", ends, log=tmp_path / "log", ready=another_is),
    ):
        pytest.fail("it was taken for ready")
