"""A TCP proxy before the real S3 server, which loses what a network may lose."""

import re
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from email.utils import formatdate
from enum import Enum
from http import HTTPStatus
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from nanobanana_pipeline.storage import ObjectStore, s3_client

_HEAD = re.compile(rb"(GET|PUT|HEAD|DELETE|POST) (/\S*) HTTP/1\.1\r\n")
_CONTINUE = b"HTTP/1.1 100"
_EXPECT = b"100-continue"
_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_ACL = re.compile(rb"\r\nx-amz-acl: *([\w-]+)", re.IGNORECASE)
_ACCESS_KEY = re.compile(rb"AWS4-HMAC-SHA256 Credential=([^/]+)/")
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Loss(Enum):
    """What becomes of one call."""

    REQUEST = "it never reaches the server"
    ANSWER = "the server does it, and nobody hears"
    MIDDLE = "it is cut off in the middle of its body"
    RESET = "the connection is reset"


@dataclass(frozen=True)
class Refusal:
    """S3's answer in XML, in place of the server's own."""

    status: int
    code: str


@dataclass(frozen=True)
class Late:
    """The call is passed on only after so many seconds."""

    seconds: float


Fate = Loss | Refusal | Late
Rule = Callable[[str, str], Fate | None]
"""Called with method and path of each request before it is passed on."""

SLOW_DOWN = Refusal(503, "SlowDown")
NO_ACLS = Refusal(400, "AccessControlListNotSupported")
"""What AWS answers to an ACL in a bucket whose owner has them disabled, as new buckets have."""


class S3Proxy:
    """Passes S3 calls on for the time of a `with` block, as far as its rule lets it.

    Attributes:
        rule: replaced by tests; decides about each call.
        calls: method and path of each request so far.
        access_keys: which of AWS's access key ids have been used so far.
        access_key: of the call that the rule is asked about.
    """

    def __init__(self, target_url: str) -> None:
        parts = urlsplit(target_url)
        self._target = (str(parts.hostname), int(parts.port or 80))
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._down = False
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self.rule: Rule = lambda _method, _path: None
        self.calls: list[tuple[str, str]] = []
        self.access_keys: set[str] = set()
        self._local = threading.local()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    @property
    def access_key(self) -> str:
        key: str = self._local.access_key
        return key

    @property
    def acl(self) -> str:
        """The ACL that the call sets which the rule is asked about; empty if none."""
        acl: str = self._local.acl
        return acl

    def refuse_acls(self, refusal: Refusal = NO_ACLS) -> None:
        """Refuse every call that sets an ACL."""
        self.rule = lambda _method, _path: refusal if self.acl else None

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._listener.close()
        self.go_down()

    def store_like(self, store: ObjectStore) -> ObjectStore:
        """The same prefix of the same bucket, through this proxy."""
        return ObjectStore(s3_client(endpoint_url=self.url), store.bucket, store.prefix)

    def go_down(self) -> None:
        """Cut all connections and every new one."""
        with self._lock:
            self._down = True
            for sock in self._open:
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def come_back(self) -> None:
        """Pass calls on again."""
        self._down = False

    def lose_once(self, loss: Fate, method: str, part: str = "") -> None:
        """Lose the next call of this method whose path has this part."""
        pending = iter([loss])

        def rule(called: str, path: str) -> Fate | None:
            return next(pending, None) if called == method and part in path else None

        self.rule = rule

    def count(self, method: str, part: str = "") -> int:
        """How many calls there were so far."""
        return sum(called == method and part in path for called, path in self.calls)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                if self._down:
                    client.close()
                    continue
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.create_connection(self._target) as server:
            with self._lock:
                self._open |= {client, server}
                if self._down:
                    return
            deaf = threading.Event()
            answers = threading.Thread(
                target=self._answers, args=(server, client, deaf), daemon=True
            )
            answers.start()
            with suppress(OSError):
                while data := client.recv(1 << 16):
                    head = _HEAD.match(data)
                    if head is not None:
                        method, path = head[1].decode(), head[2].decode()
                        self.calls.append((method, path))
                        self._note_access_key(data)
                        fate = self.rule(method, path)
                        if fate is Loss.ANSWER:
                            deaf.set()
                        elif isinstance(fate, Late):
                            time.sleep(fate.seconds)
                        elif fate is not None:
                            _break_off(fate, data, client, server)
                            break
                    server.sendall(data)
            if not deaf.is_set():
                _shut(server)
            answers.join(30)
            with self._lock:
                self._open -= {client, server}

    def _note_access_key(self, head: bytes) -> None:
        found = _ACCESS_KEY.search(head)
        self._local.access_key = found[1].decode() if found else ""
        acl = _ACL.search(head)
        self._local.acl = acl[1].decode() if acl else ""
        self.access_keys.add(self._local.access_key)

    def _answers(self, server: socket.socket, client: socket.socket, deaf: threading.Event) -> None:
        with suppress(OSError):
            while data := server.recv(1 << 16):
                if deaf.is_set() and not data.startswith(_CONTINUE):
                    deaf.clear()
                    break
                client.sendall(data)
        _shut(client)
        _shut(server)


def _break_off(
    fate: Loss | Refusal, data: bytes, client: socket.socket, server: socket.socket
) -> None:
    """End a call that does not get its answer from the server, and its connection."""
    match fate:
        case Refusal(status, code):
            _read_body(data, client)
            client.sendall(_refusal(status, code))
            _shut(client)
        case Loss.MIDDLE:
            head, blank, body = data.partition(b"\r\n\r\n")
            server.sendall(head + blank)
            if not body and _length(head):
                body = client.recv(1 << 16)
            server.sendall(body[: len(body) // 2])
        case Loss.RESET:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            client.close()


def _read_body(data: bytes, client: socket.socket) -> None:
    """Read what a client sends without being asked to; else closing would reset its connection."""
    head, _, body = data.partition(b"\r\n\r\n")
    left = _length(head) - len(body) if _EXPECT not in head else 0
    while left > 0 and (more := client.recv(1 << 16)):
        left -= len(more)


def _length(head: bytes) -> int:
    """The bytes of the body that a call's head announces."""
    length = _LENGTH.search(head)
    return int(length[1]) if length else 0


def _refusal(status: int, code: str) -> bytes:
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>As told.</Message></Error>"
    lines = [
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
        "Content-Type: application/xml",
        f"Date: {formatdate(usegmt=True)}",
        f"Content-Length: {len(body)}",
        "Connection: close",
    ]
    return "\r\n".join([*lines, "", body]).encode()


def _shut(sock: socket.socket) -> None:
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def wait_until(condition: Callable[[], object], seconds: float = 60) -> None:
    """Wait for something that is sure to come, or fail."""
    deadline, pause = time.monotonic() + seconds, 0.02
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(pause)
        pause = min(1.1 * pause, 0.1)  # who waits long should not keep the machine busy
