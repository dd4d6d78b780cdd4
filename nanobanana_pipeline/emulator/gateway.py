"""What stands before the provider and fails without it: `Gateway`, an ASGI layer.

It knows no order, so its dice are rolled for the address and for which call of it this is. Nothing
is bought by a call that it answers.
"""

import contextlib
from collections.abc import Callable

from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from nanobanana_pipeline.emulator.answers import ACCOUNT
from nanobanana_pipeline.emulator.moods import Moods
from nanobanana_pipeline.emulator.response_faults import NoAnswer

CALLS_BEFORE = "calls_before"


class Gateway:
    """Passes calls on to the provider, unless a mood strikes."""

    def __init__(self, app: ASGIApp, moods: Callable[[], Moods]) -> None:
        self._app = app
        self._moods = moods  # a reset gives new ones

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a call, or pass it on."""
        is_call = scope["type"] == "http" and scope["path"].startswith(ACCOUNT)
        answer = await self._fault(scope, receive) if is_call else None
        await (answer or self._app)(scope, receive, send)

    async def _fault(self, scope: Scope, receive: Receive) -> Response | None:
        calls_before = next(scope["state"][CALLS_BEFORE])
        moods = self._moods()
        occasion = moods.occasion(f"gateway {scope['path']}")
        if calls_before and moods.strikes("unread_close", occasion):
            return NoAnswer()
        if moods.strikes("bad_gateway", occasion):
            with contextlib.suppress(ClientDisconnect):
                await Request(scope, receive).body()
            return _page("502 Bad Gateway", 502)
        return None


def blocked_by_firewall() -> Response:
    """Answer a call whose text a firewall does not like."""
    return _page("403 Forbidden: this request was blocked", 403)


def _page(title: str, status_code: int) -> HTMLResponse:
    return HTMLResponse(f"<!DOCTYPE html><html><body><h1>{title}</h1></body></html>", status_code)
