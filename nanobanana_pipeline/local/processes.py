"""Child processes that end with their parent, and with all that they started.

Children get a session of their own, so that one signal ends each with all it started; on Linux the
kernel also ends them when this process dies without a word.
"""

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import requests

from nanobanana_pipeline.errors import LocalServerError

__all__ = ["answers", "child", "program"]

READY_SECONDS: Final = 180
"""Long, since a busy machine takes a minute for Dagster; a child that ends is noticed at once."""
PR_SET_PDEATHSIG: Final = 1


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


def program(name: str) -> str:
    """A program that one of our wheels installed, on PATH or beside this Python."""
    found = shutil.which(name, path=sysconfig.get_path("scripts")) or shutil.which(name)
    if found is None:
        raise LocalServerError(f"the program {name} is missing: reinstall nanobanana-pipeline")
    return found


def answers(url: str) -> bool:
    """Whether a GET is answered with success within two seconds."""
    try:
        return requests.get(url, timeout=2).ok
    except requests.RequestException:
        return False


def _die_with_parent() -> None:
    """In the child: restore the signals a background shell ignores, and follow the parent."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
