"""`deploy/local-postgres`: its settings on real Postgres, its scripts, its units."""

import configparser
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
import yaml

from dagster_project.partitions import prompt_sets, seeds
from dagster_project.resources import S3, BucketValues, NanobananaResource
from nanobanana_pipeline import local
from nanobanana_pipeline.emulator import EmulatorThread
from nanobanana_pipeline.settings import Settings
from nanobanana_pipeline.storage import ObjectStore
from tests.conftest import API_KEY, Emulators
from tests.dagster_project.conftest import Project
from tests.deploy.conftest import REQUIRED, Database
from tests.launching import bought
from tests.test_provider_page import ROOT

DEPLOY = ROOT / "deploy" / "local-postgres"
UNITS = sorted((DEPLOY / "systemd").iterdir())
INSTALLED = "/opt/nanobanana"
BIN = Path(sys.executable).parent


@pytest.fixture
def home(tmp_path: Path, database: Database, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A DAGSTER_HOME with the settings that are shipped."""
    assert database
    folder = tmp_path / "home"
    folder.mkdir()
    shutil.copy(DEPLOY / "dagster.yaml", folder)
    monkeypatch.setenv("DAGSTER_HOME", str(folder))
    monkeypatch.setenv("NANOBANANA_COMPUTE_LOGS", str(tmp_path / "logs"))
    return folder


def project_on(
    instance: dg.DagsterInstance, store: ObjectStore, provider: EmulatorThread, csv: Path
) -> Project:
    """Our assets on this instance."""
    nanobanana = NanobananaResource(
        s3=S3(),
        api_key=API_KEY,
        base_url=provider.base_url,
        bucket=store.bucket,
        prefix=store.prefix.rstrip("/"),
        allowed_hosts="127.0.0.1",
    )
    resources = {"nanobanana": nanobanana, "io_manager": BucketValues(nanobanana=nanobanana)}
    return Project(instance, store, provider, resources, csv)


def script(name: str, argument: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [DEPLOY / name, str(argument)], capture_output=True, text=True, check=False
    )


def known(instance: dg.DagsterInstance) -> tuple[set[str], list[str], list[str]]:
    """What is lost with the database: runs, and the keys of partitions."""
    return (
        {run.run_id for run in instance.get_runs()},
        list(instance.get_dynamic_partitions(str(prompt_sets.name))),
        list(instance.get_dynamic_partitions(str(seeds.name))),
    )


def test_a_backup_brings_all_back_and_without_one_nothing_is_bought_twice(
    home: Path, database: Database, store: ObjectStore, emulators: Emulators, tmp_path: Path
) -> None:
    table = tmp_path / "table.csv"
    with dg.DagsterInstance.from_config(str(home)) as instance:
        project = project_on(instance, store, emulators(), table)
        assert project.make_prompt_set().success
        assert project.generate().success
        assert bought(project.emulator) == 3
        before = known(instance)
        assert before[0]
        assert before[1:] == (["demo"], ["1"])
    saved = script("backup", tmp_path)
    assert saved.returncode == 0, saved.stderr
    dump = Path(saved.stdout.strip())
    assert dump.stat().st_mode & 0o077 == 0
    assert script("restore", table).returncode != 0

    database.make_anew()
    restored = script("restore", dump)
    assert restored.returncode == 0, restored.stderr
    with dg.DagsterInstance.from_config(str(home)) as instance:
        assert known(instance) == before

    database.make_anew()
    with dg.DagsterInstance.from_config(str(home)) as instance:
        assert known(instance) == (set(), [], [])
        again = project_on(instance, store, project.emulator, table)
        assert again.make_prompt_set().success
        assert again.generate().success
        assert known(instance)[1:] == before[1:]
    assert bought(project.emulator) == 3


def test_the_settings_are_those_of_the_project_and_postgres() -> None:
    shipped = yaml.safe_load((ROOT / "dagster.yaml").read_text())
    ours = yaml.safe_load((DEPLOY / "dagster.yaml").read_text())
    shared = {name: ours[name] for name in shipped}
    del shared["concurrency"]["runs"]["max_concurrent_runs"]
    assert shared == shipped


def variables(path: Path) -> dict[str, str]:
    """A file of variables, with those that are only proposed."""
    return dict(re.findall(r"^#?([A-Z_]+)=(.*)$", path.read_text(), re.MULTILINE))


def test_secrets_stand_in_one_file_that_only_some_units_read() -> None:
    secret = set(variables(DEPLOY / "nanobanana.env"))
    known_settings = {f"NANOBANANA_{name.upper()}" for name in Settings.model_fields}
    assert {name for name in secret if name.startswith("NANOBANANA_")} <= known_settings
    assert not any(variables(DEPLOY / "nanobanana.env").values())
    assert not {"PGPASSWORD", *secret} & set(variables(DEPLOY / "dagster.env"))
    readers = {u.stem for u in UNITS if "/nanobanana.env" in u.read_text()}
    assert readers == {"nanobanana-code", "nanobanana-webhooks"}


@pytest.mark.skipif(
    shutil.which("systemd-analyze") is None and not REQUIRED,
    reason="needs Debian's systemd: apt-get install systemd",
)
def test_systemd_takes_the_units(tmp_path: Path) -> None:
    for unit in UNITS:
        text = unit.read_text().replace(f"{INSTALLED}/.venv/bin", str(BIN))
        (tmp_path / unit.name).write_text(text.replace(INSTALLED, str(ROOT)))
    names = [str(tmp_path / unit.name) for unit in UNITS]
    checked = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *names],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (checked.returncode, checked.stderr) == (0, "")


def started_by(unit: str) -> list[str]:
    """What a unit starts, with this environment's programs."""
    read = configparser.RawConfigParser(strict=False)
    read.optionxform = str  # type: ignore[assignment,method-assign]
    read.read(DEPLOY / "systemd" / f"{unit}.service")
    return shlex.split(read["Service"]["ExecStart"].replace(f"{INSTALLED}/.venv/bin", str(BIN)))


@pytest.fixture
def code_server(home: Path, database: Database, tmp_path: Path) -> Iterator[str]:
    """The code server with what its unit gives it, and no more; gives its port."""
    port = str(local.free_port())
    words = started_by("nanobanana-code")
    words[words.index("-p") + 1] = port
    environment = {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "DAGSTER_HOME": str(home),
        "NANOBANANA_COMPUTE_LOGS": str(tmp_path / "logs"),
        **database.environment,
    }
    health = [str(BIN / "dagster"), "api", "grpc-health-check", "-p", port]
    with local.child(
        "the code server",
        ["env", "-i", *(f"{name}={value}" for name, value in environment.items()), *words],
        log=tmp_path / "code.log",
        ready=lambda: subprocess.run(health, check=False, capture_output=True).returncode == 0,
        grace_seconds=20,
    ):
        yield port


def test_the_code_server_serves_the_definitions_to_the_workspace(
    code_server: str, tmp_path: Path
) -> None:
    workspace = (DEPLOY / "workspace.yaml").read_text()
    words = started_by("nanobanana-code")
    port = words[words.index("-p") + 1]
    assert f"port: {port}\n" in workspace
    (tmp_path / "workspace.yaml").write_text(workspace.replace(port, code_server))
    listed = subprocess.run(
        [BIN / "dagster", "job", "list", "-w", str(tmp_path / "workspace.yaml")],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": "/usr/bin:/bin"},
    )
    assert listed.returncode == 0, listed.stderr
    assert "resolve_doubts" in listed.stdout


@pytest.mark.parametrize("unit", ["nanobanana-daemon", "nanobanana-webserver"])
def test_the_units_name_options_that_there_are(unit: str) -> None:
    program, *words = started_by(unit)
    command = [word for word in words[:1] if not word.startswith("-")]
    helped = subprocess.run(
        [program, *command, "--help"], capture_output=True, text=True, check=True
    )
    options = [word for word in words if word.startswith("-")]
    assert [option for option in options if not re.search(rf"{option}\b", helped.stdout)] == []
