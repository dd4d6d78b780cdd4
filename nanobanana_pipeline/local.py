"""The local profile: a real S3 server and the provider emulator as child processes on loopback.

Children get a session of their own, so that one signal ends each with all it started; on Linux the
kernel also ends them when this process dies without a word.
"""

import contextlib
import ctypes
import fcntl
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import boto3
import requests
from botocore.exceptions import BotoCoreError, ClientError

from nanobanana_pipeline.errors import LocalServerError
from nanobanana_pipeline.storage import s3_config

__all__ = [
    "API_KEY",
    "BUCKET",
    "SECRET_KEY",
    "LocalProfile",
    "check_port",
    "child",
    "free_port",
    "local_profile",
    "running_profile",
    "s3_environment",
    "s3_server",
    "stop",
]

ACCESS_KEY: Final = "nanobanana"
SECRET_KEY: Final = "local-profile-only"  # noqa: S105 - a loopback server's own
API_KEY: Final = "local-emulator-key"
BUCKET: Final = "nanobanana"
READY_SECONDS: Final = 180
"""Long, since a busy machine takes a minute for Dagster; a child that ends is noticed at once."""
PR_SET_PDEATHSIG: Final = 1
LOWEST_PORT: Final = 12_000
GRPC_OFFSET: Final = 10_000
"""SeaweedFS opens a second port this far above each of its own."""


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
    """Run both servers, with their data under `data`, until the block ends.

    Args:
        data: made if needed; a later start with the same folder goes on where this one ended.
        emulator: further command-line options of the emulator.

    Raises:
        LocalServerError: a server did not come up (the text names its log), or the folder is in
            use.
    """
    with _sole_user(data):
        yield from _both_servers(data, emulator)


def _both_servers(data: Path, emulator: Sequence[str]) -> Iterator[LocalProfile]:
    ports = _ports(data / "ports.json", ["emulator", *S3_PORTS])
    base_url = f"http://127.0.0.1:{ports['emulator']}"
    with (
        s3_server(data / "s3", ports) as s3_url,
        child(
            "emulator",
            [
                *(sys.executable, "-m", "nanobanana_pipeline.emulator"),
                *("--port", str(ports["emulator"]), "--data", str(data / "emulator")),
                *emulator,
            ],
            log=data / "emulator.log",
            ready=lambda: _answers(f"{base_url}/healthz"),
        ),
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
    if not ports or not _answers(f"{profile.s3_url}/healthz"):
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


S3_PORTS = ("s3", "master", "volume", "filer", "admin")


@contextlib.contextmanager
def s3_server(data: Path, ports: Mapping[str, int] | None = None) -> Iterator[str]:
    """Run SeaweedFS with one bucket until the block ends; gives its URL.

    Without keys its objects can be read, so that a browser shows pictures; only on loopback.

    Raises:
        LocalServerError: it did not come up.
    """
    data.mkdir(parents=True, exist_ok=True)
    ports = ports or _ports(data / "ports.json", S3_PORTS)
    config = data / "s3.json"
    keys = {"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    identities = [
        {"name": "local", "credentials": [keys], "actions": actions},
        {"name": "anonymous", "actions": [f"Read:{BUCKET}"]},
    ]
    config.write_text(json.dumps({"identities": identities}))
    config.chmod(0o600)
    command = [
        *(_program("weed"), "mini", f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
        f"-master.port={ports['master']}",
        f"-volume.port={ports['volume']}",
        f"-filer.port={ports['filer']}",
        f"-s3.port={ports['s3']}",
        f"-admin.port={ports['admin']}",
        *(f"-s3.config={config}", "-s3.autoCreateBucket=false", "-webdav=false"),
        *("-admin.ui=false", "-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false"),
        f"-bucket={BUCKET}",
    ]
    url = f"http://127.0.0.1:{ports['s3']}"
    # The bucket is made a moment after the server answers; without it a first write would fail.
    with child(
        "the S3 server",
        command,
        log=data.with_name("s3.log"),
        ready=lambda: _answers(f"{url}/healthz") and _has_bucket(url),
    ):
        yield url


@contextlib.contextmanager
def child(
    name: str,
    command: Sequence[str],
    *,
    log: Path,
    ready: Callable[[], bool],
    environment: Mapping[str, str] | None = None,
    grace_seconds: float = 5,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command in its own session until the block ends; output goes to `log`.

    Raises:
        LocalServerError: it ended, or was not ready within three minutes.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        process = subprocess.Popen(  # noqa: S603 - our own commands
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_die_with_parent,  # noqa: PLW1509 - before any thread is started
            env={**os.environ, **(environment or {})},
        )
    try:
        deadline = time.monotonic() + READY_SECONDS
        # Asked first: where it could not listen, another may be ready in its place.
        while process.poll() is None and not ready():
            if time.monotonic() > deadline:
                raise LocalServerError(f"{name} was not ready in {READY_SECONDS} s; see {log}")
            time.sleep(0.05)
        if process.poll() is not None:
            raise LocalServerError(f"{name} ended with code {process.returncode}; see {log}")
        yield process
    finally:
        stop(process, grace_seconds)


def stop(process: subprocess.Popen[bytes], grace_seconds: float = 5) -> None:
    """End a child and everything in its session: SIGTERM, then SIGKILL after the grace."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(grace_seconds)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def s3_environment(url: str) -> dict[str, str]:
    """AWS's own variables for the local S3 server."""
    return {
        "AWS_ENDPOINT_URL_S3": url,
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_DEFAULT_REGION": "us-east-1",
    }


def check_port(port: int) -> None:
    """Make sure that a port can be listened on.

    Raises:
        LocalServerError: somebody else does.
    """
    if not _is_free(port):
        raise LocalServerError(f"port {port} is in use: choose another with --port")


def free_port() -> int:
    """A loopback port that is free now, and whose neighbour 10,000 above is free too.

    On Linux it is given to no other process of ours while this one lives.
    """
    while True:
        # So that none is the neighbour of another, nor where the system takes its own from.
        port = LOWEST_PORT + secrets.randbelow(GRPC_OFFSET)
        if _is_free(port) and _is_free(port + GRPC_OFFSET) and _is_ours(port):
            return port


def _is_ours(port: int) -> bool:
    """Whether nobody else of us has chosen a port that he may not listen on yet."""
    if sys.platform != "linux":
        return True
    claim = socket.socket(socket.AF_UNIX)
    try:
        # A name beside the file system: it is free again when this process ends.
        claim.bind(f"\0nanobanana-port-{port}")
    except OSError:
        claim.close()
        return False
    claim.detach()
    return True


def _ports(remembered: Path, names: Sequence[str]) -> dict[str, int]:
    """The ports of the last start if they are all free still, else new ones."""
    if remembered.exists():
        ports: dict[str, int] = json.loads(remembered.read_text())
        if set(ports) == set(names) and all(
            _is_free(port) and _is_free(port + GRPC_OFFSET) for port in ports.values()
        ):
            return ports
    ports = {}
    while len(ports) < len(names):
        port = free_port()
        if port not in ports.values():
            ports[names[len(ports)]] = port
    remembered.parent.mkdir(parents=True, exist_ok=True)
    remembered.write_text(json.dumps(ports))
    return ports


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _program(name: str) -> str:
    """A program that one of our wheels installed, on PATH or beside this Python."""
    found = shutil.which(name, path=sysconfig.get_path("scripts")) or shutil.which(name)
    if found is None:
        raise LocalServerError(f"the program {name} is missing: reinstall nanobanana-pipeline")
    return found


def _answers(url: str) -> bool:
    try:
        return requests.get(url, timeout=2).ok
    except requests.RequestException:
        return False


def _has_bucket(url: str) -> bool:
    client = boto3.session.Session().client(
        "s3",
        endpoint_url=url,
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
        region_name="us-east-1",
        config=s3_config(),
    )
    try:
        client.head_bucket(Bucket=BUCKET)
    except (BotoCoreError, ClientError):
        return False
    return True


def _die_with_parent() -> None:
    """In the child: restore the signals a background shell ignores, and follow the parent."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
