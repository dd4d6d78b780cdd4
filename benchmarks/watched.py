"""A command in a process of its own, with all its HTTP calls counted where Python sends them.

``python -m benchmarks.watched REPORT.json MODULE:FUNCTION [ARGUMENT…]`` calls the function as its
own command line would. requests and boto3 both end in `http.client`, so nothing is missed, and
whatever is compared is watched in the same way.
"""

import http.client
import importlib
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks.measured import Cost, run

__all__ = ["Watched", "run_watched"]


@dataclass(frozen=True)
class Watched:
    """What a command took and did.

    Attributes:
        cost: of its whole process.
        calls: HTTP calls by port, then by method; listings of S3 as ``LIST``.
        looked: when it first asked for each output, by its name, in Unix seconds.
    """

    cost: Cost
    calls: Mapping[str, Mapping[str, int]]
    looked: Mapping[str, float]

    def calls_to(self, url: str) -> Mapping[str, int]:
        """Those to one server, by method."""
        return self.calls.get(str(urlsplit(url).port), {})


def run_watched(
    command: Sequence[str | Path],
    environment: Mapping[str, str] | None = None,
) -> Watched:
    """Run ``MODULE:FUNCTION`` and its arguments to the end.

    Raises:
        RuntimeError: it failed; with what it said.
    """
    with tempfile.NamedTemporaryFile(suffix=".json") as report:
        watcher = (sys.executable, "-m", "benchmarks.watched", report.name)
        cost = run([*watcher, *command], environment)
        found = json.loads(Path(report.name).read_text())
    return Watched(cost, found["calls"], found["looked"])


def _main(report: str, target: str, arguments: Sequence[str]) -> Any:  # noqa: ANN401 - its own
    calls: dict[str, Counter[str]] = {}
    looked: dict[str, float] = {}
    send = http.client.HTTPConnection.putrequest

    def putrequest(
        connection: http.client.HTTPConnection, method: str, url: str, **options: bool
    ) -> None:
        what = "LIST" if method == "GET" and "list-type=2" in url else method
        calls.setdefault(str(connection.port), Counter())[what] += 1
        if "/outputs/" in url:
            looked.setdefault(url.rpartition("/")[2], time.time())
        send(connection, method, url, **options)

    http.client.HTTPConnection.putrequest = putrequest  # type: ignore[assignment]
    module, _, function = target.partition(":")
    sys.argv = [module, *arguments]
    try:
        return getattr(importlib.import_module(module), function)()
    finally:
        Path(report).write_text(json.dumps({"calls": calls, "looked": looked}))


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1], sys.argv[2], sys.argv[3:]))
