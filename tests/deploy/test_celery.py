"""`deploy/celery` as it is shipped: Postgres, Redis, and workers on hosts of their own."""

import contextlib
import os
import re
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import time
import uuid
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import requests
import yaml

from dagster_nanobanana.executor import executor
from nanobanana_pipeline import local
from nanobanana_pipeline.emulator import EmulatorConfig, EmulatorThread
from nanobanana_pipeline.generation.planning.run_files import read_shard_keys
from nanobanana_pipeline.ledger import Held, Ledger, State
from nanobanana_pipeline.settings import Settings
from nanobanana_pipeline.storage import ObjectStore, s3_client
from tests.cli.test_profile import files_with
from tests.conftest import API_KEY
from tests.deploy.conftest import REQUIRED, Database, restarting
from tests.deploy.hosts import Hosts, hosts_apart, relay
from tests.deploy.test_local_postgres import INSTALLED, variables
from tests.graphql import Dagster
from tests.launching import SMALL, admin, bought, keep_prompts, prompts
from tests.test_provider_page import ROOT

DEPLOY = ROOT / "deploy" / "celery"
BIN = Path(sys.executable).parent
PASSWORD = f"redis-{secrets.token_hex(16)}"
SLOTS = 2
DRAWING_SECONDS = 2
VISIBILITY_SECONDS = 35
PICTURE = SMALL

pytestmark = [
    pytest.mark.filterwarnings("default:these hosts are one:UserWarning"),
    pytest.mark.timeout(600),  # a dozen processes, on a machine that may be busy
]


@dataclass(frozen=True)
class Cluster:
    """All but the workers.

    Attributes:
        hosts: where workers run.
        environment: what workers are started with, beside the shipped settings.
        home: the DAGSTER_HOME that all share.
    """

    hosts: Hosts
    environment: Mapping[str, str]
    home: Path
    dagster: Dagster
    emulator: EmulatorThread
    store: ObjectStore

    @contextlib.contextmanager
    def worker(self, number: int) -> Iterator[subprocess.Popen[bytes]]:
        """A worker on one of the hosts, as its unit starts it."""
        log = self.home.parent / f"worker-{number}-{uuid.uuid4().hex[:6]}.log"
        words = started_by(DEPLOY / "systemd" / "nanobanana-worker@.service")
        words[words.index("-n") + 1] = f"host-{number}@%h"
        words[words.index("--loglevel") + 1] = "INFO"
        with local.child(
            f"worker {number}",
            [*self.hosts.begin[number], *words],
            log=log,
            ready=lambda: " ready." in log.read_text(),
            environment=self.environment,
        ) as process:
            yield process

    def launch(self, name: str, **config: object) -> str:
        self.dagster.add_partition("prompt_set", name)
        self.dagster.add_partition("seed", "1")
        config = {**PICTURE, **config}
        return self.dagster.launch("generated_images", config, prompt_set=name, seed="1")

    def deliveries(self, run_id: str) -> dict[str, list[int]]:
        """Which host's worker began each shard of a run, in order."""
        found: dict[str, list[int]] = defaultdict(list)
        with dg.DagsterInstance.from_config(str(self.home)) as instance:
            for event in instance.all_logs(run_id):
                told = event.dagster_event
                if told is None or not told.is_engine_event or "[" not in str(told.step_key):
                    continue
                metadata = told.engine_event_data.metadata
                if "Celery worker" in metadata:
                    host = str(metadata["Celery worker"].value).split("@")[0]
                    shard = str(told.step_key).partition("[")[2].rstrip("]").replace("_", "-")
                    found[shard].append(int(host.removeprefix("host-")))
        return dict(found)

    def states(self, run_id: str, shard: str) -> Counter[State]:
        """The ledger's entries of a shard, by state."""
        keys = read_shard_keys(self.store, run_id, shard)
        return Counter(
            h.entry.state for h in Ledger(self.store).read_many(keys) if isinstance(h, Held)
        )


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    """Two hosts; a warning where they are none."""
    for program, package in (("redis-server", "redis-server"), ("ip", "iproute2")):
        if shutil.which(program) is None:
            (pytest.fail if REQUIRED else pytest.skip)(f"needs Debian's {package}")
    with hosts_apart(2) as made:
        if made.why_together:
            warnings.warn(f"these hosts are one: {made.why_together}", stacklevel=1)
        yield made


@pytest.fixture(scope="module")
def redis(hosts: Hosts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A Redis server that asks for a password; gives its port on loopback."""
    assert hosts
    folder = tmp_path_factory.mktemp("redis")
    port = local.free_port()
    config = folder / "redis.conf"
    shipped = f"include {DEPLOY / 'redis.conf'}"
    here = ["bind 127.0.0.1", f"port {port}", f"dir {folder}", f"requirepass {PASSWORD}"]
    config.write_text("\n".join([shipped, *here, ""]))
    log = folder / "redis.log"
    with local.child(
        "redis",
        ["redis-server", str(config)],
        log=log,
        ready=lambda: "Ready to accept connections" in log.read_text(),
    ):
        yield port


@pytest.fixture(scope="module")
def cluster(
    hosts: Hosts,
    redis: int,
    postgres: Mapping[str, str],
    s3_url: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Cluster]:
    """`dagster dev` with the shipped settings, and its servers, which hosts reach by relays."""
    folder = tmp_path_factory.mktemp("celery")
    home = folder / "home"
    home.mkdir()
    shutil.copy(DEPLOY / "dagster.yaml", home)
    settings = yaml.safe_load((DEPLOY / "celery.yaml").read_text())
    hasty = {"visibility_timeout": VISIBILITY_SECONDS, "unacked_restore_interval": 2}
    settings["execution"]["config"]["config_source"]["broker_transport_options"] |= hasty
    (folder / "celery.yaml").write_text(yaml.safe_dump(settings))
    database = Database({**postgres, "PGDATABASE": f"dagster_{uuid.uuid4().hex[:12]}"})
    database.make_anew()
    config = EmulatorConfig(latency_seconds=(DRAWING_SECONDS, DRAWING_SECONDS))
    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        patch = enter(pytest.MonkeyPatch.context())
        emulator = enter(EmulatorThread(config))
        store = ObjectStore(s3_client(), local.BUCKET, f"test-{uuid.uuid4().hex}")

        def reachable(url: str) -> str:
            port = url.rpartition(":")[2].partition("/")[0]
            there = enter(relay(hosts.address, int(port)))
            return url.replace(f"127.0.0.1:{port}", f"{hosts.address}:{there}")

        broker = reachable(f"redis://:{PASSWORD}@127.0.0.1:{redis}")
        shared = {
            **database.environment,
            "PGHOST": hosts.address,
            "PGPORT": reachable(f"postgres://127.0.0.1:{postgres['PGPORT']}").rpartition(":")[2],
            "AWS_ENDPOINT_URL_S3": reachable(s3_url),
            "DAGSTER_HOME": str(home),
            "NANOBANANA_LOG_BUCKET": local.BUCKET,
            "NANOBANANA_CELERY": str(folder / "celery.yaml"),
            "NANOBANANA_CELERY_BROKER": f"{broker}/0",
            "NANOBANANA_CELERY_BACKEND": f"{broker}/1",
            "NANOBANANA_API_KEY": API_KEY,
            "NANOBANANA_BASE_URL": reachable(emulator.base_url),
            "NANOBANANA_BUCKET": store.bucket,
            "NANOBANANA_PREFIX": store.prefix.rstrip("/"),
            "NANOBANANA_REALM": "emulator",
            "NANOBANANA_ALLOWED_HOSTS": hosts.address,
            "PYTHONUNBUFFERED": "1",
            "PYTHONPATH": str(ROOT),
        }
        for name in ("PGHOST", "PGPORT", "PGUSER", "PGDATABASE", "NANOBANANA_LOG_BUCKET"):
            patch.setenv(name, shared[name])
        port = local.free_port()
        workspace = ["-w", str(ROOT / "workspace.yaml")]
        url = f"http://127.0.0.1:{port}"
        enter(
            local.child(
                "dagster dev",
                restarting(str(BIN / "dagster"), "dev", "-p", str(port), *workspace),
                log=folder / "dagster.log",
                ready=lambda: answers(f"{url}/server_info"),
                environment=shared,
                grace_seconds=15,
            )
        )
        yield Cluster(hosts, shared, home, Dagster(url), emulator, store)


def started_by(unit: Path) -> list[str]:
    """What a unit starts, with this environment's programs, and `%%` as systemd reads it."""
    [line] = re.findall(r"^ExecStart=(.*)$", unit.read_text(), re.MULTILINE)
    return shlex.split(line.replace(f"{INSTALLED}/.venv/bin", str(BIN)).replace("%%", "%"))


def answers(url: str) -> bool:
    try:
        return requests.get(url, timeout=2).ok
    except requests.RequestException:
        return False


def wait_for(what: str, found: Callable[[], Any], seconds: float = 180) -> Any:
    deadline = time.monotonic() + seconds
    while (value := found()) is None:
        assert time.monotonic() < deadline, what
        time.sleep(0.5)
    return value


def test_a_worker_dies_and_the_broker_gives_its_step_to_another_host(cluster: Cluster) -> None:
    keep_prompts(cluster.store, "dying", prompts(24))
    with cluster.worker(0) as dying, cluster.worker(1):
        run_id = cluster.launch("dying", shard_size=6, slots=SLOTS)

        def frozen_in_the_midst() -> str | None:
            """Freeze host 0 where requests of its shard are drawn; none is just being sent."""
            for shard, begun in cluster.deliveries(run_id).items():
                if begun != [0] or not 0 < cluster.states(run_id, shard)[State.SETTLED] < 6:
                    continue
                os.killpg(dying.pid, signal.SIGSTOP)
                time.sleep(0.3)  # what is on its way to S3 arrives
                states = cluster.states(run_id, shard)
                if states[State.ACCEPTED] and not states[State.SUBMITTING]:
                    return shard
                os.killpg(dying.pid, signal.SIGCONT)
            return None

        hit = wait_for("host 0 does not buy", frozen_in_the_midst)
        assert PASSWORD not in Path(f"/proc/{dying.pid}/cmdline").read_text()
        os.killpg(dying.pid, signal.SIGKILL)
        assert cluster.dagster.wait_for(run_id) == "SUCCESS", cluster.dagster.log_of(run_id)
        # A step that starts processes: those of Celery's own pool may not.
        features = cluster.dagster.launch("image_features", {}, prompt_set="dying", seed="1")
        assert cluster.dagster.wait_for(features) == "SUCCESS", cluster.dagster.log_of(features)
    deliveries = cluster.deliveries(run_id)
    assert len(deliveries) == 4
    assert deliveries[hit][0] == 0
    assert 1 in deliveries[hit]
    settled = sum((cluster.states(run_id, shard) for shard in deliveries), Counter())
    assert settled == {State.SETTLED: 24}
    record = admin(cluster.emulator, "purchases")
    assert (record["total"], record["bought_twice"]) == (24, 0)
    assert cluster.dagster.materialized("generated_images", ["dying|1"]) == {"dying|1"}
    for secret in (PASSWORD, API_KEY, local.SECRET_KEY):
        assert files_with(cluster.home, secret) == []


def test_terminate_reaches_a_step_on_another_host(cluster: Cluster) -> None:
    keep_prompts(cluster.store, "stopped", prompts(60, "plant"))
    before = bought(cluster.emulator)
    with cluster.worker(0):
        run_id = cluster.launch("stopped", shard_size=30, slots=SLOTS)
        begun = before + SLOTS
        wait_for("host 0 does not buy", lambda: bought(cluster.emulator) >= begun or None)
        [(running, _)] = cluster.deliveries(run_id).items()
        cluster.dagster.terminate(run_id)
        assert cluster.dagster.wait_for(run_id) == "CANCELED", cluster.dagster.log_of(run_id)
        sold = bought(cluster.emulator)
        assert sold < before + 30
        states = cluster.states(run_id, running)
        assert states[State.SETTLED] == sold - before
        assert set(states) <= {State.SETTLED, State.OPEN}
        # The shard that no worker had begun is not begun any more.
        assert list(cluster.deliveries(run_id)) == [running]
    record = admin(cluster.emulator, "purchases")
    assert (record["total"], record["bought_twice"]) == (sold, 0)


def test_the_settings_are_those_of_the_project_and_postgres_and_s3() -> None:
    shipped = yaml.safe_load((ROOT / "dagster.yaml").read_text())
    ours = yaml.safe_load((DEPLOY / "dagster.yaml").read_text())
    shared = {name: ours[name] for name in shipped}
    del shared["concurrency"]["runs"]["max_concurrent_runs"]
    assert shared == shipped


def test_steps_go_through_celery_where_its_settings_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("NANOBANANA_CELERY", raising=False)
    assert executor() is dg.in_process_executor
    monkeypatch.setenv("NANOBANANA_CELERY", str(DEPLOY / "celery.yaml"))
    chosen = executor()
    assert chosen is not dg.in_process_executor
    # The definitions load where the broker's password is not known, as they do in the UI.
    assert dg.Definitions(executor=chosen).get_repository_def()
    flat = tmp_path / "celery.yaml"
    flat.write_text("broker: redis://127.0.0.1/0\nbackend: redis://127.0.0.1/1\n")
    monkeypatch.setenv("NANOBANANA_CELERY", str(flat))
    with pytest.raises(dg.DagsterInvalidDefinitionError, match="under execution: config:"):
        executor()


def test_secrets_stand_in_one_file() -> None:
    secret = variables(DEPLOY / "nanobanana.env")
    known = {f"NANOBANANA_{name.upper()}" for name in Settings.model_fields}
    broker = {"NANOBANANA_CELERY_BROKER", "NANOBANANA_CELERY_BACKEND"}
    assert {name for name in secret if name.startswith("NANOBANANA_")} - known == broker
    assert not any(secret.values())
    assert not {"PGPASSWORD", *secret} & set(variables(DEPLOY / "dagster.env"))
    settings = (DEPLOY / "celery.yaml").read_text()
    assert set(re.findall(r"env: (\w+)", settings)) == broker


@pytest.mark.skipif(
    shutil.which("systemd-analyze") is None and not REQUIRED,
    reason="needs Debian's systemd: apt-get install systemd",
)
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    unit = DEPLOY / "systemd" / "nanobanana-worker@.service"
    text = unit.read_text().replace(f"{INSTALLED}/.venv/bin", str(BIN))
    there = tmp_path / unit.name.replace("@", "@1")
    there.write_text(text.replace(INSTALLED, str(ROOT)))
    checked = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(there)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (checked.returncode, checked.stderr) == (0, "")
