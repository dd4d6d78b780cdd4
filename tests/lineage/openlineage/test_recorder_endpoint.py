"""Events at an endpoint over real HTTP, that takes them, refuses them, or says nothing."""

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from nanobanana_pipeline.lineage.openlineage import recorder
from nanobanana_pipeline.lineage.openlineage.facts import RunFacts
from nanobanana_pipeline.lineage.openlineage.recorder import record_run
from nanobanana_pipeline.storage import ObjectStore
from tests.cli.conftest import Command, emulator, nanobanana, table
from tests.conftest import API_KEY
from tests.lineage.openlineage.schemas import check_event, events_of, states_of

__all__ = ["emulator", "nanobanana", "table"]

ENDPOINT_KEY = "lineage-key-must-stay-secret"


@dataclass
class Endpoint:
    url: str
    status: int
    silent: threading.Event
    """Set, the endpoint answers; else it keeps its callers waiting."""
    paths: list[str] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    taken: list[dict[str, Any]] = field(default_factory=list)


Endpoints = Callable[..., Endpoint]


@pytest.fixture(autouse=True)
def _clean_openlineage() -> Iterator[None]:
    """The client copies its variables to others of its own."""
    before = {name: value for name, value in os.environ.items() if "OPENLINEAGE" in name}
    for name in before:
        del os.environ[name]
    yield
    for name in [name for name in os.environ if "OPENLINEAGE" in name]:
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture
def endpoints(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoints]:
    """Starts an endpoint and names it in the environment: `endpoints(status=503)`."""
    with ExitStack() as stack:

        def start(status: int = 201, *, answers: bool = True) -> Endpoint:
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            here = Endpoint(
                f"http://127.0.0.1:{listener.getsockname()[1]}", status, threading.Event()
            )
            if answers:
                here.silent.set()
            stack.callback(here.silent.set)

            def take(request: Request, body: bytes) -> Response:
                here.silent.wait(20)
                here.paths.append(request.url.path)
                here.keys.append(request.headers.get("authorization"))
                here.taken.append(json.loads(body))
                return Response(status_code=here.status)

            async def lineage(request: Request) -> Response:
                return await run_in_threadpool(take, request, await request.body())

            app = Starlette(routes=[Route("/{path:path}", lineage, methods=["POST"])])
            server = uvicorn.Server(
                uvicorn.Config(
                    app,
                    log_level="error",
                    lifespan="off",
                    # Its own would close all handlers there are; absl's takes pytest's file along.
                    log_config=None,
                )
            )
            serving = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
            serving.start()
            stack.callback(serving.join)
            stack.callback(setattr, server, "should_exit", True)  # noqa: FBT003 - setattr's
            stack.callback(here.silent.set)
            monkeypatch.setenv("OPENLINEAGE_URL", here.url)
            return here

        yield start


def test_the_endpoint_gets_what_the_bucket_has(
    nanobanana: Command,
    table: Path,
    store: ObjectStore,
    endpoints: Endpoints,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENLINEAGE_API_KEY", ENDPOINT_KEY)
    monkeypatch.setenv("OPENLINEAGE_NAMESPACE", "pictures")
    here = endpoints()
    assert nanobanana("generate", table, "--seeds", "7").exit_code == 0
    kept = {(e["run"]["runId"], e["eventType"]): e for e in events_of(store)}
    assert states_of(here.taken) == ["START", "COMPLETE", "START", "RUNNING", "COMPLETE"]
    assert set(here.paths) == {"/api/v1/lineage"}
    assert set(here.keys) == {f"Bearer {ENDPOINT_KEY}"}
    for event in here.taken:
        # The client adds a tag with its own version, and nothing else.
        tags = event["run"]["facets"].pop("tags")["tags"]
        assert [tag["key"] for tag in tags] == ["openlineage_client_version"]
        check_event(event)
        assert event == kept[event["run"]["runId"], event["eventType"]]
        assert event["job"]["namespace"] == "pictures"


def test_no_secret_is_in_any_event_or_warning(
    nanobanana: Command,
    table: Path,
    store: ObjectStore,
    endpoints: Endpoints,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    secrets = [API_KEY, os.environ["AWS_SECRET_ACCESS_KEY"], ENDPOINT_KEY, "webhook-" + "s" * 20]
    caplog.set_level(logging.INFO)
    here = endpoints(status=401)
    monkeypatch.setenv("OPENLINEAGE_API_KEY", ENDPOINT_KEY)
    monkeypatch.setenv("OPENLINEAGE_URL", here.url.replace("//", f"//me:{ENDPOINT_KEY}@"))
    monkeypatch.setenv("NANOBANANA_WEBHOOK_URL", "http://127.0.0.1:9/hooks")
    monkeypatch.setenv("NANOBANANA_WEBHOOK_SECRET", secrets[-1])
    # Somebody asks the client to send variables along: not with these in the environment.
    monkeypatch.setenv("OPENLINEAGE__FACETS__ENVIRONMENT_VARIABLES", '["NANOBANANA_API_KEY"]')
    assert nanobanana("generate", table, "--seeds", "7").exit_code == 0
    told = json.dumps([here.taken, events_of(store)])
    assert len(here.taken) == 5
    warned = "\n".join(r.getMessage() for r in caplog.records if r.name == recorder.__name__)
    assert "HTTP status: 401" in warned
    for secret in secrets:
        assert secret not in told
        assert secret not in warned


def test_an_endpoint_that_says_nothing_keeps_no_run_waiting(
    store: ObjectStore,
    endpoints: Endpoints,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(recorder, "ENDPOINT_SECONDS", 0.2)
    here = endpoints(answers=False)
    with record_run(store, "generated_images", "r", RunFacts):
        assert here.taken == []
    assert states_of(events_of(store, "r")) == ["START", "COMPLETE"]
    assert "did not take all events" in caplog.text
    here.silent.set()
    deadline = time.monotonic() + 20
    while len(here.taken) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert states_of(here.taken) == ["START", "COMPLETE"], "they are sent once it answers"


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "no url at all"])
def test_an_endpoint_that_is_not_there_ends_no_run(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, url: str
) -> None:
    monkeypatch.setenv("OPENLINEAGE_URL", url)
    with record_run(store, "generated_images", "r", RunFacts):
        pass
    assert states_of(events_of(store, "r")) == ["START", "COMPLETE"]
    [warned] = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert "the OpenLineage endpoint did not take" in warned.getMessage()


def test_nothing_is_sent_or_printed_where_nobody_asked_for_it(
    store: ObjectStore, endpoints: Endpoints, capfd: pytest.CaptureFixture[str]
) -> None:
    here = endpoints()
    del os.environ["OPENLINEAGE_URL"]
    with record_run(store, "generated_images", "r", RunFacts):
        pass
    assert here.taken == []
    assert capfd.readouterr() == ("", "")
