"""Runs pytest in forks of a process that has imported the libraries, but nothing of the project.

Most of a short run's time goes into these imports. Each line of the standard input is a JSON object
with the arguments, the environment, the seconds that it may take and the file for its output; each
line of the standard output is its exit code, or null if it was stopped.
"""

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

OURS = ("nanobanana_pipeline", "dagster", "tests", "__main__")


def serve() -> None:
    probe = [sys.executable, "-c", "import sys, tests.conftest; print(*sys.modules)"]
    for name in subprocess.check_output(probe, text=True).split():
        if not name.startswith(OURS):
            with contextlib.suppress(ImportError):
                importlib.import_module(name)
    for line in sys.stdin:
        asked = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _run(asked)
        code = _wait(pid, asked["seconds"])
        # What a test has started must not outlive it.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        if code is None:
            os.waitpid(pid, 0)
        sys.stdout.write(f"{json.dumps(code)}\n")
        sys.stdout.flush()


def _run(asked: dict[str, Any]) -> None:
    code = 3
    try:
        os.setsid()
        os.environ.update(asked["environment"])
        output = os.open(asked["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for descriptor in (1, 2):
            os.dup2(output, descriptor)
        sys.path.insert(0, str(Path.cwd()))
        code = int(pytest.main(asked["arguments"]))
        sys.stdout.flush()
    finally:
        os._exit(code)


def _wait(pid: int, seconds: float) -> int | None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    return None


if __name__ == "__main__":
    serve()
