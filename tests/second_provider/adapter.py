"""A vendor that is not ModelsLab: orders by `text`, `w`, `h` and `n`; pictures come inline."""

import base64
import json
from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import Field, SecretStr

from nanobanana_pipeline.provider import outcomes as to
from nanobanana_pipeline.provider.downloads import Downloader
from nanobanana_pipeline.provider.http import Answer, Http, NoAnswer, NotSentError
from nanobanana_pipeline.provider.protocol import Delivered, ReadOutput
from nanobanana_pipeline.request import ImageRequest
from nanobanana_pipeline.storage import ObjectStore

WORDS = {"text": "prompt", "w": "width", "h": "height", "n": "samples", "ref": "track_id"}


class Order(ImageRequest):
    """A request of this vendor: small pictures, two at most, and no references."""

    prompt: str = Field(min_length=1)
    width: int = Field(64, ge=16, le=512)
    height: int = Field(64, ge=16, le=512)
    seed: int = Field(ge=0)
    samples: int = Field(1, ge=1, le=2)
    ref_sha256: tuple[str, ...] = Field((), max_length=0)
    webhook: str | None = None
    track_id: str | None = None


class Atelier:
    """One account at the vendor; a `Provider`."""

    request_model: ClassVar[type[ImageRequest]] = Order
    kept_seconds: ClassVar = 3600

    def __init__(self, url: str, key: SecretStr, submit_seconds: float) -> None:
        self._url, self._key, self.submit_seconds = url.rstrip("/"), key, submit_seconds
        self._http = Http(32)

    def submit(
        self, request: ImageRequest, references: Sequence[bytes] = (), *, may_send: Any = None
    ) -> to.SubmitOutcome:
        del references  # `Order` has none
        order = {"seed": request.seed, "tell": request.webhook}
        order |= {word: getattr(request, name) for word, name in WORDS.items()}
        try:
            answer = self._call("POST", "orders", order, self.submit_seconds, may_send)
        except NotSentError as error:
            return to.NotSent(str(error))
        except NoAnswer as error:
            return to.Unknown(str(error))
        match answer.status, _json(answer):
            case 201, {"order": str(name)}:
                return to.Queued(name)
            case 422, {"why": str(why)}:
                return to.Refused(why)
            case 401 | 402, _:
                return to.Halted(f"HTTP {answer.status}")
            case 429, _:
                return to.RateLimited(float(answer.headers.get("Retry-After", 1)), "too many")
        return to.Unknown(f"HTTP {answer.status}")

    def fetch(self, provider_id: str) -> to.FetchOutcome:
        try:
            answer = self._call("GET", f"orders/{provider_id}", None, 20.0)
        except (NotSentError, NoAnswer) as error:
            return to.Unknown(str(error))
        match answer.status, _json(answer):
            case 200, {"state": "ready", "images": [*images], "text": str(text)}:
                return to.Done(provider_id, tuple(map(str, images)), to.Echo(prompt=text))
            case 200, {"state": "drawing"}:
                return to.Queued(provider_id)
            case 404, _:
                return to.Missing("there is no such order")
        return to.Unknown(f"HTTP {answer.status}")

    def reader(self, store: ObjectStore, downloader: Downloader) -> ReadOutput:
        del store, downloader  # every picture comes inline
        return lambda output: Delivered(base64.b64decode(output))

    def folders(self, store: ObjectStore) -> list[ObjectStore]:
        del store  # this vendor writes into nobody's bucket
        return []

    def health(self) -> dict[str, str]:
        return {name: str(value) for name, value in _json(self._call("GET", "health")).items()}

    def _call(self, verb: str, at: str, body: Any = None, by: Any = 20, ask: Any = None) -> Answer:
        headers, url = {"Authorization": self._key.get_secret_value()}, f"{self._url}/{at}"
        kinds = {"headers": headers, "deadline_seconds": by, "max_bytes": 2**24, "may_send": ask}
        return self._http.call(verb, url, body=body and json.dumps(body).encode(), **kinds)


def _json(answer: Answer) -> dict[str, Any]:
    is_object = answer.body[:1] + answer.body[-1:] == b"{}"
    return dict(json.loads(answer.body)) if is_object else {}
