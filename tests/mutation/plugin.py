"""For pytest, in the trees: one S3 server for all runs, and which test runs which line."""

import contextlib
import json
import os
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import nanobanana_pipeline
from nanobanana_pipeline import local

S3_URL = os.environ["MUTATION_S3_URL"]
TRACED = {str(Path(path).resolve()) for path in os.environ["MUTATION_TRACED"].split()}
RECORD = os.environ["MUTATION_RECORD"]

original = local.s3_server
lines: dict[str, set[tuple[str, int]]] = defaultdict(set)
seconds: dict[str, float] = defaultdict(float)
current = ""


def pytest_configure() -> None:
    assert Path(nanobanana_pipeline.__file__).is_relative_to(Path.cwd()), "not the copy"
    vars(local)["s3_server"] = _s3_server
    if TRACED:
        threading.settrace(_trace)
        sys.settrace(_trace)


def _s3_server(data: Path, *more: Any) -> contextlib.AbstractContextManager[str]:
    """That of the session is shared; a test's own is its own."""
    return contextlib.nullcontext(S3_URL) if data.name == "s30" else original(data, *more)


def _trace(frame: FrameType, _event: str, _argument: object) -> Any:
    if frame.f_code.co_filename not in TRACED:
        return None
    lines[current].add((frame.f_code.co_filename, frame.f_lineno))
    return _trace


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    global current  # noqa: PLW0603 - threads of the test are traced as well
    current = item.nodeid
    return (yield)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    seconds[report.nodeid] += report.duration


def pytest_sessionfinish(session: pytest.Session) -> None:
    if TRACED:
        sys.settrace(None)
        root = Path.cwd()
        found = {
            name: (took, [(str(Path(p).relative_to(root)), n) for p, n in lines[name]])
            for name, took in seconds.items()
        }
        if session.testsfailed == 0:
            Path(RECORD).write_text(json.dumps(found))
