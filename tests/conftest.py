"""Real parts: one SeaweedFS a session, one fresh prefix a test, emulators on call."""

import os
import signal
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

from nanobanana_pipeline import local
from nanobanana_pipeline.emulator import EmulatorConfig, EmulatorThread
from nanobanana_pipeline.features import workers
from nanobanana_pipeline.provider.account import Account
from nanobanana_pipeline.settings import Settings
from nanobanana_pipeline.storage import ObjectStore, bucket_check, s3_client

# A busy machine is no fault of what is tested.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

API_KEY = "test-key-9f1c-must-stay-secret"
"""Tests look for this everywhere it must not be."""

ROOT = Path(__file__).parents[1]

SLOW = (
    "tests/browser/test_ui.py",
    "tests/deploy/test_celery.py",
    "tests/ageing/test_ageing.py",
    "tests/test_kills_short.py",
    "tests/test_caps_short.py",
    "tests/dagster_nanobanana/test_backfill.py",
    "tests/deploy/test_local_postgres.py",
    "tests/faults/test_stopping.py",
    "tests/cli/test_profile.py",
    "tests/test_chaos.py",
    "tests/deploy/test_kubernetes.py",
    "tests/emulator/test_openapi.py",
    "tests/rehearsal/test_every_quirk.py",
    "tests/features/test_table.py",
    "tests/dagster_nanobanana/test_sensors.py",
    "tests/datasets/test_top_up.py",
)
"""Files whose tests take longest: minutes first, and what mostly waits beside what computes."""

TOGETHER = {
    "tests/deploy/test_celery.py",
    "tests/deploy/test_distribution.py",
    "tests/witness/test_vendor_sdk.py",
}
"""Files whose tests share what takes long to make: one worker gets them all."""

NOT_FAST = (
    *SLOW,
    *TOGETHER,
    "tests/ageing",
    "tests/audit",
    "tests/browser",
    "tests/cli",
    "tests/dagster_nanobanana",
    "tests/deploy",
    "tests/emulator",
    "tests/faults",
    "tests/generation/budget",
    "tests/generation/engine",
    "tests/generation/manifest",
    "tests/generation/recovery",
    "tests/rehearsal",
    "tests/second_provider",
    "tests/stored",
    "tests/webhooks",
    "tests/witness",
    "tests/datasets/test_croissant.py",
    "tests/datasets/test_datasets_page.py",
    "tests/datasets/test_gallery.py",
    "tests/datasets/test_pull.py",
    "tests/datasets/test_release.py",
    "tests/datasets/test_release_commands.py",
    "tests/datasets/test_release_streams.py",
    "tests/datasets/test_repair.py",
    "tests/datasets/test_splits.py",
    "tests/features/test_judging.py",
    "tests/features/test_workers.py",
    "tests/generation/test_fields.py",
    "tests/generation/test_launch.py",
    "tests/ledger/test_existence.py",
    "tests/lineage",
    "tests/prompts/test_references.py",
    "tests/provider/modelslab/test_delivery.py",
    "tests/provider/modelslab/test_own_bucket.py",
    "tests/provider/test_http.py",
    "tests/storage",
    "tests/test_fast.py",
)
"""Files and folders without the mark `fast`: they need Dagster or a browser, or take long.

With `pytest -m fast` they are not even imported."""

Emulators = Callable[..., EmulatorThread]


def is_fast(path: Path) -> bool:
    """Whether the tests of this file, or of this folder, have the mark `fast`."""
    within = f"{path.relative_to(ROOT).as_posix()}/"
    return not within.startswith(tuple(f"{name}/" for name in NOT_FAST))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    return (config.getoption("-m") == "fast" and not is_fast(collection_path)) or None


class Scheduling(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
    """Hands out single tests, or all of a file of `TOGETHER`, in the order of the collection.

    xdist takes what precedes the last `::` of an id for the tests' common scope.
    Marks of groups would do, but xdist 3.8 does not see them under pytest 9.
    """

    def add_node_collection(self, node: WorkerController, collection: Sequence[str]) -> None:
        together = [nodeid.partition("::")[0] in TOGETHER for nodeid in collection]
        super().add_node_collection(
            node,
            [
                nodeid if shared else f"{nodeid}::"
                for nodeid, shared in zip(collection, together, strict=True)
            ],
        )

    def remove_node(self, node: WorkerController) -> str | None:
        crashed: str | None = super().remove_node(node)
        return crashed and crashed.removesuffix("::")


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    return Scheduling(config, log)


@pytest.hookimpl(tryfirst=True)  # before `-m` looks at the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest, so that no worker is left alone with it at the end."""
    # The scheduler goes by ids: of two tests with the same one it would run only one.
    assert len({item.nodeid for item in items}) == len(items), "see the fixture `own_id`"
    for item in items:
        if is_fast(item.path):
            item.add_marker("fast")
    rank = {name: number for number, name in enumerate(SLOW)}
    items.sort(key=lambda item: rank.get(item.nodeid.partition("::")[0], len(rank)))


@pytest.fixture(params=[pytest.param(None, id=pytest.HIDDEN_PARAM)])
def own_id() -> None:
    """Gives each of schemathesis' tests an id of its own.

    Under pytest 9 all operations of a document have the same one, unless the test is parametrised.
    """


@pytest.fixture(scope="session", autouse=True)
def _clean_environment() -> Iterator[None]:
    """No setting or cloud account of whoever runs the tests may leak in."""
    with pytest.MonkeyPatch.context() as patch:
        # With it, each process that a test starts would compile Dagster anew.
        patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
        for name in list(os.environ):
            if name.startswith(("NANOBANANA_", "AWS_", "DAGSTER_", "OPENLINEAGE_", "OTEL_")):
                patch.delenv(name)
        # A shell has what it starts in the background ignore it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        yield


@pytest.fixture(scope="session", autouse=True)
def _fast_tests_leave_dagster_alone(pytestconfig: pytest.Config) -> Iterator[None]:
    yield
    if pytestconfig.getoption("-m") == "fast":
        assert "dagster" not in sys.modules


@pytest.fixture(scope="session", autouse=True)
def _processes_are_kept() -> Iterator[None]:
    """Pictures are measured in processes, whose start takes longer than most tests: it is shared.

    `tests/features/test_workers.py` has each call start its own, as users do.
    """
    start, idle = workers._process, list[ProcessPoolExecutor]()
    with pytest.MonkeyPatch.context() as patch:

        def process() -> ProcessPoolExecutor:
            if not idle:
                idle.append(start())
                patch.setattr(idle[0], "shutdown", partial(idle.append, idle[0]))
            return idle.pop()

        patch.setattr(workers, "_process", process)
        yield
    for each in idle:
        each.shutdown()


@pytest.fixture(scope="session")
def s3_url(tmp_path_factory: pytest.TempPathFactory, _clean_environment: None) -> Iterator[str]:
    """A real S3 server, and the environment that boto3 needs to find it."""
    with (
        local.s3_server(tmp_path_factory.mktemp("s3")) as url,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in local.s3_environment(url).items():
            patch.setenv(name, value)
        yield url


@pytest.fixture(scope="session", autouse=True)
def _one_bucket_check() -> Iterator[None]:
    """A check takes seconds, and each test has a prefix of its own: one check a server is enough.

    Its verdict is kept below each prefix, as after a check.
    """
    check, found = bucket_check._check, dict[str, bucket_check.BucketVerdict]()

    def once(
        stores: Sequence[ObjectStore], rounds: int, renew: Callable[[], None], *, copies: bool
    ) -> bucket_check.BucketVerdict:
        url = stores[0].client.meta.endpoint_url
        if (
            len(stores) > 1
            or copies
            or rounds != 48
            or url != os.environ.get("AWS_ENDPOINT_URL_S3")
        ):
            return check(stores, rounds, renew, copies=copies)
        if url not in found:
            plain = ObjectStore(s3_client(), stores[0].bucket, stores[0].prefix)
            found[url] = check([plain], rounds, renew, copies=copies)
        return found[url]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bucket_check, "_check", once)
        patch.setattr(once, "real", check, raising=False)
        yield


@pytest.fixture
def check_for_real(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the bucket check race also where the session's server was checked before."""
    monkeypatch.setattr(bucket_check, "_check", vars(bucket_check._check)["real"])


@pytest.fixture
def store(s3_url: str) -> ObjectStore:
    """An empty bucket, as far as a test can see."""
    assert s3_url
    return ObjectStore(s3_client(), local.BUCKET, f"test-{uuid.uuid4().hex}")


@pytest.fixture
def emulators() -> Iterator[Emulators]:
    """Starts emulators that end with the test: `emulators(latency_seconds=(0.1, 0.2), cap=5)`."""
    with ExitStack() as stack:

        def start(**config: object) -> EmulatorThread:
            return stack.enter_context(
                EmulatorThread(EmulatorConfig.model_validate({"latency_seconds": (0, 0), **config}))
            )

        yield start


def settings_for(base_url: str, store: ObjectStore, **more: object) -> Settings:
    """Settings as a user would have them for this provider and bucket."""
    return Settings.load(
        api_key=API_KEY,
        base_url=base_url,
        bucket=store.bucket,
        prefix=store.prefix.rstrip("/"),
        allowed_hosts=("127.0.0.1",),
        **more,
    )


def account_for(base_url: str, store: ObjectStore, **more: object) -> Account:
    """An account at this provider."""
    return Account.open(settings_for(base_url, store, **more))
