"""AWS credentials that do not last as long as a run: refreshed by boto3, or told with a remedy."""

import json
import os
import signal
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
import tenacity

from nanobanana_pipeline import local
from nanobanana_pipeline.errors import StorageError, StorageUnavailable
from nanobanana_pipeline.generation.launch_steps import settle_shard
from nanobanana_pipeline.ledger import State
from nanobanana_pipeline.storage import ObjectStore, s3_client
from tests.conftest import Emulators, account_for
from tests.faults.conftest import server_of
from tests.launching import admin, bought, keep_prompts, launch, planned, prompts, states
from tests.s3_proxy import Refusal, S3Proxy, wait_until

REQUESTS = 12
SHORT = timedelta(minutes=5)
"""boto3 asks for new credentials ten minutes before these end: that is, before each call."""


def secret_of(name: str) -> str:
    return f"secret-of-{name}"


class Agent(BaseHTTPRequestHandler):
    """Gives credentials to a container, as ECS and EKS do."""

    pair: ClassVar[str]
    lifetime: ClassVar[timedelta]
    asked: ClassVar[int]
    is_down: ClassVar[bool]

    def do_GET(self) -> None:
        type(self).asked += 1
        if self.is_down:
            self.send_error(500)
            return
        found = {
            "AccessKeyId": self.pair,
            "SecretAccessKey": secret_of(self.pair),
            "Token": "",
            "Expiration": (datetime.now(UTC) + self.lifetime).strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        body = json.dumps(found).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch, s3_url: str) -> Iterator[type[Agent]]:
    """An agent on loopback, and the environment of a container that asks it."""

    class Fresh(Agent):
        pair = "first"
        lifetime = SHORT
        asked = 0
        is_down = False

    assert s3_url  # whose variables go now, so that none but the agent gives credentials
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with ThreadingHTTPServer(("127.0.0.1", 0), Fresh) as server:
        url = f"http://127.0.0.1:{server.server_port}/credentials"
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", url)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield Fresh
        server.shutdown()
        thread.join()


@pytest.fixture
def two_pairs(tmp_path: Path) -> Iterator[S3Proxy]:
    """An S3 server of its own that knows both pairs, behind a proxy."""
    data = tmp_path / "s3"
    with local.s3_server(data) as url, S3Proxy(url) as proxy:
        config = data / "s3.json"
        known = json.loads(config.read_text())
        known["identities"] += [
            {
                "name": name,
                "credentials": [{"accessKey": name, "secretKey": secret_of(name)}],
                "actions": known["identities"][0]["actions"],
            }
            for name in ("first", "second")
        ]
        config.write_text(json.dumps(known))
        os.kill(server_of(data), signal.SIGHUP)  # SeaweedFS reads its identities anew
        wait_until(lambda: _knows(url, "second"))
        yield proxy


def _knows(url: str, name: str) -> bool:
    client = s3_client(
        endpoint_url=url, aws_access_key_id=name, aws_secret_access_key=secret_of(name)
    )
    try:
        ObjectStore(client, local.BUCKET).get("nothing")
    except StorageError:
        return False
    return True


def test_credentials_are_refreshed_within_a_run(
    two_pairs: S3Proxy, agent: type[Agent], emulators: Emulators
) -> None:
    """The first pair runs out in the middle: S3 refuses it, and only the second goes on."""
    emulator = emulators(latency_seconds=(1.5, 2))
    store = ObjectStore(s3_client(endpoint_url=two_pairs.url), local.BUCKET, "launch")
    account = account_for(emulator.base_url, store)
    keep_prompts(store, "set", prompts(REQUESTS))
    assert two_pairs.access_keys == {"first"}
    withdrawn = threading.Event()

    def rule(_method: str, _path: str) -> Refusal | None:
        if bought(emulator) >= 4 and agent.pair == "first":
            agent.pair = "second"
            threading.Timer(2.0, withdrawn.set).start()  # what was signed before may still come
        is_late = withdrawn.is_set() and two_pairs.access_key == "first"
        return Refusal(400, "ExpiredToken") if is_late else None

    two_pairs.rule = rule
    made = launch(store, account)
    assert withdrawn.is_set()
    assert two_pairs.access_keys == {"first", "second"}
    assert (made.states, made.report.bought) == ({"settled": REQUESTS}, REQUESTS)
    assert admin(emulator, "purchases")["bought_twice"] == 0


def test_an_agent_that_is_down_for_a_moment_is_waited_for(
    two_pairs: S3Proxy, agent: type[Agent]
) -> None:
    store = ObjectStore(s3_client(endpoint_url=two_pairs.url), local.BUCKET, "x")
    store.put("a", b"1")
    agent.is_down = True
    asked = agent.asked

    def come_back() -> None:
        wait_until(lambda: agent.asked > asked)
        agent.is_down = False

    back = threading.Thread(target=come_back)
    back.start()
    store.put("a", b"2")
    back.join()
    agent.is_down = True
    with pytest.raises(StorageUnavailable, match="container-role"):
        store.create("b", b"1")


def test_an_agent_that_gives_what_has_expired_is_told(
    two_pairs: S3Proxy, agent: type[Agent], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ObjectStore.get.retry, "stop", tenacity.stop_after_delay(0.2))
    store = ObjectStore(s3_client(endpoint_url=two_pairs.url), local.BUCKET, "x")
    agent.lifetime = -SHORT
    with pytest.raises(StorageUnavailable, match="refreshed credentials are still expired"):
        store.get("a")


def test_a_token_that_nobody_refreshes_ends_the_run_with_the_remedy_and_loses_nothing(
    store: ObjectStore, s3_url: str, emulators: Emulators
) -> None:
    """As `ExpiredToken` comes: for every call, from one moment on."""
    emulator = emulators(latency_seconds=(3, 3))
    account = account_for(emulator.base_url, store)
    keep_prompts(store, "set", prompts(REQUESTS))
    made = planned(store)
    with S3Proxy(s3_url) as proxy:
        # All that are at the provider are written down as accepted by then.
        proxy.rule = lambda _method, _path: (
            Refusal(400, "ExpiredToken") if states(store).get(State.ACCEPTED, 0) >= 4 else None
        )
        with pytest.raises(StorageError, match=r"ExpiredToken.*renew the AWS session"):
            settle_shard(proxy.store_like(store), account, made.run_id, made.shards[0], slots=4)
    left = states(store)
    sold = bought(emulator)
    assert sold < REQUESTS
    assert left[State.ACCEPTED] == sold
    assert set(left) <= {State.ACCEPTED, State.OPEN}
    again = launch(store, account)
    assert (again.states, again.report.bought) == ({"settled": REQUESTS}, REQUESTS - sold)
    assert admin(emulator, "purchases")["bought_twice"] == 0
