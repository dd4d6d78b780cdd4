"""The provider as the client shows it, with books that nobody can falsify."""

import functools
import io
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, Protocol

from PIL import Image

from nanobanana_pipeline.errors import DownloadError, ImageGone
from nanobanana_pipeline.provider.downloads import Downloader
from nanobanana_pipeline.provider.modelslab.request import ModelsLabRequest
from nanobanana_pipeline.provider.outcomes import (
    Done,
    Echo,
    Failed,
    FetchOutcome,
    Halted,
    Missing,
    NotSent,
    Queued,
    RateLimited,
    Refused,
    SubmitOutcome,
    Unknown,
)
from nanobanana_pipeline.provider.protocol import Delivered, MaySend, ReadOutput
from nanobanana_pipeline.request import ImageRequest
from nanobanana_pipeline.storage import ObjectStore
from tests.ageing.scheduler import Scheduler

__all__ = ["SUBMIT_SECONDS", "FakeDownloader", "FakeProvider", "Order"]

SUBMIT_SECONDS: Final = 90.0
DRAWING_SECONDS: Final = {"queued long": 4000.0, "done": 0.0, "done without id": 0.0}

SOUND: Final = 3
"""Tickets of a call that goes well; each fault has one."""
UNHEARD: Final[Mapping[str, SubmitOutcome]] = {
    "not sent": NotSent("no route"),
    "unheard": Unknown("connection lost"),
}
UNSOLD: Final[Mapping[str, SubmitOutcome]] = {
    "rate limited": RateLimited(3.0, "too many"),
    "failed": Failed("no picture came of it"),
    "refused": Refused("a rule"),
    "halted": Halted("no credits left"),
}
SOLD: Final = ("done", "done without id", "queued long", "lost", "lost", "lost but id", "slow")
SUBMIT_FAULTS: Final = (*SOLD, *UNHEARD, *UNSOLD)
FETCH_FAULTS: Final = ("unknown", "rate limited", "missing", "missing", "slow", "halted")
DOWNLOAD_FAULTS: Final = ("unknown", "gone", "cut off", "slow")


class Auditor(Protocol):
    """Who is told what passes between worker and provider."""

    def posting(self, key: str, nonce: str) -> None: ...

    def sold(self) -> None: ...

    def told(self, order: "Order") -> None: ...

    def leaving(self) -> None: ...


@dataclass(eq=False)
class Order:
    """One sale.

    Attributes:
        failed: nothing was drawn, and no money taken.
        forgotten: the queue was cleared: the id is unknown from now on.
        broken: its pictures never were any.
    """

    number: int
    key: str
    nonce: str
    track_id: str
    request: ImageRequest
    sold: float
    ready: float
    failed: bool = False
    forgotten: bool = False
    broken: bool = False

    @property
    def provider_id(self) -> str:
        return str(1000 + self.number)

    @property
    def urls(self) -> tuple[str, ...]:
        return tuple(
            f"https://pictures.test/{self.number}/{sample}.png"
            for sample in range(self.request.samples)
        )

    def is_kept(self, now: float) -> bool:
        return not self.forgotten and now < self.sold + FakeProvider.kept_seconds

    def webhook(self, *, shape: int) -> bytes:
        """What is told of it: with or without `track_id`, under one or the other name."""
        said: dict[str, object] = {"status": "failed" if self.failed else "success"}
        said["request_id" if shape == 1 else "id"] = self.provider_id
        if shape != 2:
            said["track_id"] = self.track_id
        return json.dumps(said).encode()


class FakeProvider:
    """A `Provider`.

    Attributes:
        orders: every sale there ever was.
        healthy: whether every call is answered soundly.
    """

    request_model: ClassVar[type[ImageRequest]] = ModelsLabRequest
    kept_seconds: ClassVar = 24 * 3600
    submit_seconds = SUBMIT_SECONDS

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self.auditor: Auditor
        self.orders: list[Order] = []
        self.healthy = True

    def submit(
        self,
        request: ImageRequest,
        references: Sequence[bytes] = (),
        *,
        may_send: MaySend | None = None,
    ) -> SubmitOutcome:
        del references
        self.auditor.leaving()
        began = self._scheduler.now
        faults = () if self.healthy else (*("queued",) * SOUND, *SUBMIT_FAULTS)
        outcome = self._scheduler.pause("POST", ("queued", *faults))
        if outcome in UNHEARD:
            return UNHEARD[outcome]
        if may_send is not None and not may_send():
            return NotSent("it was not to be sent any more")
        key, nonce = (request.track_id or "").split(".")[:2]
        self.auditor.posting(key, nonce)
        if outcome in UNSOLD:
            return UNSOLD[outcome]
        order = self._sell(key, nonce, request, DRAWING_SECONDS.get(outcome, 20.0))
        if outcome == "slow":
            self._scheduler.pause("the answer to POST")
        if outcome == "lost" or self._scheduler.now - began > SUBMIT_SECONDS:
            return Unknown("no answer in time")
        if outcome == "lost but id":
            return Unknown("HTTP 500", order.provider_id)
        if outcome == "done without id":
            return Done(None, order.urls)
        self.auditor.told(order)
        if outcome == "done":
            return Done(order.provider_id, order.urls, Echo(seed=request.seed))
        return Queued(order.provider_id)

    def fetch(self, provider_id: str) -> FetchOutcome:
        self.auditor.leaving()
        faults = () if self.healthy else (*("ok",) * SOUND, *FETCH_FAULTS)
        match self._scheduler.pause(f"fetch {provider_id}", ("ok", *faults)):
            case "unknown":
                return Unknown("connection lost")
            case "rate limited":
                return RateLimited(3.0, "too many")
            case "missing":
                return Missing("Request not found")
            case "halted":
                return Halted("no credits left")
            case "slow":
                answer = self._state(provider_id)
                self._scheduler.pause(f"the answer to fetch {provider_id}")
                return answer
        return self._state(provider_id)

    def reader(self, store: ObjectStore, downloader: Downloader) -> ReadOutput:
        del store
        return lambda output: Delivered(downloader.download(output))

    def folders(self, store: ObjectStore) -> list[ObjectStore]:
        del store
        return []

    def health(self) -> dict[str, str]:
        return {}

    def _state(self, provider_id: str) -> FetchOutcome:
        now = self._scheduler.now
        order = next((o for o in self.orders if o.provider_id == provider_id), None)
        if order is None or not order.is_kept(now):
            return Missing("Request not found")
        if order.failed:
            return Failed("no picture came of it")
        if now < order.ready:
            return Queued(None)
        return Done(None, order.urls, _echo(order))

    def _sell(self, key: str, nonce: str, request: ImageRequest, drawing: float) -> Order:
        now = self._scheduler.now
        order = Order(
            len(self.orders), key, nonce, request.track_id or "", request, now, now + drawing
        )
        self.orders.append(order)
        self._scheduler.tell(f"    sold as {order.provider_id}")
        self.auditor.sold()
        return order


class FakeDownloader:
    """Stands where `Downloader` does."""

    def __init__(self, scheduler: Scheduler, provider: FakeProvider) -> None:
        self._scheduler = scheduler
        self._provider = provider

    def download(self, url: str) -> bytes:
        self._provider.auditor.leaving()
        faults = () if self._provider.healthy else (*("ok",) * SOUND, *DOWNLOAD_FAULTS)
        outcome = self._scheduler.pause(f"GET {url}", ("ok", *faults))
        number, sample = (int(part) for part in url[:-4].split("/")[-2:])
        order = self._provider.orders[number]
        data = picture(number, sample)
        is_there = self._scheduler.now >= order.ready and order.is_kept(self._scheduler.now)
        match outcome:
            case "unknown":
                raise DownloadError(f"{url}: connection lost")
            case "slow":
                self._scheduler.pause(f"the answer to GET {url}")
            case "cut off":
                return data[:100]
        if outcome == "gone" or order.failed or not is_there:
            raise ImageGone(f"{url}: HTTP 404")
        return b"not a picture" if order.broken else data


@functools.lru_cache
def picture(number: int, sample: int) -> bytes:
    """A valid PNG that says which sample of which order it is."""
    text = f"order\0{number} {sample}".encode()
    chunk = len(text).to_bytes(4) + b"tEXt" + text + zlib.crc32(b"tEXt" + text).to_bytes(4)
    blank = _blank()
    end = blank.index(b"IDAT") - 4
    return blank[:end] + chunk + blank[end:]


@functools.lru_cache
def _blank() -> bytes:
    file = io.BytesIO()
    Image.new("1", (1024, 1024)).save(file, "PNG", optimize=True)
    return file.getvalue()


def _echo(order: Order) -> Echo:
    return Echo(seed=order.request.seed, prompt=order.request.prompt)
