"""Counts calls by endpoint and by the status that answered them: `CallCounter`."""

from collections import Counter, defaultdict

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nanobanana_pipeline.emulator.answers import API, BOOKS, GENERATIONS, OPERATIONS, OUTPUTS

_UNANSWERED = "no answer"
_ENDPOINTS = {*GENERATIONS, "fetch", *OPERATIONS}
_BOOKS = {path: name for name, path in BOOKS.items()}


class CallCounter:
    """An ASGI layer that counts what passes through; the admin's own calls are left out."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._calls: defaultdict[str, Counter[str]] = defaultdict(Counter)

    @property
    def calls(self) -> dict[str, dict[str, int]]:
        """Calls by endpoint, then by HTTP status, or "no answer" for a connection that was cut."""
        return {endpoint: dict(counts) for endpoint, counts in self._calls.items()}

    def reset(self) -> None:
        """Start again from nothing."""
        self._calls.clear()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the call on and count its answer."""
        endpoint = _endpoint(scope["path"]) if scope["type"] == "http" else None
        if endpoint is None:
            await self._app(scope, receive, send)
            return
        answer = _UNANSWERED

        async def note_and_send(message: Message) -> None:
            nonlocal answer
            if message["type"] == "http.response.start":
                answer = str(message["status"])
                # Counted before it is sent: a client that has its answer finds it in the figures.
                self._calls[endpoint][answer] += 1
            await send(message)

        await self._app(scope, receive, note_and_send)
        if answer is _UNANSWERED:
            self._calls[endpoint][answer] += 1


def _endpoint(path: str) -> str | None:
    if path.startswith(OUTPUTS):
        return "outputs"
    if not path.startswith(API):
        return _BOOKS.get(path)
    endpoint = path.removeprefix(API).split("/")[0]
    return endpoint if endpoint in _ENDPOINTS else "other"
