"""What the engine tells an OpenTelemetry receiver, and what it costs when nobody asks."""

import gzip
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)

from nanobanana_pipeline.generation.engine.metrics import open_metrics
from nanobanana_pipeline.ledger import State
from nanobanana_pipeline.storage import ObjectStore
from tests.conftest import API_KEY, Emulators, account_for
from tests.launching import keep_prompts, launch, prompts

TOKEN = "receiver-token-must-stay-secret"


@dataclass
class Receiver:
    """An OTLP receiver: what each instance said last."""

    url: str
    bodies: list[bytes] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)
    answer: int = 200

    def instances(self) -> dict[str, dict[str, Any]]:
        """By `service.instance.id`: a figure by its name and state."""
        found: dict[str, dict[str, Any]] = {}
        for body in self.bodies:
            for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics:
                told = {a.key: a.value.string_value for a in resource.resource.attributes}
                figures = found.setdefault(told["service.instance.id"], {"resource": told})
                for metric in (m for s in resource.scope_metrics for m in s.metrics):
                    for point in getattr(metric, str(metric.WhichOneof("data"))).data_points:
                        state = [a.value.string_value for a in point.attributes]
                        figures["/".join([metric.name, *state])] = point
        return found


def value(point: Any) -> float:
    return float(getattr(point, point.WhichOneof("value")))


@contextmanager
def receiving() -> Iterator[Receiver]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            packed = self.headers.get("Content-Encoding") == "gzip"
            heard.bodies.append(gzip.decompress(body) if packed else body)
            heard.tokens.add(f"{self.path} {self.headers.get('Authorization')}")
            self.send_response(heard.answer)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        heard = Receiver(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield heard
        server.shutdown()
        thread.join()


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    with receiving() as found:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", found.url)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", f"authorization=Bearer%20{TOKEN}")
        yield found


def test_a_receiver_is_told_what_was_bought_brought_and_how_long_it_took(
    store: ObjectStore, emulators: Emulators, receiver: Receiver
) -> None:
    keep_prompts(store, "set", prompts(12))
    emulator = emulators(cap=3, latency_seconds=(0.1, 0.2), moods={"http_500_after": 0.3})
    account = account_for(emulator.base_url, store, price_per_image=Decimal("0.04"))
    launched = launch(store, account)
    report = launched.report
    [(instance, told)] = receiver.instances().items()
    assert instance.startswith(f"{launched.made.run_id}/")
    assert told["resource"]["service.name"] == "nanobanana"
    assert {
        state.value: value(told[f"nanobanana.requests/{state.value}"])
        for state in State
        if f"nanobanana.requests/{state.value}" in told
    } == {state.value: count for state, count in report.states.items()}
    assert report.states[State.IN_DOUBT]
    assert report.states[State.SETTLED]
    assert value(told["nanobanana.requests.accepted"]) == report.bought
    assert value(told["nanobanana.images.spent"]) == report.spent == 12
    assert value(told["nanobanana.cost"]) == pytest.approx(0.48)
    assert value(told["nanobanana.images.stored"]) == report.images
    assert value(told["nanobanana.bytes.stored"]) == report.size
    limited = told.get("nanobanana.rate_limited")
    assert (value(limited) if limited else 0) == report.rate_limited
    assert value(told["nanobanana.slots.used"]) == 0
    assert value(told["nanobanana.slots.limit"]) >= 1
    assert told["nanobanana.provider.duration"].count == report.served
    assert told["nanobanana.download.duration"].count == report.images
    assert told["nanobanana.put.duration"].count == report.images
    assert told["nanobanana.put.duration"].sum > 0
    assert receiver.tokens == {f"/v1/metrics Bearer {TOKEN}"}
    assert not any(API_KEY.encode() in body for body in receiver.bodies)


def test_every_shard_is_an_instance_of_its_own_that_tells_its_end(
    store: ObjectStore, emulators: Emulators, receiver: Receiver
) -> None:
    keep_prompts(store, "set", prompts(6))
    launched = launch(store, account_for(emulators().base_url, store), shard_size=2)
    instances = receiver.instances()
    assert len(instances) == len(launched.made.shards) == 3
    stored = [value(told["nanobanana.images.stored"]) for told in instances.values()]
    assert stored == [2, 2, 2]
    # A price that is not known is not 0.
    assert not any("nanobanana.cost" in told for told in instances.values())


def test_figures_are_sent_while_a_shard_runs(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "50")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "pictures")
    with open_metrics("run", None) as metrics:
        metrics.slots(3, 10)
        while not receiver.bodies:
            threading.Event().wait(0.02)
        [told] = receiver.instances().values()
        assert value(told["nanobanana.slots.used"]) == 3
        assert told["resource"]["service.name"] == "pictures"


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "nonsense"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "-1"),
        ("OTEL_EXPORTER_OTLP_HEADERS", TOKEN),
    ],
)
def test_what_is_wrong_with_metrics_is_logged_and_stops_no_purchase(
    store: ObjectStore,
    emulators: Emulators,
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    name: str,
    setting: str,
) -> None:
    assert receiver.url
    monkeypatch.setenv(name, setting)
    keep_prompts(store, "set", prompts(2))
    launched = launch(store, account_for(emulators().base_url, store))
    assert launched.states == {"settled": 2}
    said = [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert said
    assert TOKEN not in caplog.text


def test_a_receiver_that_fails_keeps_no_shard_waiting_for_long(
    store: ObjectStore, emulators: Emulators, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.answer = 503
    keep_prompts(store, "set", prompts(2))
    launched = launch(store, account_for(emulators().base_url, store))
    assert launched.states == {"settled": 2}
    assert receiver.bodies
    assert "metrics batch" in caplog.text
    assert TOKEN not in caplog.text


def test_unasked_for_nothing_is_imported_and_no_thread_runs() -> None:
    program = """
import sys, threading
from nanobanana_pipeline.generation import launch_steps
from nanobanana_pipeline.generation.engine.metrics import NO_METRICS, Duration, open_metrics
with open_metrics("run", None) as metrics:
    assert metrics is NO_METRICS
    metrics.accepted()
    metrics.slots(1, 2)
    with metrics.timed(Duration.PUT):
        pass
assert threading.active_count() == 1
assert not [name for name in sys.modules if name.startswith("opentelemetry")]
"""
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True)
