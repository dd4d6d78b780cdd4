"""S3 in memory, as a boto3 client shows it: strongly consistent, with conditional writes.

What may go wrong does so by the scheduler's choice: a call that never came, an answer that was
lost or late, a write that lands long after its sender gave up.
"""

import hashlib
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from email.utils import format_datetime
from typing import Any, Final

from botocore.exceptions import (
    ClientError,
    ConnectionClosedError,
    EndpointConnectionError,
    ReadTimeoutError,
)

from tests.ageing.scheduler import EPOCH, Scheduler

__all__ = ["FakeS3", "Stored", "Write"]

URL: Final = "http://s3.test"
SOUND: Final = 10
"""Tickets of a call that goes well; each fault has one."""
STALLED_SECONDS: Final = 200.0
"""An answer that comes when the process wakes again: longer than any claim lasts."""
READ_FAULTS: Final = ("busy", "lost", "slow", "stalled")
WRITE_FAULTS: Final = ("busy", "unsent", "lost", "late", "slow", "stalled", "conflict")


@dataclass(frozen=True)
class Stored:
    body: bytes = field(repr=False)
    etag: str
    modified: float
    metadata: Mapping[str, str]


@dataclass(frozen=True)
class Write:
    """A PUT on its way; its conditions are judged when it lands."""

    key: str
    body: bytes = field(repr=False)
    if_none_match: bool
    if_match: str | None
    metadata: Mapping[str, str]


class FakeS3:
    """One bucket.

    Args:
        scheduler: has control at every call.
        clock: what the server's clock adds to the true time, in seconds.
        on_write: is told key, old and new body of every write that is applied.
        healthy: whether every call succeeds at once.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        *,
        clock: float,
        on_write: Callable[[str, bytes | None, bytes], None],
    ) -> None:
        self._scheduler = scheduler
        self._clock = clock
        self._on_write = on_write
        self.objects: dict[str, Stored] = {}
        self.in_flight: list[Write] = []
        self.healthy = True
        self.keeps_conditions = True

    def get_object(self, *, Bucket: str, Key: str) -> dict[str, Any]:  # noqa: N803 - boto3's
        del Bucket
        outcome = self._pause("GET", Key, READ_FAULTS)
        found = self.objects.get(Key)
        if found is None:
            answer = None
        else:
            answer = {
                "Body": io.BytesIO(found.body),
                "ETag": found.etag,
                "LastModified": self.date(found.modified),
                "Metadata": dict(found.metadata),
                "ContentLength": len(found.body),
                "ResponseMetadata": {
                    "HTTPHeaders": {
                        "date": format_datetime(self.date(self._scheduler.now), usegmt=True)
                    }
                },
            }
        self._answer("GET", Key, outcome)
        if answer is None:
            raise _error("GetObject", 404, "NoSuchKey")
        return answer

    def head_object(self, *, Bucket: str, Key: str) -> dict[str, Any]:  # noqa: N803
        del Bucket
        outcome = self._pause("HEAD", Key, READ_FAULTS)
        found = self.objects.get(Key)
        self._answer("HEAD", Key, outcome)
        if found is None:
            raise _error("HeadObject", 404, "404")
        return {"Metadata": dict(found.metadata)}

    def delete_object(self, *, Bucket: str, Key: str) -> None:  # noqa: N803
        del Bucket
        outcome = self._pause("DELETE", Key, READ_FAULTS)
        self.objects.pop(Key, None)
        self._answer("DELETE", Key, outcome)

    def list_objects_v2(
        self,
        *,
        Bucket: str,  # noqa: N803
        Prefix: str,  # noqa: N803
        MaxKeys: int = 1000,  # noqa: N803
    ) -> dict[str, Any]:
        del Bucket
        outcome = self._pause("LIST", Prefix, READ_FAULTS)
        found = sorted(key for key in self.objects if key.startswith(Prefix))[:MaxKeys]
        self._answer("LIST", Prefix, outcome)
        return {"Contents": [{"Key": key} for key in found]}

    def put_object(self, *, Bucket: str, Key: str, Body: bytes, **more: Any) -> dict[str, Any]:  # noqa: N803
        del Bucket
        write = Write(
            Key, Body, "IfNoneMatch" in more, more.get("IfMatch"), more.get("Metadata", {})
        )
        outcome = self._pause("PUT", Key, WRITE_FAULTS)
        match outcome:
            case "unsent":
                raise EndpointConnectionError(endpoint_url=URL)
            case "conflict" if write.if_none_match or write.if_match:
                raise _error("PutObject", 409, "ConditionalRequestConflict")
            case "late":
                self.in_flight.append(write)
                raise ReadTimeoutError(endpoint_url=URL)
            case "busy":
                raise _error("PutObject", 503, "SlowDown")
        passed = self.land(write)
        self._answer("PUT", Key, outcome)
        if not passed:
            raise _error("PutObject", 412, "PreconditionFailed")
        return {"ETag": _etag(Body)}

    def land(self, write: Write) -> bool:
        """Apply a write if its conditions hold now."""
        before = self.objects.get(write.key)
        if self.keeps_conditions and (
            (write.if_none_match and before is not None)
            or (write.if_match is not None and write.if_match != (before and before.etag))
        ):
            return False
        self.objects[write.key] = Stored(
            write.body, _etag(write.body), self._scheduler.now, write.metadata
        )
        self._on_write(write.key, before.body if before else None, write.body)
        return True

    def _pause(self, verb: str, key: str, faults: tuple[str, ...]) -> str:
        outcomes = ("ok",) if self.healthy else ("ok",) * SOUND + faults
        outcome = self._scheduler.pause(f"{verb} {_short(key)}", outcomes)
        if outcome == "busy" and verb != "PUT":
            raise _error(verb, 503, "SlowDown")
        return outcome

    def _answer(self, verb: str, key: str, outcome: str) -> None:
        """What becomes of the answer to a call that was carried out."""
        if outcome == "lost":
            raise ConnectionClosedError(endpoint_url=URL)
        if outcome in {"slow", "stalled"}:
            seconds = STALLED_SECONDS if outcome == "stalled" else 0.0
            self._scheduler.pause(f"the answer to {verb} {_short(key)}", seconds=seconds)

    def date(self, moment: float) -> datetime:
        """As S3 tells it: in whole seconds."""
        return EPOCH + timedelta(seconds=int(moment + self._clock))


def _etag(body: bytes) -> str:
    return f'"{hashlib.md5(body, usedforsecurity=False).hexdigest()}"'


def _short(key: str) -> str:
    folder, _, leaf = key.rpartition("/")
    return f"{folder.split('/')[0]}/{leaf[:8]}"


def _error(verb: str, status: int, code: str) -> ClientError:
    return ClientError(
        {"Error": {"Code": code, "Message": ""}, "ResponseMetadata": {"HTTPStatusCode": status}},  # type: ignore[typeddict-item]
        verb,
    )
