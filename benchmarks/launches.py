"""Real servers, launches in processes that can be killed, and the books to judge them by.

Each launch is forked off a server process that has imported everything (`multiprocessing`'s fork
server), so that starting one costs little and SIGKILL ends it as it would end any worker.
"""

import contextlib
import hashlib
import json
import logging
import multiprocessing
import secrets
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

import requests
from pydantic import SecretStr

from nanobanana_pipeline import local
from nanobanana_pipeline.generation.engine.engine import Report
from nanobanana_pipeline.generation.engine.timing import Timing
from nanobanana_pipeline.generation.launch_steps import collect, plan, settle_shard
from nanobanana_pipeline.generation.manifest.manifest import CurrentManifest, read_current
from nanobanana_pipeline.generation.planning.cells import build_cells
from nanobanana_pipeline.generation.planning.planner import Launch
from nanobanana_pipeline.ledger import Entry, Ledger
from nanobanana_pipeline.prompts import prompt_set
from nanobanana_pipeline.prompts.table import read_prompt_table
from nanobanana_pipeline.prompts.validation import check_prompts
from nanobanana_pipeline.provider.account import Account
from nanobanana_pipeline.provider.downloads import Downloader
from nanobanana_pipeline.provider.modelslab.client import ModelsLab
from nanobanana_pipeline.storage import ObjectStore, s3_client
from nanobanana_pipeline.storage.bucket import claim_bucket
from nanobanana_pipeline.webhooks.inbox import Webhooks

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

SEED: Final = 1
SLOTS: Final = 10
SMALL: Final = {"width": 1024, "height": 1024}
SUBMIT_SECONDS: Final = 6.0
LEASE_MARGIN_SECONDS: Final = 1.0
LEASE_SECONDS: Final = SUBMIT_SECONDS + 2 * LEASE_MARGIN_SECONDS
READERS: Final = 16
READY_SECONDS: Final = 60

_FORKS: Final = multiprocessing.get_context("forkserver")


@dataclass(frozen=True)
class Site:
    """Where launches happen; fit to be handed to another process.

    A subclass may buy from another provider than the emulator.

    Attributes:
        s3_url: the S3 server.
        base_url: the emulator's API.
        webhooks_url: the receiver.
        webhooks_secret: what its addresses are signed with.
        server, api: the module of the provider's server, and the path of its API.
        realm: of the bucket.
        parameters: of every launch.
        submit_seconds: of a POST's deadline.
    """

    server: ClassVar = "nanobanana_pipeline.emulator"
    api: ClassVar = "/api/v1/enterprise/nano_banana/"
    realm: ClassVar = "emulator"
    parameters: ClassVar[Mapping[str, Any]] = SMALL
    submit_seconds: ClassVar[float] = SUBMIT_SECONDS

    s3_url: str
    base_url: str
    webhooks_url: str
    webhooks_secret: str = field(repr=False)

    def client(self) -> "S3Client":
        """An S3 client for this site, whatever the environment says."""
        found = local.s3_environment(self.s3_url)
        return s3_client(
            endpoint_url=found["AWS_ENDPOINT_URL_S3"],
            aws_access_key_id=found["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=found["AWS_SECRET_ACCESS_KEY"],
            region_name=found["AWS_DEFAULT_REGION"],
        )

    def store(self) -> ObjectStore:
        """The whole bucket."""
        return ObjectStore(self.client(), local.BUCKET)

    def account(self) -> Account:
        """Who buys; its POSTs have a short deadline, so that a dead claim is soon in doubt."""
        return Account(
            self.realm,
            ModelsLab(
                self.base_url,
                SecretStr(local.API_KEY),
                connections=2 * SLOTS + 8,
                submit_seconds=self.submit_seconds,
            ),
            Downloader(["127.0.0.1"]),
            SLOTS,
            Webhooks(self.webhooks_url, SecretStr(self.webhooks_secret)),
        )

    def admin(self, name: str) -> Any:  # noqa: ANN401 - the emulator's own dict
        """What the provider's server says of its books."""
        root = self.base_url.partition("/api/")[0]
        return requests.get(f"{root}/admin/{name}", timeout=60).json()


@contextlib.contextmanager
def site(data: Path, options: Sequence[str], site_type: type[Site] = Site) -> Iterator[Site]:
    """Run the S3 server, the provider's server and the receiver of webhooks until the block ends.

    Args:
        data: an empty folder.
        options: command-line options of the provider's server.
        site_type: whose provider.

    Raises:
        LocalServerError: a server did not come up.
    """
    with local.s3_server(data / "s3") as s3_url, servers(data, s3_url, options, site_type) as made:
        yield made


@contextlib.contextmanager
def servers(
    data: Path, s3_url: str, options: Sequence[str], site_type: type[Site] = Site
) -> Iterator[Site]:
    """The same for an S3 server that runs already.

    Raises:
        LocalServerError: a server did not come up.
    """
    port, mail_port = local.free_port(), local.free_port()
    root, mail = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{mail_port}"
    api = f"{root}{site_type.api}"
    made = site_type(s3_url, api, mail, secrets.token_hex(32))
    claim_bucket(made.store(), made.realm)
    with (
        local.child(
            "the provider",
            [
                *(sys.executable, "-m", made.server, "--port", str(port)),
                *("--data", str(data / "emulator"), *options),
            ],
            log=data / "emulator.log",
            ready=lambda: _answers(root),
        ),
        local.child(
            "the receiver of webhooks",
            [
                *(sys.executable, "-c", "from nanobanana_pipeline.cli import app; app()"),
                *("webhooks", "serve", "--port", str(mail_port)),
            ],
            log=data / "webhooks.log",
            ready=lambda: _answers(mail),
            environment={
                **local.s3_environment(s3_url),
                "NANOBANANA_BASE_URL": api,
                "NANOBANANA_REALM": made.realm,
                "NANOBANANA_BUCKET": local.BUCKET,
                "NANOBANANA_WEBHOOK_URL": mail,
                "NANOBANANA_WEBHOOK_SECRET": made.webhooks_secret,
            },
        ),
    ):
        yield made


def _answers(root: str) -> bool:
    try:
        return requests.get(f"{root}/healthz", timeout=2).ok
    except requests.RequestException:
        return False


Target = Callable[[Site, str, str], None]
"""A launch: the site, the prompt set's name, the run's id."""


def start(target: Target, place: Site, name: str, run_id: str) -> ForkServerProcess:
    """Start a launch in a process of its own; returns as it begins."""
    # Only where the fork server is not running yet; the modules of all targets.
    _FORKS.set_forkserver_preload(["benchmarks.capped_workers", "benchmarks.plain_script"])
    begun, tells = _FORKS.Pipe(duplex=False)
    process = _FORKS.Process(target=_begin, args=(tells, target, place, name, run_id), daemon=True)
    process.start()
    tells.close()
    with begun:
        if not begun.poll(READY_SECONDS):
            process.kill()
            raise RuntimeError(f"launch {run_id} did not begin in {READY_SECONDS} s")
        begun.recv()
    return process


def _begin(tells: Any, target: Target, place: Site, name: str, run_id: str) -> None:  # noqa: ANN401
    logging.disable(logging.WARNING)  # what is retried or resumed here is the point
    tells.send(None)
    target(place, name, run_id)


def launch(place: Site, name: str, run_id: str) -> None:
    """One launch of a partition, from its plan to its manifest, with leases of 8 s for 150 s."""
    timing = Timing(lease_margin_seconds=LEASE_MARGIN_SECONDS)
    store, account = place.store(), place.account()
    made = plan(store, account, Launch(name, SEED, run_id=run_id, parameters=place.parameters))
    report = Report()
    for shard in made.shards:
        report += settle_shard(store, account, run_id, shard, timing=timing)
    collect(store, account, made, report)


def keep_prompts(store: ObjectStore, data: Path, name: str, prompts: Iterable[str]) -> None:
    """Make a prompt set, by way of a table in `data`."""
    table = data / f"{name}.jsonl"
    table.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    prompt_set.snapshot(store, name, check_prompts(read_prompt_table(table)))


def manifest_of(store: ObjectStore, name: str) -> CurrentManifest:
    """The manifest that the launches of a prompt set came to."""
    current, _ = read_current(store, name, SEED)
    if current is None:
        raise RuntimeError(f"{name} has no manifest")
    return current


def request_keys(place: Site, name: str) -> list[str]:
    """The request keys of a partition, as every launch of it will find them."""
    store, model = place.store(), place.account().provider.request_model
    snapshot = prompt_set.current(store, name)
    if snapshot is None:
        raise RuntimeError(f"{name} has no prompts")
    cells = build_cells(
        prompt_set.load(store, name, snapshot.fingerprint),
        seed=SEED,
        parameters={**model.default_parameters(), **place.parameters},
        realm=place.realm,
        limit=None,
        model=model,
    )
    return list(cells.frame["request_key"])


def read_entries(store: ObjectStore, keys: Iterable[str]) -> list[Entry]:
    """Ledger entries; those of requests that were never tried are left out."""
    ledger = Ledger(store)
    with ThreadPoolExecutor(READERS) as readers:
        return [held.entry for held in readers.map(ledger.read, keys) if held is not None]


def wrong_images(store: ObjectStore, entries: Iterable[Entry]) -> list[str]:
    """Read every image again: those that are gone, or not what their hash says."""
    images = [image for entry in entries for image in entry.images]

    def is_wrong(key: str, sha256: str, size: int) -> bool:
        found = store.get(key)
        return (
            found is None
            or len(found.body) != size
            or hashlib.sha256(found.body).hexdigest() != sha256
        )

    with ThreadPoolExecutor(READERS) as readers:
        wrong = readers.map(lambda image: is_wrong(image.key, image.sha256, image.size), images)
        return [image.key for image, bad in zip(images, wrong, strict=True) if bad]
