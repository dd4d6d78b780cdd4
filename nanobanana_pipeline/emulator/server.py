"""Runs an emulator as a server: in this process until it is told to stop, or in a thread."""

import asyncio
import contextlib
import itertools
import socket
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from nanobanana_pipeline.emulator.answers import API
from nanobanana_pipeline.emulator.app import EmulatorApp
from nanobanana_pipeline.emulator.config import EmulatorConfig
from nanobanana_pipeline.emulator.gateway import CALLS_BEFORE
from nanobanana_pipeline.emulator.response_faults import CUT_CONNECTION

_DEADLINE_SECONDS = 10.0
_WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - not bound here, only named


class CuttableProtocol(H11Protocol):
    """HTTP as uvicorn speaks it, on connections that the application can cut off and count."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Put the means to cut this connection, and its count, into its requests' state."""
        means = {CUT_CONNECTION: transport.abort, CALLS_BEFORE: itertools.count()}
        self.app_state = {**self.app_state, **means}
        super().connection_made(transport)


class _Server(uvicorn.Server):
    """An emulator behind a listening socket."""

    def __init__(
        self, config: EmulatorConfig, host: str, port: int, on_ready: Callable[[str], None]
    ) -> None:
        self._emulator = EmulatorApp(config)
        self._socket = _listen(host, port)
        self._on_ready = on_ready
        named = _WILDCARDS.get(host, host)
        bracketed = f"[{named}]" if ":" in named else named
        self.root_url = f"http://{bracketed}:{self._socket.getsockname()[1]}"
        super().__init__(
            uvicorn.Config(
                self._emulator,
                http=CuttableProtocol,
                ws="none",
                lifespan="on",
                access_log=False,
                log_config=None,  # leave the logging of the process that we run in alone
                log_level="warning",
                # The admin trusts the address that a connection really comes from.
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=config.keep_alive_seconds,
                timeout_graceful_shutdown=1,
            )
        )

    def run_on_socket(self) -> None:
        """Serve until told to stop."""
        self.run(sockets=[self._socket])

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_ready(f"{self.root_url}{API}")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._emulator.stop_waiting()
        await super().shutdown(sockets)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=1024)


def serve(
    config: EmulatorConfig,
    host: str = "127.0.0.1",
    port: int = 0,
    on_ready: Callable[[str], None] = lambda _: None,
) -> None:
    """Serve until SIGTERM or SIGINT, which end it within two seconds whatever is under way.

    Both signals then have their usual effect on the process, as uvicorn raises them again.

    Args:
        config: How to behave.
        host: The address to listen on.
        port: The port to listen on; 0 takes a free one.
        on_ready: Called with the API's base URL once connections are accepted.

    Raises:
        OSError: The address is in use or not ours.
        ValueError: The data directory was written by another version.
        KeyboardInterrupt: It was ended by SIGINT.
    """
    _Server(config, host, port, on_ready).run_on_socket()


class EmulatorThread:
    """An emulator on a free loopback port, for the time of a `with` block."""

    def __init__(self, config: EmulatorConfig, port: int = 0) -> None:
        self._ready = threading.Event()
        self._server = _Server(config, "127.0.0.1", port, lambda _: self._ready.set())
        self._thread = threading.Thread(
            target=self._server.run_on_socket, name="emulator", daemon=True
        )

    @property
    def root_url(self) -> str:
        """Where the server is: without a path, and without a slash at its end."""
        return self._server.root_url

    @property
    def base_url(self) -> str:
        """Where the API is, as a client wants it: with a slash at its end."""
        return f"{self.root_url}{API}"

    def __enter__(self) -> Self:
        """Start it, and wait until it accepts connections.

        Raises:
            RuntimeError: It does not within ten seconds.
        """
        self._thread.start()
        if not self._ready.wait(_DEADLINE_SECONDS):
            raise RuntimeError(f"the emulator did not start in {_DEADLINE_SECONDS:.0f} s")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop it, and wait until it has.

        Raises:
            RuntimeError: It does not within ten seconds.
        """
        self._server.should_exit = True
        self._thread.join(_DEADLINE_SECONDS)
        if self._thread.is_alive():
            raise RuntimeError(f"the emulator did not stop in {_DEADLINE_SECONDS:.0f} s")


@contextlib.contextmanager
def running(config: EmulatorConfig) -> Iterator[str]:
    """Run an emulator in a thread for the time of a `with` block, and give its API's base URL."""
    with EmulatorThread(config) as emulator:
        yield emulator.base_url
