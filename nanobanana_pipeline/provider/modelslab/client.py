"""ModelsLab's enterprise `nano_banana` endpoints as a `Provider`. A POST is sent only once."""

import base64
import json
import re
from collections.abc import Mapping, Sequence
from typing import ClassVar, Final
from urllib.parse import quote

from pydantic import SecretStr

from nanobanana_pipeline.provider.downloads import Downloader
from nanobanana_pipeline.provider.http import Answer, Http, NoAnswer, NotSentError
from nanobanana_pipeline.provider.modelslab.answers import parse_fetch, parse_submit
from nanobanana_pipeline.provider.modelslab.delivery import OutputReader
from nanobanana_pipeline.provider.modelslab.operations import Operations
from nanobanana_pipeline.provider.modelslab.own_bucket import read_places
from nanobanana_pipeline.provider.modelslab.request import ModelsLabRequest
from nanobanana_pipeline.provider.modelslab.secrets import mask
from nanobanana_pipeline.provider.outcomes import FetchOutcome, NotSent, SubmitOutcome, Unknown
from nanobanana_pipeline.provider.protocol import MaySend
from nanobanana_pipeline.request import ImageRequest
from nanobanana_pipeline.storage import ObjectStore

__all__ = ["ModelsLab"]

SUBMIT_SECONDS: Final = 90.0
"""A server that draws before it answers needs this long for four pictures of 2048²."""
FETCH_SECONDS: Final = 20.0
MAX_ANSWER_BYTES: Final = 128 * 2**20
"""Four inline pictures in base64, with room."""
_OWN_WEBHOOK: Final = re.compile(rb"(/webhooks\\?/[\w.-]+\\?/)[0-9a-f]{64}")


class ModelsLab:
    """Speaks to one account. Safe to share between threads.

    Args:
        base_url: ends in ``/nano_banana/``; the key is sent nowhere else.
        api_key: travels in each body, and is struck out of every answer.
        connections: the most sockets that are kept open.
        submit_seconds: the total deadline of a generation call.
    """

    request_model: ClassVar[type[ImageRequest]] = ModelsLabRequest
    kept_seconds: ClassVar[int] = 24 * 3600

    def __init__(
        self,
        base_url: str,
        api_key: SecretStr,
        *,
        connections: int = 64,
        submit_seconds: float = SUBMIT_SECONDS,
    ) -> None:
        self._base_url = base_url.rstrip("/")
        self._api_key = api_key
        self.submit_seconds = submit_seconds
        self._http = Http(connections)

    def __repr__(self) -> str:
        return f"ModelsLab({self._base_url})"

    def submit(
        self,
        request: ImageRequest,
        references: Sequence[bytes] = (),
        *,
        may_send: MaySend | None = None,
    ) -> SubmitOutcome:
        """Ask for pictures, once; never raises for what the provider or the network does.

        Args:
            request: its number of references picks the endpoint.
            references: their bytes, in the request's order. They are sent as base64: what was
                hashed is what is drawn from, and no address needs to be open to the provider.
            may_send: asked once the connection is open and the body is built.
        """
        if not isinstance(request, ModelsLabRequest):
            raise TypeError(f"{type(request).__name__} is no request of ModelsLab")
        fields = request.fields()
        if references:
            fields["ref_image"] = [base64.b64encode(data).decode() for data in references]
        try:
            answer = self._post(
                request.endpoint, fields, self.submit_seconds, may_send=may_send, fresh=True
            )
        except NotSentError as error:
            return NotSent(str(error))
        except NoAnswer as error:
            return Unknown(str(error))
        return parse_submit(answer.status, answer.headers, answer.body)

    def fetch(self, provider_id: str) -> FetchOutcome:
        """Ask what became of a request; costs nothing and may be asked at will.

        The address is made from the id: the provider's own `fetch_result` may name another host.
        """
        try:
            answer = self._post(f"fetch/{quote(provider_id, safe='')}", {}, FETCH_SECONDS)
        except (NotSentError, NoAnswer) as error:
            return Unknown(str(error))
        return parse_fetch(answer.status, answer.headers, answer.body)

    def reader(self, store: ObjectStore, downloader: Downloader) -> OutputReader:
        """Reads outputs: of URLs, of the customer's own bucket, and inline ones."""
        return OutputReader(store, downloader)

    def folders(self, store: ObjectStore) -> list[ObjectStore]:
        """The folders that `nanobanana provider set-s3` has ever registered, the newest first."""
        return [store.at(*place.bucket_and_folder) for place in read_places(store)[0].places]

    def health(self) -> Mapping[str, str]:
        """What `system_details` answers."""
        return Operations(self._base_url, self._api_key).details()

    def _post(
        self,
        path: str,
        fields: dict[str, object],
        deadline_seconds: float,
        *,
        may_send: MaySend | None = None,
        fresh: bool = False,
    ) -> Answer:
        secret = self._api_key.get_secret_value()
        body = json.dumps({"key": secret, **fields}, ensure_ascii=False).encode()
        answer = self._http.call(
            "POST",
            f"{self._base_url}/{path}",
            body=body,
            headers={"Content-Type": "application/json", "Accept": "application/json"},
            deadline_seconds=deadline_seconds,
            max_bytes=MAX_ANSWER_BYTES,
            may_send=may_send,
            fresh=fresh,
        )
        # Who knows a webhook's address can write to it.
        webhook = fields.get("webhook")
        told = mask(answer.body, secret, *([webhook] if isinstance(webhook, str) else []))
        return Answer(answer.status, answer.headers, _OWN_WEBHOOK.sub(rb"\1***", told))
