"""The vendor's SDK as an outside witness: it was written for the provider, not for the emulator."""

import base64
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest
import requests
from PIL import Image

from tests.conftest import API_KEY, Emulators
from tests.launching import admin

UV = shutil.which("uv")
REQUIRED = bool(os.environ.get("REQUIRE_DEBIAN_PACKAGES"))
WITNESS = Path(__file__).with_name("sdk_witness.py")
SECONDS = 120
ENVIRONMENT = [
    *("run", "--quiet", "--isolated", "--no-project", "--python", sys.executable),
    *("--with", "modelslab-py==0.2.3", "--with", "requests"),  # it forgets to ask for requests
    "python",
]


@pytest.fixture(scope="module")
def sdk(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command of a Python that has the SDK."""
    folder = tmp_path_factory.mktemp("witness")
    if UV is None:
        _do_without("uv is not on the PATH: pip install uv")
    command = [UV, *ENVIRONMENT]
    try:
        subprocess.run(
            [*command, "-c", ""], cwd=folder, check=True, capture_output=True, timeout=SECONDS
        )
    except subprocess.TimeoutExpired:
        _do_without(f"the SDK could not be installed within {SECONDS} s")
    except subprocess.CalledProcessError as error:
        _do_without(f"the SDK could not be installed: {error.stderr.decode().strip()}")
    return command


def _do_without(reason: str) -> NoReturn:
    if REQUIRED:
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.mark.parametrize("mode", ["queued", "sync"])
def test_the_vendors_sdk_buys_and_fetches_each_picture_once(
    sdk: list[str], emulators: Emulators, tmp_path: Path, mode: str
) -> None:
    emulator = emulators(mode=mode, latency_seconds=(0.5, 0.5), api_key=API_KEY)
    reference = io.BytesIO()
    Image.new("RGB", (1100, 1024), "teal").save(reference, "PNG")
    common: dict[str, Any] = {
        "width": 1024,
        "samples": 2,
        "noise_clip_std": 3.5,
        "watermark": "yes",
    }
    fox = {"prompt": "a paper fox — 狐", "seed": 2**40, "height": 1056, "track_id": "t"}
    whale = {"prompt": "a glass whale", "seed": 7, "negative_prompt": "fog"}
    whale["ref_image"] = base64.b64encode(reference.getvalue()).decode()
    orders = [("text2img", common | fox), ("img2img", common | whale)]

    ended = subprocess.run(
        [*sdk, str(WITNESS), emulator.base_url],
        input=json.dumps(orders),
        cwd=tmp_path,
        env=os.environ | {"API_KEY": API_KEY},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    said = json.loads(ended.stdout)

    assert said["details"]["status"] == "success"
    record = admin(emulator, "purchases")
    assert (record["total"], record["images"], record["bought_twice"]) == (2, 4, 0)
    groups = sorted(record["groups"], key=lambda group: group["ids"])
    references = [[], [hashlib.sha256(reference.getvalue()).hexdigest()]]
    sizes = [(1024, 1056), (1024, 1024)]
    for number, (endpoint, fields) in enumerate(orders):
        told, group = said["told"][number], groups[number]
        assert told["bought"]["status"] == ("success" if mode == "sync" else "processing")
        assert (group["count"], group["failed"], group["samples"]) == (1, 0, 2)
        assert group["ids"] == [told["bought"]["id"]]
        assert (group["endpoint"], group["references"]) == (endpoint, references[number])
        assert (group["prompt"], group["seed"]) == (fields["prompt"], fields["seed"])
        assert group["track_ids"] == [fields.get("track_id")]
        meta = told["bought"]["meta"]
        assert (meta["W"], meta["H"]) == sizes[number]
        assert meta["negative_prompt"] == fields.get("negative_prompt", "")
        assert (meta["noise_clip_std"], meta["watermark"]) == (3.5, "yes")

        assert told["done"]["status"] == "success"
        assert len(told["done"]["output"]) == 2
        for sample, link in enumerate(told["done"]["output"]):
            picture = Image.open(io.BytesIO(requests.get(link, timeout=10).content))
            picture.load()
            assert picture.size == sizes[number]
            label = json.loads(picture.info["emulator"])
            assert (label["prompt"], label["sample"]) == (fields["prompt"], sample)
