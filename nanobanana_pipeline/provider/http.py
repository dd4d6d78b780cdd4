"""One HTTP exchange that ends by its deadline and says whether anything was sent.

requests and urllib3 know socket time-outs only: a server that sends a byte a second is never late
for them. Here every exchange has one deadline, kept by a watchdog that cuts its socket. And money
needs to know what urllib3 hides: a call that failed before its first byte left has bought nothing.
"""

import contextlib
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection

__all__ = ["AddressGuard", "Answer", "Http", "NoAnswer", "NotSentError"]

CONNECT_SECONDS: Final = 10.0
IDLE_SECONDS: Final = 2.0
"""A server may close a connection at any time after a few idle seconds. A POST that meets the
closing end gets no answer, and nobody can tell whether it was read: so none is sent on one."""
CHUNK_BYTES: Final = 65_536

AddressGuard = Callable[[str, str], None]
"""Called with host name and connected IP address before anything is sent; raises to refuse."""


class NotSentError(Exception):
    """The call failed before any of it was sent."""


class NoAnswer(Exception):  # noqa: N818
    """The call was sent, at least in part, and no whole answer came."""


@dataclass(frozen=True)
class Answer:
    """What a server answered: body decoded from any transfer or content encoding."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(eq=False)
class _Exchange:
    """One call under way: what the connection, the watchdog and the caller share."""

    deadline: float
    guard: AddressGuard | None
    sent: bool = False
    cut: bool = False
    sock: socket.socket | None = field(default=None, repr=False)

    def check(self) -> None:
        if time.monotonic() >= self.deadline:
            raise TimeoutError("the deadline passed before anything was sent")


class _Watchdog:
    """Cuts the sockets of exchanges whose deadline has passed; one daemon thread, made on use."""

    def __init__(self) -> None:
        self._exchanges: weakref.WeakSet[_Exchange] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None

    @contextlib.contextmanager
    def watch(self, exchange: _Exchange) -> Iterator[None]:
        with self._lock:
            self._exchanges.add(exchange)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="deadlines", daemon=True)
                self._thread.start()
        self._wake.set()
        try:
            yield
        finally:
            with self._lock:
                self._exchanges.discard(exchange)

    def _run(self) -> None:
        while True:
            self._wake.wait()
            with self._lock:
                exchanges = list(self._exchanges)
                if not exchanges:
                    self._wake.clear()
                    continue
            now = time.monotonic()
            for exchange in exchanges:
                if now >= exchange.deadline and exchange.sock is not None:
                    exchange.cut = True
                    # The plain socket's method: that of a TLS socket changes state under the
                    # thread that reads from it. A socket that is gone already needs no cutting.
                    with contextlib.suppress(OSError):
                        socket.socket.shutdown(exchange.sock, socket.SHUT_RDWR)
            del exchanges
            time.sleep(0.1)


_watchdog = _Watchdog()
_thread = threading.local()


class _Watched(HTTPConnection):
    """A connection that obeys the exchange of the thread that uses it."""

    _last_used = 0.0

    def _new_conn(self) -> socket.socket:
        exchange: _Exchange = _thread.exchange
        sock = super()._new_conn()
        if exchange.guard is not None:
            try:
                exchange.guard(self.host, sock.getpeername()[0])
            except BaseException:
                sock.close()
                raise
        exchange.sock = sock
        return sock

    def request(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        exchange: _Exchange = _thread.exchange
        if self.sock is not None and time.monotonic() - self._last_used > IDLE_SECONDS:
            self.close()
        if self.sock is None:
            self.connect()
        exchange.sock = self.sock
        exchange.check()
        exchange.sent = True
        super().request(*args, **kwargs)

    def connect(self) -> None:
        super().connect()
        self._last_used = time.monotonic()

    def getresponse(self) -> Any:  # noqa: ANN401 - urllib3's private type
        response = super().getresponse()
        self._last_used = time.monotonic()
        return response


class _WatchedTls(_Watched, HTTPSConnection):
    """The same over TLS."""


class _Adapter(HTTPAdapter):
    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        super().init_poolmanager(*args, **kwargs)

        class Plain(urllib3.HTTPConnectionPool):
            ConnectionCls = _Watched

        class Tls(urllib3.HTTPSConnectionPool):
            ConnectionCls = _WatchedTls

        self.poolmanager.pool_classes_by_scheme = {"http": Plain, "https": Tls}


class Http:
    """A requests session for one purpose. Safe to share between threads.

    Args:
        connections: the most sockets that are kept open.
        guard: looks at every address that is connected to.
        proxies: whether the environment's proxy settings are followed.
    """

    def __init__(
        self, connections: int, *, guard: AddressGuard | None = None, proxies: bool = True
    ) -> None:
        self._guard = guard
        self._session = requests.Session()
        self._session.trust_env = proxies
        adapter = _Adapter(pool_connections=8, pool_maxsize=connections, max_retries=0)
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, adapter)

    def call(
        self,
        method: str,
        url: str,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        deadline_seconds: float,
        max_bytes: int,
    ) -> Answer:
        """Make one exchange, once; redirects are answers like any other.

        Raises:
            NotSentError: nothing was sent.
            NoAnswer: something was sent, and no whole answer came within the deadline and size.
        """
        exchange = _Exchange(time.monotonic() + deadline_seconds, self._guard)
        _thread.exchange = exchange
        timeout = (min(CONNECT_SECONDS, deadline_seconds), deadline_seconds)
        try:
            with (
                _watchdog.watch(exchange),
                self._session.request(
                    method,
                    url,
                    data=body,
                    headers=headers,
                    timeout=timeout,
                    stream=True,
                    allow_redirects=False,
                ) as response,
            ):
                return Answer(response.status_code, response.headers, _read(response, max_bytes))
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            if exchange.cut:
                raise NoAnswer(f"no whole answer within {deadline_seconds:g} s") from error
            if not exchange.sent:
                raise NotSentError(_short(error)) from error
            raise NoAnswer(_short(error)) from error
        finally:
            _thread.exchange = None


def _read(response: requests.Response, max_bytes: int) -> bytes:
    chunks, size = [], 0
    for chunk in response.iter_content(CHUNK_BYTES):
        size += len(chunk)
        if size > max_bytes:
            raise NoAnswer(f"the answer is larger than {max_bytes:,} bytes")
        chunks.append(chunk)
    return b"".join(chunks)


def _short(error: BaseException) -> str:
    """The innermost cause: requests wraps urllib3's words, which wrap the system's."""
    while isinstance(error, requests.RequestException | urllib3.exceptions.HTTPError):
        inner = getattr(error, "reason", None) or next(
            (arg for arg in error.args if isinstance(arg, BaseException)), None
        )
        if not isinstance(inner, BaseException):
            break
        error = inner
    return f"{type(error).__name__}: {error}"
