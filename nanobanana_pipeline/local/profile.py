"""The local profile: a real S3 server and the provider emulator as child processes on loopback."""

import contextlib
import fcntl
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nanobanana_pipeline.errors import LocalServerError
from nanobanana_pipeline.local.ports import remembered_ports
from nanobanana_pipeline.local.processes import answers, child
from nanobanana_pipeline.local.s3_server import BUCKET, S3_PORTS, s3_environment, s3_server

__all__ = ["API_KEY", "LocalProfile", "local_profile", "running_profile"]

API_KEY: Final = "local-emulator-key"


@dataclass(frozen=True)
class LocalProfile:
    """What to put into the environment to use the local servers.

    Attributes:
        s3_url: the S3 server's address.
        base_url: the emulator's base URL.
        environment: every variable that the settings and boto3 need.
    """

    s3_url: str
    base_url: str
    environment: Mapping[str, str]


@contextlib.contextmanager
def local_profile(data: Path, *, emulator: Sequence[str] = ()) -> Iterator[LocalProfile]:
    """Run both servers until the block ends; `emulator` has further command-line options.

    The folder `data` is made if needed; a later start with it goes on where this one ended.

    Raises:
        LocalServerError: a server did not come up (the text names its log), or the folder is in
            use.
    """
    with _sole_user(data):
        ports = remembered_ports(data / "ports.json", ["emulator", *S3_PORTS])
        base_url = f"http://127.0.0.1:{ports['emulator']}"
        command = [
            *(sys.executable, "-m", "nanobanana_pipeline.emulator"),
            *("--port", str(ports["emulator"]), "--data", str(data / "emulator")),
            *emulator,
        ]
        log = data / "emulator.log"
        with (
            s3_server(data / "s3", ports) as s3_url,
            child("emulator", command, log=log, ready=lambda: answers(f"{base_url}/healthz")),
        ):
            yield _profile(s3_url, base_url)


def running_profile(data: Path) -> LocalProfile:
    """The servers that another process runs on `data`.

    Raises:
        LocalServerError: none are running there.
    """
    remembered = data / "ports.json"
    ports = json.loads(remembered.read_text()) if remembered.exists() else {}
    profile = _profile(*(f"http://127.0.0.1:{ports.get(name)}" for name in ("s3", "emulator")))
    if not ports or not answers(f"{profile.s3_url}/healthz"):
        raise LocalServerError(
            f"no local servers are running on {data}: start them with nanobanana dev --data {data}"
        )
    return profile


def _profile(s3_url: str, emulator_url: str) -> LocalProfile:
    api = f"{emulator_url}/api/v1/enterprise/nano_banana/"
    return LocalProfile(
        s3_url,
        api,
        {
            "NANOBANANA_API_KEY": API_KEY,
            "NANOBANANA_BASE_URL": api,
            "NANOBANANA_BUCKET": BUCKET,
            "NANOBANANA_PREFIX": "",
            "NANOBANANA_REALM": "emulator",
            "NANOBANANA_PREVIEW_URL": f"{s3_url}/{BUCKET}",
            "NANOBANANA_ALLOWED_HOSTS": "127.0.0.1",
            **s3_environment(s3_url),
        },
    )


@contextlib.contextmanager
def _sole_user(data: Path) -> Iterator[None]:
    """Two sets of servers on one folder would damage it."""
    data.mkdir(parents=True, exist_ok=True)
    with (data / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise LocalServerError(
                f"{data} is in use by another nanobanana: end that one, or choose another folder "
                "with --data"
            ) from None
        yield
