"""Servers that do what no decent server does: tiny, over plain sockets, one thread a connection."""

import contextlib
import gzip
import json
import re
import select
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

Handler = Callable[["Server", socket.socket], None]


@dataclass
class Server:
    """What a server has seen so far."""

    port: int
    scheme: str = "http"
    connections: int = 0
    requests: list[bytes] = field(default_factory=list)
    stopping: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    def read(self, peer: socket.socket) -> bytes | None:
        """One whole request, written down; None if the peer has closed."""
        data = b""
        while b"\r\n\r\n" not in data:
            more = peer.recv(65536)
            if not more:
                return None
            data += more
        head, _, body = data.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: *(\d+)", head, re.IGNORECASE)
        while length and len(body) < int(length[1]):
            more = peer.recv(65536)
            if not more:
                return None
            body += more
        self.requests.append(head + b"\r\n\r\n" + body)
        return self.requests[-1]


@contextlib.contextmanager
def serving(handle: Handler, tls: ssl.SSLContext | None = None) -> Iterator[Server]:
    """Serve on a free loopback port until the block ends."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = Server(listener.getsockname()[1], "https" if tls else "http")

        def attend(peer: socket.socket) -> None:
            with contextlib.suppress(OSError), peer:
                peer.settimeout(20)
                if tls is None:
                    handle(server, peer)
                else:
                    with tls.wrap_socket(peer, server_side=True) as wrapped:
                        handle(server, wrapped)

        def accept() -> None:
            while True:
                try:
                    peer, _ = listener.accept()
                except OSError:
                    return
                server.connections += 1
                threading.Thread(target=attend, args=(peer,), daemon=True).start()

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.stopping.set()
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            thread.join(5)


def answer(
    body: bytes | dict[str, object], status: str = "200 OK", headers: dict[str, str] | None = None
) -> bytes:
    """A whole HTTP answer."""
    if isinstance(body, dict):
        body = json.dumps(body).encode()
    lines = {"Content-Length": str(len(body)), **(headers or {})}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"HTTP/1.1 {status}\r\n{head}\r\n".encode("latin-1") + body


def always(data: bytes) -> Handler:
    """Answers every request so, and keeps the connection open."""

    def handle(server: Server, peer: socket.socket) -> None:
        while server.read(peer) is not None:
            peer.sendall(data)

    return handle


def in_turn(*answers: bytes) -> Handler:
    """Answers each request with the next of these, and from then on with the last."""

    def handle(server: Server, peer: socket.socket) -> None:
        while server.read(peer) is not None:
            peer.sendall(answers[min(len(server.requests), len(answers)) - 1])

    return handle


def once(data: bytes) -> Handler:
    """Answers one request so, and closes."""

    def handle(server: Server, peer: socket.socket) -> None:
        server.read(peer)
        peer.sendall(data)

    return handle


def dribbling(data: bytes, pause: float = 0.3) -> Handler:
    """Sends a byte now and then: never late for a socket time-out."""

    def handle(server: Server, peer: socket.socket) -> None:
        server.read(peer)
        for byte in data:
            peer.sendall(bytes([byte]))
            if server.stopping.wait(pause):
                return

    return handle


def silent(server: Server, peer: socket.socket) -> None:
    """Reads, and never answers."""
    server.read(peer)
    server.stopping.wait(20)


def mute(server: Server, _: socket.socket) -> None:
    """Accepts, and neither reads nor answers."""
    server.stopping.wait(20)


def closing(server: Server, peer: socket.socket) -> None:
    """Reads a request whole, and closes."""
    server.read(peer)


def slamming(_: Server, peer: socket.socket) -> None:
    """Closes at once, unread."""
    peer.close()


def closing_kept_connections(data: bytes) -> Handler:
    """Answers one request so, keeps the connection, and closes it under the next one, unread."""

    def handle(server: Server, peer: socket.socket) -> None:
        if server.read(peer) is not None:
            peer.sendall(data)
            select.select([peer], [], [], 20)

    return handle


def gzip_bomb(megabytes: int) -> bytes:
    """So many megabytes of zeros, in a thousandth of the size."""
    return gzip.compress(bytes(megabytes * 2**20), 9)


def free_port() -> int:
    """A port on which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def certificate(folder: Path) -> tuple[ssl.SSLContext, Path]:
    """A server's TLS for 127.0.0.1 and localhost, and the file that makes clients trust it."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl program to make a certificate")
    key, cert = folder / "key.pem", folder / "cert.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-keyout", key, "-out", cert, "-days", "2", "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"),
        ],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    return context, cert


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """Assert that the block takes not much longer, on a machine that may be busy."""
    began = time.monotonic()
    yield
    assert time.monotonic() - began < seconds + 5
