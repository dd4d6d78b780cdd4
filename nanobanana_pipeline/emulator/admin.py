"""What a test or a person may ask and tell the emulator beside the provider's API.

Answers to loopback clients only, and without a key: it never sees one.
"""

import ipaddress
import json
from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from nanobanana_pipeline.emulator.answers import GENERATIONS
from nanobanana_pipeline.emulator.call_counter import CallCounter
from nanobanana_pipeline.emulator.moods import MoodError
from nanobanana_pipeline.emulator.provider import Provider

LONGEST_ADVANCE = 10**9
"""Seconds that the clock may be moved at once: some thirty years, so its figures stay finite."""

_Endpoint = Callable[[Request], Awaitable[Response]]


class _BadCommandError(ValueError):
    """An admin call that cannot be obeyed, with the reason."""


def admin_routes(provider: Provider, counter: CallCounter) -> list[Route]:
    """Build the routes under `/admin`, and `/healthz`."""
    desk = _AdminDesk(provider, counter)
    return [
        Route("/healthz", _loopback_only(desk.health)),
        Route("/admin/purchases", _loopback_only(desk.purchases)),
        Route("/admin/stats", _loopback_only(desk.stats)),
        Route("/admin/reset", _loopback_only(desk.reset), methods=["POST"]),
        Route("/admin/clock", _loopback_only(desk.clock), methods=["GET", "POST"]),
        Route("/admin/moods", _loopback_only(desk.moods), methods=["GET", "POST"]),
    ]


def _loopback_only(endpoint: _Endpoint) -> _Endpoint:
    async def guarded(request: Request) -> Response:
        client = request.client
        if client is None or not ipaddress.ip_address(client.host).is_loopback:
            return JSONResponse({"error": "the admin answers to loopback clients only"}, 403)
        try:
            return await endpoint(request)
        except (MoodError, _BadCommandError) as error:
            return JSONResponse({"error": str(error)}, 400)

    return guarded


class _AdminDesk:
    def __init__(self, provider: Provider, counter: CallCounter) -> None:
        self._provider = provider
        self._counter = counter

    async def health(self, _: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def purchases(self, _: Request) -> Response:
        groups = self._provider.book.groups(self._provider.clock.now())
        return JSONResponse(
            {
                "total": sum(group["count"] for group in groups),
                "images": sum(group["samples"] for group in groups),
                "failed": sum(group["failed"] for group in groups),
                "bought_twice": sum(group["count"] - group["failed"] > 1 for group in groups),
                "groups": groups,
            }
        )

    async def stats(self, _: Request) -> Response:
        now = self._provider.clock.now()
        queue = self._provider.queue
        mean = queue.mean(now)
        calls = self._counter.calls
        return JSONResponse(
            {
                "calls": calls,
                "rate_limited": sum(calls.get(each, {}).get("429", 0) for each in GENERATIONS),
                "cap": queue.cap,
                "in_flight": queue.count(now),
                "max_in_flight": queue.most,
                "mean_in_flight": mean,
                "mean_use": mean / queue.cap,
            }
        )

    async def reset(self, _: Request) -> Response:
        self._provider.reset()
        self._counter.reset()
        return JSONResponse({"status": "ok"})

    async def clock(self, request: Request) -> Response:
        if request.method == "POST":
            seconds = (await _json_object(request)).get("advance")
            if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
                raise _BadCommandError('send {"advance": SECONDS}, a number')
            if not 0 <= seconds <= LONGEST_ADVANCE:
                raise _BadCommandError(
                    f"the clock only goes forward: 0 to {LONGEST_ADVANCE} seconds, not {seconds}"
                )
            self._provider.advance_clock(seconds)
        return JSONResponse({"now": self._provider.clock.now()})

    async def moods(self, request: Request) -> Response:
        if request.method == "POST":
            self._provider.moods.change(await _json_object(request))
        return JSONResponse(self._provider.moods.rates)


async def _json_object(request: Request) -> dict[str, object]:
    try:
        body = json.loads(await request.body())
    except (ValueError, RecursionError) as error:
        raise _BadCommandError(f"send a JSON object: {error}") from error
    if not isinstance(body, dict):
        raise _BadCommandError("send a JSON object")
    return body
