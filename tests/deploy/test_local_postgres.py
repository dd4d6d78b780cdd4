"""`deploy/local-postgres`: its settings on real Postgres, its scripts, its units."""

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import pytest
import requests
import yaml
from dagster._grpc.client import DagsterGrpcClient

from dagster_nanobanana.partitions import prompt_sets, seeds
from dagster_nanobanana.resources import S3, BucketValues, NanobananaResource
from nanobanana_pipeline import local
from nanobanana_pipeline.emulator import EmulatorThread
from nanobanana_pipeline.generation.manifest.manifest import read_current
from nanobanana_pipeline.ledger import State
from nanobanana_pipeline.settings import Settings
from nanobanana_pipeline.storage import ObjectStore
from tests.cli.test_profile import START_SECONDS
from tests.conftest import API_KEY, Emulators
from tests.dagster_nanobanana.conftest import SMALL, Project
from tests.deploy.conftest import REQUIRED, Database, restarting
from tests.graphql import Dagster
from tests.launching import bought, keep_prompts, prompts, states
from tests.s3_proxy import wait_until
from tests.test_provider_page import ROOT

DEPLOY = ROOT / "deploy" / "local-postgres"
UNITS = sorted((DEPLOY / "systemd").iterdir())
INSTALLED = "/opt/nanobanana"
BIN = Path(sys.executable).parent
ROWS = 20
"""Half a minute's work: a restart takes less."""


@pytest.fixture
def home(tmp_path: Path, database: Database, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A DAGSTER_HOME with the settings that are shipped."""
    assert database
    folder = tmp_path / "home"
    folder.mkdir()
    shutil.copy(DEPLOY / "dagster.yaml", folder)
    monkeypatch.setenv("DAGSTER_HOME", str(folder))
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
    [command] = re.findall(r"^ExecStart=(.+)$", read_unit(unit), re.MULTILINE)
    return shlex.split(command.replace(f"{INSTALLED}/.venv/bin", str(BIN)))


def read_unit(unit: str) -> str:
    return (DEPLOY / "systemd" / f"{unit}.service").read_text()


@dataclass(frozen=True)
class Machine:
    """The units as systemd would start them: each with the variables of its files, and no more."""

    folder: Path
    ports: Mapping[str, str]
    variables: Mapping[str, Mapping[str, str]]
    """What the administrator has written into the two files."""

    @contextlib.contextmanager
    def running(self, unit: str, ready: Callable[[], bool]) -> Iterator[None]:
        """A unit, until the block ends as `systemctl stop` ends it."""
        files = re.findall(r"^EnvironmentFile=.*/(.+)$", read_unit(unit), re.MULTILINE)
        given = {name: value for file in files for name, value in self.variables[file].items()}
        path = {"PATH": "/usr/local/bin:/usr/bin:/bin"}
        assert {"Restart=on-failure", "RestartSec=5"} <= set(read_unit(unit).splitlines())
        words = [self.ports.get(word, word) for word in started_by(unit)]
        words = [word.replace("/etc/nanobanana", str(self.folder)) for word in words]
        with local.child(
            unit,
            [
                *restarting("env", "-i"),
                *(f"{name}={value}" for name, value in {**path, **given}.items()),
                *words,
            ],
            log=self.folder / f"{unit}.log",
            ready=ready,
            grace_seconds=60,
        ):
            yield

    def code(self) -> contextlib.AbstractContextManager[None]:
        server = DagsterGrpcClient(port=int(self.ports["4000"]))

        def serves() -> bool:
            return bool(server.health_check_query() == "SERVING")  # type: ignore[no-untyped-call]

        return self.running("nanobanana-code", serves)

    @contextlib.contextmanager
    def ui_and_daemon(self) -> Iterator[Dagster]:
        url = f"http://127.0.0.1:{self.ports['3000']}"

        def answers() -> bool:
            with contextlib.suppress(requests.RequestException):
                return requests.get(f"{url}/server_info", timeout=2).ok
            return False

        with (
            self.running("nanobanana-daemon", lambda: True),
            self.running("nanobanana-webserver", answers),
        ):
            yield Dagster(url)


@pytest.fixture
def machine(
    home: Path, database: Database, store: ObjectStore, emulators: Emulators, tmp_path: Path
) -> tuple[Machine, EmulatorThread]:
    """Everything installed, and the provider that its settings lead to."""
    provider = emulators(latency_seconds=(3, 4), cap=2)
    ports = {port: str(local.free_port()) for port in ("3000", "4000")}
    workspace = (DEPLOY / "workspace.yaml").read_text()
    assert "port: 4000\n" in workspace
    (tmp_path / "workspace.yaml").write_text(workspace.replace("4000", ports["4000"]))
    written = {
        "dagster.env": {
            **variables(DEPLOY / "dagster.env"),
            **database.environment,
            "DAGSTER_HOME": str(home),
        },
        "nanobanana.env": {
            "NANOBANANA_API_KEY": API_KEY,
            "NANOBANANA_BASE_URL": provider.base_url,
            "NANOBANANA_BUCKET": store.bucket,
            "NANOBANANA_PREFIX": store.prefix.rstrip("/"),
            "NANOBANANA_ALLOWED_HOSTS": "127.0.0.1",
            **{name: value for name, value in os.environ.items() if name.startswith("AWS_")},
        },
    }
    return Machine(tmp_path, ports, written), provider


@pytest.mark.timeout(900)
def test_a_run_outlives_the_ui_and_the_daemon_and_stops_well_with_the_code(
    machine: tuple[Machine, EmulatorThread], store: ObjectStore
) -> None:
    here, provider = machine
    keep_prompts(store, "animals", prompts(ROWS))

    def launch(dagster: Dagster, seed: str) -> str:
        dagster.add_partition("seed", seed)
        return dagster.launch("generated_images", SMALL, prompt_set="animals", seed=seed)

    with here.code():
        with here.ui_and_daemon() as dagster:
            dagster.add_partition("prompt_set", "animals")
            run_id = launch(dagster, "1")
            wait_until(lambda: bought(provider) > 0, START_SECONDS)
        assert bought(provider) < ROWS
        with here.ui_and_daemon() as dagster:
            assert dagster.wait_for(run_id) == "SUCCESS"
            assert bought(provider) == ROWS
            stopped = launch(dagster, "2")
            wait_until(lambda: bought(provider) > ROWS + 2, START_SECONDS)
    assert ROWS + 2 < bought(provider) < 2 * ROWS
    assert set(states(store)) <= {State.OPEN, State.SETTLED}
    with here.code(), here.ui_and_daemon() as dagster:
        assert dagster.wait_for(stopped) in {"CANCELED", "FAILURE"}
        assert dagster.wait_for(launch(dagster, "2")) == "SUCCESS"
    for seed in (1, 2):
        current, _ = read_current(store, "animals", seed)
        assert current is not None
        assert current.cells == {"settled": ROWS}
    assert bought(provider) == 2 * ROWS
    assert not [log for log in here.folder.glob("*.log") if API_KEY in log.read_text()]


@pytest.mark.parametrize("unit", ["nanobanana-daemon", "nanobanana-webserver"])
def test_the_units_name_options_that_there_are(unit: str) -> None:
    program, *words = started_by(unit)
    command = [word for word in words[:1] if not word.startswith("-")]
    helped = subprocess.run(
        [program, *command, "--help"], capture_output=True, text=True, check=True
    )
    options = [word for word in words if word.startswith("-")]
    assert [option for option in options if not re.search(rf"{option}\b", helped.stdout)] == []
