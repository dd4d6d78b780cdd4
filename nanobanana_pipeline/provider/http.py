"""One HTTP exchange that ends by its deadline and says whether anything was sent.

requests and urllib3 know socket time-outs only: a server that sends a byte a second is never late
for them. Here every exchange has one deadline, kept by a watchdog that cuts its socket. And money
needs to know what urllib3 hides: a call that failed before its first byte left has bought nothing.
"""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.cookiejar import DefaultCookiePolicy
from typing import Any, Final
from urllib.parse import urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection

from nanobanana_pipeline.storage.cas import boot_clock

__all__ = ["Answer", "Http", "NoAnswer", "NotSentError", "TooLarge"]

CONNECT_SECONDS: Final = 10.0
IDLE_SECONDS: Final = 2.0
"""A server may close a connection at any time after a few idle seconds. A POST that meets the
closing end gets no answer, which does not say whether it was read: so none is sent on one."""
CHUNK_BYTES: Final = 65_536
SHORTEST_WAIT_SECONDS: Final = 0.001

AddressGuard = Callable[[str, str], None]
"""Called with host name and connected IP address before anything is sent; raises to refuse."""


class NotSentError(Exception):
    """The call failed before any of it was sent."""


class NoAnswer(Exception):  # noqa: N818
    """The call was sent, at least in part, and no whole answer came."""


class TooLarge(NoAnswer):
    """The answer has more bytes than it may have."""


@dataclass(frozen=True)
class Answer:
    """What a server answered: body decoded from any transfer or content encoding."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(eq=False)
class _Exchange:
    """One call under way: what the connection, the watchdog and the caller share.

    Its deadline is of `boot_clock`: a call of a machine that slept must not go out late.
    """

    deadline: float
    guard: AddressGuard | None
    may_send: Callable[[], bool] | None = None
    fresh: bool = False
    sent: bool = False
    cut: bool = False
    sock: socket.socket | None = field(default=None, repr=False)

    def left(self, most: float) -> float:
        """Seconds until the deadline, `most` at most; always more than nothing."""
        return max(SHORTEST_WAIT_SECONDS, min(most, self.deadline - boot_clock()))


class _Watchdog:
    """Cuts the sockets of exchanges whose deadline has passed; one daemon thread, made on use."""

    def __init__(self) -> None:
        self._exchanges: set[_Exchange] = set()
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

    def hand_over(
        self, before: _Exchange | None, exchange: _Exchange, sock: socket.socket | None
    ) -> None:
        """Give a connection's socket to its next exchange; the last one can cut it no more.

        Raises:
            ConnectionError: the last one has cut it already.
            TimeoutError: the next one has no time left.
        """
        with self._lock:
            if before is not None and before is not exchange:
                before.sock = None
                if before.cut:
                    raise ConnectionError("the connection was cut before anything was sent")
            if boot_clock() >= exchange.deadline:
                raise TimeoutError("the deadline passed before anything was sent")
            exchange.sock = sock

    def _run(self) -> None:
        while True:
            self._wake.wait()
            with self._lock:
                if not self._exchanges:
                    self._wake.clear()
                    continue
                now = boot_clock()
                for exchange in self._exchanges:
                    if now >= exchange.deadline and exchange.sock is not None:
                        exchange.cut = True
                        # The plain socket's method: that of a TLS socket changes state under the
                        # thread that reads from it. A socket that is gone needs no cutting.
                        with contextlib.suppress(OSError):
                            socket.socket.shutdown(exchange.sock, socket.SHUT_RDWR)
            time.sleep(0.1)


_watchdog = _Watchdog()
_thread = threading.local()


class _Watched(HTTPConnection):
    """A connection that obeys the exchange of the thread that uses it."""

    _last_used = 0.0
    _exchange: _Exchange | None = None

    def is_idle(self) -> bool:
        """Whether it has been open, unused, for longer than a POST may trust."""
        return self.sock is not None and boot_clock() - self._last_used > IDLE_SECONDS

    def _new_conn(self) -> socket.socket:
        exchange: _Exchange = _thread.exchange
        self.timeout = exchange.left(CONNECT_SECONDS)
        sock = super()._new_conn()
        if exchange.guard is not None:
            try:
                exchange.guard(self.host, sock.getpeername()[0])
            except BaseException:
                sock.close()
                raise
        sock.settimeout(exchange.left(CONNECT_SECONDS))  # holds for a TLS handshake as a whole
        return sock

    def request(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        exchange: _Exchange = _thread.exchange
        if self.sock is None:
            self.connect()
        if self.is_idle():  # this process stood still just now
            raise ConnectionError("the connection went idle before anything was sent")
        # A TLS tunnel inside TLS is no socket, but has one.
        _watchdog.hand_over(self._exchange, exchange, getattr(self.sock, "socket", self.sock))
        self._exchange = exchange
        if exchange.may_send is not None and not exchange.may_send():
            raise ConnectionError("it was not to be sent any more")
        exchange.sent = True
        super().request(*args, **kwargs)

    def connect(self) -> None:
        self._exchange = None
        super().connect()
        self._last_used = boot_clock()

    def getresponse(self) -> Any:  # noqa: ANN401 - urllib3's private type
        response = super().getresponse()
        self._last_used = boot_clock()
        return response


class _WatchedTls(_Watched, HTTPSConnection):
    """The same over TLS."""


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Watched

    def _get_conn(self, timeout: float | None = None) -> Any:  # noqa: ANN401 - urllib3's private type
        connection = super()._get_conn(timeout)
        # Here, and not later: a closed connection forgets the proxy tunnel that it led through,
        # which is only built again between this point and the request.
        # A server may close a kept-alive connection as a call arrives, which does not say whether
        # it was read: 12 of 60 purchases came into doubt so. A fresh connection costs 0.3 ms over
        # loopback, with TLS 3 ms (1.7 ms of CPU), and two round trips on a network: some 0.2 s of a
        # slot that is in use for seconds.
        if isinstance(connection, _Watched):
            exchange: _Exchange = _thread.exchange
            if exchange.fresh or connection.is_idle():
                connection.close()
        return connection


class _TlsPool(_Pool, urllib3.HTTPSConnectionPool):
    ConnectionCls = _WatchedTls


class _Adapter(HTTPAdapter):
    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": _Pool, "https": _TlsPool}

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:  # noqa: ANN401
        if proxy.lower().startswith("socks"):
            raise requests.exceptions.InvalidSchema("SOCKS proxies are not supported")
        manager = super().proxy_manager_for(proxy, **kwargs)
        manager.pool_classes_by_scheme = {"http": _Pool, "https": _TlsPool}
        return manager


class _Session(requests.Session):
    def __init__(self) -> None:
        super().__init__()
        self._settings: dict[str, Any] = {}

    def merge_environment_settings(
        self,
        url: str | bytes | None,
        *given: Any,  # noqa: ANN401 - requests' own
        **named: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        """Read a host's proxies and certificates from the environment once.

        Doing so for each call took a third of a POST's CPU time.
        """
        if not self.trust_env:
            return super().merge_environment_settings(url, *given, **named)
        place = urlsplit(str(url)).netloc
        if place not in self._settings:
            self._settings[place] = super().merge_environment_settings(url, *given, **named)
        return dict(self._settings[place])

    def get_redirect_target(self, resp: requests.Response) -> None:
        """Give none, whatever the answer says.

        Even when told not to follow it, requests reads the whole body of a redirect, however large,
        and parses its address, which raises for some.
        """


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
        self._session = _Session()
        self._session.trust_env = proxies
        self._session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
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
        may_send: Callable[[], bool] | None = None,
        fresh: bool = False,
    ) -> Answer:
        """Make one exchange, once; redirects are answers like any other.

        `may_send` is asked in the last moment before the first byte leaves. A `fresh` call opens a
        connection of its own, which later calls may use: one that buys something should.

        Raises:
            NotSentError: nothing was sent.
            NoAnswer: something was sent, and no whole answer came within the deadline.
            TooLarge: more than `max_bytes` came.
        """
        exchange = _Exchange(boot_clock() + deadline_seconds, self._guard, may_send, fresh)
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
                answer = Answer(response.status_code, response.headers, _read(response, max_bytes))
        except NoAnswer:
            raise
        # Without the chain: requests quotes whole URLs there, with any signature in them.
        except Exception as error:
            if exchange.cut or (exchange.sent and isinstance(error, requests.Timeout)):
                raise NoAnswer(f"no whole answer within {deadline_seconds:g} s") from None
            if exchange.sent:
                raise NoAnswer(_short(error)) from None
            if isinstance(
                error, requests.RequestException | urllib3.exceptions.HTTPError | OSError
            ):
                raise NotSentError(_short(error)) from None
            raise
        finally:
            _thread.exchange = None
        if exchange.cut:  # headers that stop in the middle look whole to Python's parser
            raise NoAnswer(f"no whole answer within {deadline_seconds:g} s")
        return answer


def _read(response: requests.Response, max_bytes: int) -> bytes:
    chunks, size = [], 0
    # In one piece where its length is known: small ones cost a fifth of a download's CPU time.
    whole = min(response.raw.length_remaining or CHUNK_BYTES, max_bytes)
    for chunk in response.iter_content(whole):
        size += len(chunk)
        if size > max_bytes:
            raise TooLarge(f"the answer is larger than {max_bytes:,} bytes")
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
