"""Debian's Postgres for `deploy/local-postgres`: one server a session, a database a test."""

import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from nanobanana_pipeline import local
from tests.dagster_nanobanana.conftest import project

__all__ = ["Database", "database", "postgres", "project", "restarting"]

REQUIRED = bool(os.environ.get("REQUIRE_DEBIAN_PACKAGES"))
PROGRAMS = max(Path("/usr/lib/postgresql").glob("*/bin/initdb"), default=None)
AS_POSTGRES = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
"""Postgres refuses to run as root."""


RESTARTING = """
trap 'kill -TERM $child 2> /dev/null; wait $child; exit' TERM
until "$@" & child=$!; wait $child; do sleep 5; done
"""


def restarting(*command: str) -> list[str]:
    """A command that begins again when it fails, as all units ask systemd for.

    gRPC, of which Dagster's daemon is made, aborts now and then at its start.
    """
    return ["bash", "-c", RESTARTING, *command[:1], *command]


@dataclass(frozen=True)
class Database:
    """A database of its own on a real server.

    Attributes:
        environment: libpq's variables that lead to it.
    """

    environment: Mapping[str, str]

    def make_anew(self) -> None:
        """Lose all that is in it."""
        name = self.environment["PGDATABASE"]
        there = {**os.environ, **self.environment, "PGDATABASE": "postgres"}
        subprocess.run(["dropdb", "--if-exists", "--force", name], env=there, check=True)
        subprocess.run(["createdb", name], env=there, check=True)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Mapping[str, str]]:
    """A Postgres server on loopback; gives libpq's variables that lead to it."""
    if PROGRAMS is None:
        if REQUIRED:
            pytest.fail("Debian's postgresql is missing: apt-get install postgresql")
        pytest.skip("needs Debian's postgresql: apt-get install postgresql")
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    if AS_POSTGRES:
        shutil.chown(folder, "postgres", "postgres")
    data, programs, port = str(folder / "data"), PROGRAMS.parent, str(local.free_port())
    initdb = [*AS_POSTGRES, str(programs / "initdb"), "-D", data, "-A", "trust", "-U", "postgres"]
    control = [*AS_POSTGRES, str(programs / "pg_ctl"), "-D", data, "-w"]
    options = f"-p {port} -c listen_addresses=127.0.0.1 -k {folder}"
    try:
        subprocess.run([*initdb, "-N"], check=True, stdout=subprocess.DEVNULL, cwd="/")
        log = ["-l", str(folder / "log")]
        subprocess.run(
            [*control, "-o", options, *log, "start"],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd="/",
        )
        try:
            yield {"PGHOST": str(folder), "PGPORT": port, "PGUSER": "postgres"}
        finally:
            stop = [*control, "-m", "immediate", "stop"]
            subprocess.run(stop, check=True, stdout=subprocess.DEVNULL, cwd="/")
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def database(postgres: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> Database:
    """An empty database, which this process's environment leads to."""
    made = Database({**postgres, "PGDATABASE": f"dagster_{uuid.uuid4().hex[:12]}"})
    for name, value in made.environment.items():
        monkeypatch.setenv(name, value)
    made.make_anew()
    return made
