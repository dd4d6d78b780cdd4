"""An HTTP proxy before the real S3 server, which breaks one of the things that S3 promises."""

import os
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from email.utils import format_datetime, parsedate_to_datetime
from functools import cache
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import unquote, urlsplit

from nanobanana_pipeline.storage import ObjectStore, s3_client

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

CONDITIONS: Final = ("If-Match", "If-None-Match")
HOP: Final = {"connection", "keep-alive", "transfer-encoding", "content-length"}


class Request(NamedTuple):
    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def is_conditional(self) -> bool:
        return self.method == "PUT" and any(name in self.headers for name in CONDITIONS)


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


Forward = Callable[[Request], Answer]
Break = Callable[[Request, Forward], Answer]
"""Answers a request; `forward` gives the server's own answer."""


def honest(request: Request, forward: Forward) -> Answer:
    return forward(request)


def refusal(status: int, code: str) -> Answer:
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>no</Message></Error>"
    return Answer(status, {"Content-Type": "application/xml"}, body.encode())


def written_anyway(request: Request) -> Answer:
    """Write without the condition, as a server does that does not look."""
    bucket, _, key = unquote(urlsplit(request.path).path).lstrip("/").partition("/")
    put = _client(os.environ["AWS_ENDPOINT_URL_S3"]).put_object(
        Bucket=bucket, Key=key, Body=request.body
    )
    return Answer(200, {"ETag": put["ETag"]}, b"")


@cache
def _client(url: str) -> "S3Client":
    """One for all calls: to make one takes longer than 16 writers need for a round."""
    return s3_client(endpoint_url=url)


def lets_through(share: float, seed: int | None = None) -> Break:
    """Let a share of the writes that would lose overwrite the winner's, and call them won."""
    chance = random.Random(seed)  # noqa: S311 - no secret

    def broken(request: Request, forward: Forward) -> Answer:
        answer = forward(request)
        if request.is_conditional and answer.status == 412 and chance.random() < share:
            return written_anyway(request)
        return answer

    return broken


def refuses_all_conditions(request: Request, forward: Forward) -> Answer:
    return refusal(412, "PreconditionFailed") if request.is_conditional else forward(request)


def ignores_conditions(request: Request, forward: Forward) -> Answer:
    return written_anyway(request) if request.is_conditional else forward(request)


def takes_bare_etags_only(request: Request, forward: Forward) -> Answer:
    """Take If-Match only without the quotes of RFC 9110, as radosgw 16 does."""
    if request.headers.get("If-Match", "").startswith('"'):
        return refusal(412, "PreconditionFailed")
    return forward(request)


def ignores_conditions_in_versioned_buckets(request: Request, forward: Forward) -> Answer:
    """Let all creates win once the bucket's versioning is on, as radosgw 16 does."""
    bucket = unquote(urlsplit(request.path).path).split("/")[1]
    if request.is_conditional:
        client = _client(os.environ["AWS_ENDPOINT_URL_S3"])
        if client.get_bucket_versioning(Bucket=bucket).get("Status"):
            return written_anyway(request)
    return forward(request)


def keeps_its_versioning_to_itself(request: Request, forward: Forward) -> Answer:
    is_asked = request.method == "GET" and urlsplit(request.path).query == "versioning"
    return refusal(403, "AccessDenied") if is_asked else forward(request)


def claims_to_refuse(request: Request, forward: Forward) -> Answer:
    """Say no to a write that would lose, and store it all the same."""
    answer = forward(request)
    if request.is_conditional and answer.status == 412:
        written_anyway(request)
    return answer


def refuses_deletes(request: Request, forward: Forward) -> Answer:
    return refusal(403, "AccessDenied") if request.method == "DELETE" else forward(request)


def ignores_checksums(request: Request, forward: Forward) -> Answer:
    answer = forward(request)
    return written_anyway(request) if b"BadDigest" in answer.body else answer


def clock_off(by: timedelta) -> Break:
    """Have the header Date run before or behind the clock that stamps objects."""

    def broken(request: Request, forward: Forward) -> Answer:
        answer = forward(request)
        date = parsedate_to_datetime(answer.headers["Date"]) + by
        return answer._replace(
            headers={**answer.headers, "Date": format_datetime(date, usegmt=True)}
        )

    return broken


@contextmanager
def breaking(store: ObjectStore, broken: Break) -> Iterator[ObjectStore]:
    """The same prefix of the same bucket, through a proxy that answers as `broken` says."""
    target = urlsplit(store.client.meta.endpoint_url)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def setup(self) -> None:
            super().setup()
            self.server_side = HTTPConnection(str(target.hostname), target.port)

        def finish(self) -> None:
            self.server_side.close()
            super().finish()

        def forward(self, request: Request) -> Answer:
            self.server_side.request(request.method, request.path, request.body, request.headers)
            answer = self.server_side.getresponse()
            return Answer(answer.status, dict(answer.getheaders()), answer.read())

        def handle_one_request(self) -> None:
            with suppress(OSError):
                super().handle_one_request()
                return
            self.close_connection = True

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            headers = {
                name: value
                for name, value in self.headers.items()
                if name.lower() not in {"connection", "expect"}
            }
            status, headers, body = broken(
                Request(self.command, self.path, headers, body), self.forward
            )
            self.send_response_only(status)
            for name, value in headers.items():
                if name.lower() not in HOP:
                    self.send_header(name, value)
            length = headers.get("Content-Length", "0") if self.command == "HEAD" else len(body)
            if status != 204:
                self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_PUT = do_HEAD = do_DELETE = answer  # noqa: N815 - as the base class has it

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 128
        daemon_threads = True

    with Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        try:
            client = s3_client(endpoint_url=f"http://127.0.0.1:{server.server_port}")
            yield ObjectStore(client, store.bucket, store.prefix)
        finally:
            server.shutdown()
