"""`Metrics` of a running shard, pushed by OpenTelemetry's OTLP where its variables ask for it.

They are pushed, not scraped: a run lives for minutes and several share a host, so that the ports
to scrape would be unknown, and the last figures would be lost with the process. Each shard is an
instance of its own whose counters begin at 0; its last figures are sent as it ends. Without
``OTEL_EXPORTER_OTLP_ENDPOINT`` nothing is imported, counted or started.
"""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from enum import StrEnum
from importlib.metadata import version as installed_version
from typing import TYPE_CHECKING, Final

from nanobanana_pipeline.ledger import State, new_nonce

if TYPE_CHECKING:
    from opentelemetry.metrics import Meter
    from opentelemetry.sdk.metrics import MeterProvider

__all__ = ["COUNTERS", "DURATIONS", "GAUGES", "NO_METRICS", "Duration", "Metrics", "open_metrics"]

log = logging.getLogger(__name__)

ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT")
SHUTDOWN_SECONDS: Final = 5.0
"""How long a shard's end waits for a receiver that is slow."""
BUCKETS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600)
HEADER_LOGGER: Final = "opentelemetry.util.re"
"""The logger that shows a header that it cannot read, which may be a token."""

COUNTERS: Final = {
    "nanobanana.requests": ("{request}", "requests that ended, by state; open ones bought nothing"),
    "nanobanana.requests.accepted": ("{request}", "requests that the provider accepted"),
    "nanobanana.rate_limited": ("{answer}", "answers that said 429"),
    "nanobanana.images.spent": ("{image}", "images that count as bought"),
    "nanobanana.cost": ("{money}", "the same in your currency, where the price is known"),
    "nanobanana.images.stored": ("{image}", "pictures brought into the bucket"),
    "nanobanana.bytes.stored": ("By", "their bytes"),
}
GAUGES: Final = {
    "nanobanana.slots.used": ("{request}", "requests at the provider"),
    "nanobanana.slots.limit": ("{request}", "most that may be there now"),
}


class Duration(StrEnum):
    """What is timed; the value is the metric's name."""

    PROVIDER = "nanobanana.provider.duration"
    DOWNLOAD = "nanobanana.download.duration"
    PUT = "nanobanana.put.duration"


DURATIONS: Final = {
    Duration.PROVIDER: "from sending a request to noticing that it is done",
    Duration.DOWNLOAD: "reading one picture",
    Duration.PUT: "storing one picture in the bucket",
}


class Metrics:
    """Counts, gauges and durations of one shard; nothing without a meter. Thread-safe."""

    def __init__(self, meter: "Meter | None" = None, price: Decimal | None = None) -> None:
        self._price = price
        self._is_exporting = meter is not None
        if meter is None:
            return
        self._counters = {
            name: meter.create_counter(name, unit, description)
            for name, (unit, description) in COUNTERS.items()
            if price is not None or name != "nanobanana.cost"
        }
        self._gauges = {
            name: meter.create_gauge(name, unit, description)
            for name, (unit, description) in GAUGES.items()
        }
        self._durations = {
            name: meter.create_histogram(
                name, "s", description, explicit_bucket_boundaries_advisory=BUCKETS
            )
            for name, description in DURATIONS.items()
        }

    def ended(self, state: State, count: int = 1) -> None:
        """So many requests ended in this state."""
        if count:
            self._count("requests", count, state.value)

    def accepted(self) -> None:
        """The provider accepted a request."""
        self._count("requests.accepted", 1)

    def rate_limited(self) -> None:
        """The provider said 429."""
        self._count("rate_limited", 1)

    def spent(self, images: int) -> None:
        """So many images count as bought."""
        self._count("images.spent", images)
        if self._price is not None:
            self._count("cost", float(images * self._price))

    def stored(self, images: int, size: int) -> None:
        """Pictures were stored, with so many bytes in all."""
        self._count("images.stored", images)
        self._count("bytes.stored", size)

    def slots(self, used: int, limit: int) -> None:
        """How many requests are at the provider, and how many may be."""
        if self._is_exporting:
            self._gauges["nanobanana.slots.used"].set(used)
            self._gauges["nanobanana.slots.limit"].set(limit)

    def record(self, duration: Duration, seconds: float) -> None:
        """Something was done after so many seconds."""
        if self._is_exporting:
            self._durations[duration].record(seconds)

    @contextmanager
    def timed(self, duration: Duration) -> Iterator[None]:
        """Record how long a block took, unless it fails."""
        started = time.monotonic()
        yield
        self.record(duration, time.monotonic() - started)

    def _count(self, what: str, by: float, state: str | None = None) -> None:
        if self._is_exporting:
            attributes = None if state is None else {"state": state}
            self._counters[f"nanobanana.{what}"].add(by, attributes)


NO_METRICS: Final = Metrics()
"""Where no endpoint is configured."""


@contextmanager
def open_metrics(run_id: str, price: Decimal | None) -> Iterator[Metrics]:
    """Metrics of one shard, sent by OTLP over HTTP as OpenTelemetry's own variables say.

    The run id stands in ``service.instance.id``, which is made unique. Where they cannot be sent
    that is logged; buying and storing go on.
    """
    provider = _provider(run_id) if any(os.environ.get(name) for name in ENDPOINTS) else None
    if provider is None:
        yield NO_METRICS
        return
    try:
        yield Metrics(provider.get_meter("nanobanana_pipeline"), price)
    finally:
        try:
            provider.shutdown(timeout_millis=SHUTDOWN_SECONDS * 1000)
        except Exception as error:  # noqa: BLE001 - the library names no class; nothing hangs on it
            log.warning("the last metrics of this shard were not sent: %s", error)


def _provider(run_id: str) -> "MeterProvider | None":
    """Collects and sends, in a thread of its own; None if OpenTelemetry's variables are wrong."""
    # 0.2 s of CPU, spent only where metrics are exported.
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter  # noqa: PLC0415
    from opentelemetry.sdk.metrics import MeterProvider  # noqa: PLC0415
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader  # noqa: PLC0415
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource  # noqa: PLC0415

    logging.getLogger(HEADER_LOGGER).addFilter(_without_headers)
    try:
        reader = PeriodicExportingMetricReader(OTLPMetricExporter())
    except Exception as error:  # noqa: BLE001 - whatever the library finds wrong with a variable
        log.warning("no metrics are sent: correct the variables OTEL_…: %s", error)
        return None
    service = {
        "service.name": "nanobanana",
        "service.version": installed_version("nanobanana-pipeline"),
    }
    # OpenTelemetry's variables take precedence, but for the instance: shared, it would mix figures.
    resource = (
        Resource(service)
        .merge(OTELResourceDetector().detect())
        .merge(Resource({"service.instance.id": f"{run_id}/{new_nonce()}"}))
    )
    # A child of Dagster's multiprocess executor ends without exit handlers: none is relied on.
    return MeterProvider([reader], resource, shutdown_on_exit=False)


def _without_headers(record: logging.LogRecord) -> bool:
    """Keep the message without the header that it quotes."""
    record.args = ("(not shown)",) if record.args else None
    return True
