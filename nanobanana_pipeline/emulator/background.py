"""Blocking calls to other servers in daemon threads, which never delay the emulator's exit."""

import asyncio
import contextlib
import ipaddress
import threading
from collections.abc import Callable
from typing import TypeVar
from urllib.parse import urlsplit

_T = TypeVar("_T")


def is_loopback(url: str) -> bool:
    """Tell whether an address names this machine, without asking anybody."""
    try:
        host = urlsplit(url).hostname or ""
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def may_be_called(url: str) -> bool:
    """Tell whether the emulator calls an address that a client gave it: HTTPS, or loopback."""
    try:
        url.encode()
        parts = urlsplit(url)
        named = bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
    return named and (parts.scheme == "https" or (parts.scheme == "http" and is_loopback(url)))


async def run_in_background(call: Callable[[], _T]) -> _T:
    """Run a blocking call in a thread that dies with the process.

    A pool would not do: Python waits for its threads at the end, however long they take.
    """
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[_T] = loop.create_future()

    def settle(result: _T | None, error: Exception | None) -> None:
        if outcome.done():  # nobody waits any more
            return
        if error is not None:
            outcome.set_exception(error)
        else:
            outcome.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result, failure = None, None
        try:
            result = call()
        except Exception as error:  # noqa: BLE001 - it is raised where the call is awaited
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(settle, result, failure)

    threading.Thread(target=run, name="emulator-call", daemon=True).start()
    return await outcome
