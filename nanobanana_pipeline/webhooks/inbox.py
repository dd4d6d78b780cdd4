"""The inbox on S3, and the addresses that lead to it.

The provider does not sign its webhooks (PROVIDER_CONTRACT.md, "Webhooks"), so their addresses are
signed instead: each attempt has one of its own, which nobody can make without the secret. What
comes there is a hint still, to be confirmed by a fetch.
"""

import hashlib
import hmac
import json
import logging
import re
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Self

from pydantic import SecretStr

from nanobanana_pipeline.bucket_keys import webhook_key, webhook_prefix
from nanobanana_pipeline.settings import Settings
from nanobanana_pipeline.storage import ObjectStore

__all__ = ["MAX_PAYLOADS", "Inbox", "Payload", "Webhooks", "attempt_id", "is_attempt_id"]

MAX_PAYLOADS: Final = 16
"""A few repeats and shapes of one story; more is a sender gone mad."""
MAX_TEXT_CHARACTERS: Final = 500

_ATTEMPT_ID = re.compile(r"[0-9a-f]{64}\.[0-9a-f]{16}")

log = logging.getLogger(__name__)


def attempt_id(request_key: str, nonce: str) -> str:
    """One attempt at one request: what its `track_id` begins with, and the path of its webhook."""
    return f"{request_key}.{nonce}"


def is_attempt_id(text: str) -> bool:
    """Whether it has the form of one, to the letter."""
    return _ATTEMPT_ID.fullmatch(text) is not None


@dataclass(frozen=True)
class Webhooks:
    """Makes and checks the addresses that the provider is asked to call.

    Attributes:
        url: the receiver's public base address.
        secret: shared by everything that buys and everything that receives.
    """

    url: str
    secret: SecretStr = field(repr=False)

    @classmethod
    def from_settings(cls, settings: Settings) -> Self | None:
        """None if these settings have no webhooks."""
        if not settings.webhook_url or not settings.webhook_secret:
            return None
        return cls(settings.webhook_url, settings.webhook_secret)

    def address(self, attempt_id: str) -> str:
        """Where to tell of this attempt: ``<url>/webhooks/<attempt id>/<token>``.

        Who knows it can write into the attempt's inbox: it goes to the provider and into no log.
        """
        return f"{self.url.rstrip('/')}/webhooks/{attempt_id}/{self._token(attempt_id)}"

    def is_genuine(self, attempt_id: str, token: str) -> bool:
        """Whether this token was made for this attempt with our secret."""
        return hmac.compare_digest(self._token(attempt_id).encode(), token.encode(errors="replace"))

    def _token(self, attempt_id: str) -> str:
        secret = self.secret.get_secret_value().encode()
        return hmac.new(secret, attempt_id.encode(errors="replace"), hashlib.sha256).hexdigest()


@dataclass(frozen=True)
class Payload:
    """What one webhook said, as far as it can be understood; none of it is proven.

    Attributes:
        received: when it was stored, by the S3 server's clock.
        provider_id: the provider's own id.
        status: in lower case, such as ``success`` or ``failed``.
        track_id: as the sender echoes it.
    """

    received: datetime
    provider_id: str | None = None
    status: str | None = None
    track_id: str | None = None

    @classmethod
    def read(cls, body: bytes, received: datetime) -> Self:
        """Understand what can be; never raises for what the sender wrote."""
        said = _json_object(body)
        ids = (_text(said.get(name)) for name in ("id", "request_id"))
        status = _text(said.get("status"))
        return cls(
            received,
            # The dots would lead a fetch astray: they are steps in a path.
            provider_id=next((each for each in ids if each not in {None, ".", ".."}), None),
            status=status and status.lower(),
            track_id=_text(said.get("track_id")),
        )


class Inbox:
    """Webhooks' bodies on S3, a folder an attempt. Safe to share between threads.

    Every method raises `StorageError` as `ObjectStore` does.
    """

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def put(self, attempt_id: str, body: bytes) -> bool:
        """Keep a body, whatever it says, unless it is there already or the inbox is full.

        Writers that come in the same instant may each find the last place free, and fill it.

        Returns:
            Whether it was new and is kept.
        """
        key = webhook_key(attempt_id, hashlib.sha256(body).hexdigest())
        there = list(self._store.keys(webhook_prefix(attempt_id), limit=MAX_PAYLOADS))
        if key in there:
            return False
        if len(there) >= MAX_PAYLOADS:
            log.warning(
                "the inbox of attempt %s is full (%d webhooks): one more was not kept",
                attempt_id,
                MAX_PAYLOADS,
            )
            return False
        return self._store.create(key, body, content_type="application/json") is not None

    def has_mail(self, attempt_id: str) -> bool:
        """Whether anything came for this attempt; one call that lists at most one key."""
        return any(self._store.keys(webhook_prefix(attempt_id), limit=1))

    def read(self, attempt_id: str) -> list[Payload]:
        """Everything that came for this attempt, by when it was stored (S3 tells whole seconds)."""
        found = [self._store.get(key) for key in self._store.keys(webhook_prefix(attempt_id))]
        payloads = [Payload.read(each.body, each.last_modified) for each in found if each]
        return sorted(payloads, key=lambda payload: payload.received)


def _json_object(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str | None:
    """A short text that can be written down and be part of an address, else None."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        return None
    text = value.strip()
    return text if text.isprintable() and 0 < len(text) <= MAX_TEXT_CHARACTERS else None
