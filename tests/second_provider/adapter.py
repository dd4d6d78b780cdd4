"""A vendor that is not ModelsLab: orders by `text`, `w`, `h` and `n`; pictures come inline."""

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import SecretStr

from nanobanana_pipeline.errors import ImageBroken, OperationFailed
from nanobanana_pipeline.provider import outcomes as to
from nanobanana_pipeline.provider.downloads import Downloader
from nanobanana_pipeline.provider.http import Answer, Http, NoAnswer, NotSentError
from nanobanana_pipeline.provider.protocol import Delivered, ReadOutput
from nanobanana_pipeline.request import ImageRequest
from nanobanana_pipeline.storage import ObjectStore


class Atelier:
    """One account at the vendor; a `Provider`."""

    request_model: ClassVar = ImageRequest
    kept_seconds: ClassVar = 3600

    def __init__(self, url: str, key: SecretStr, *, submit_seconds: float = 30.0) -> None:
        self._url, self._key, self._http = url.rstrip("/"), key, Http(32)
        self.submit_seconds = submit_seconds

    def submit(self, request: ImageRequest, references: Sequence[bytes] = ()) -> to.SubmitOutcome:
        if references:
            return to.Refused("this vendor draws from no references")
        order = {"text": request.prompt, "w": request.width, "h": request.height}
        order |= {"n": request.samples, "seed": request.seed}
        order |= {"ref": request.track_id, "tell": request.webhook}
        try:
            answer = self._call("POST", "orders", json.dumps(order).encode(), self.submit_seconds)
        except NotSentError as error:
            return to.NotSent(str(error))
        except NoAnswer as error:
            return to.Unknown(str(error))
        said = _json(answer)
        why = str(said.get("why", f"HTTP {answer.status}"))
        match answer.status:
            case 201 if "order" in said:
                return to.Queued(str(said["order"]))
            case 422:
                return to.Refused(why)
            case 401 | 402:
                return to.Halted(why)
            case 429:
                return to.RateLimited(float(answer.headers.get("Retry-After", 1)), why)
        return to.Unknown(why)

    def fetch(self, provider_id: str) -> to.FetchOutcome:
        try:
            answer = self._call("GET", f"orders/{provider_id}", None, 20.0)
        except (NotSentError, NoAnswer) as error:
            return to.Unknown(str(error))
        match answer.status, _json(answer):
            case 200, {"state": "ready", "images": [*images], "text": str(text)}:
                return to.Done(provider_id, tuple(map(str, images)), prompt=text)
            case 200, {"state": "drawing"}:
                return to.Queued(provider_id)
            case 404, {"why": str(why)}:
                return to.Missing(why)
        return to.Unknown(f"HTTP {answer.status}")

    def reader(self, store: ObjectStore, downloader: Downloader) -> ReadOutput:
        del store, downloader  # every picture comes inline
        return _decode

    def folders(self, store: ObjectStore) -> list[ObjectStore]:
        del store  # this vendor writes into nobody's bucket
        return []

    def health(self) -> Mapping[str, str]:
        try:
            return {name: str(value) for name, value in _json(self._call("GET", "health")).items()}
        except (NotSentError, NoAnswer) as error:
            raise OperationFailed(str(error)) from error

    def _call(self, method: str, path: str, body: bytes | None = None, by: float = 20.0) -> Answer:
        headers = {"Authorization": self._key.get_secret_value()}
        url, sent = f"{self._url}/{path}", self._http.call
        return sent(method, url, body=body, headers=headers, deadline_seconds=by, max_bytes=2**24)


def _json(answer: Answer) -> dict[str, Any]:
    try:
        return dict(json.loads(answer.body))
    except (TypeError, ValueError):
        return {}


def _decode(output: str) -> Delivered:
    try:
        return Delivered(base64.b64decode(output, validate=True))
    except ValueError as error:
        raise ImageBroken(str(error)) from error
