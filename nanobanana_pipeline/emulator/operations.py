"""What an enterprise customer may tell the server itself."""

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from nanobanana_pipeline.emulator import answers
from nanobanana_pipeline.emulator.auth import Auth
from nanobanana_pipeline.emulator.provider import Provider
from nanobanana_pipeline.emulator.renderer import Renderer

_MODELS = 1


class Operations:
    """The endpoints beside generation: they cost nothing, and may disturb others."""

    def __init__(self, provider: Provider, renderer: Renderer, auth: Auth) -> None:
        self._provider = provider
        self._renderer = renderer
        self._auth = auth
        self._started_at = provider.clock.now()

    def routes(self) -> list[Route]:
        """Build the routes of all operations."""
        operations: dict[str, Callable[[], JSONResponse]] = {
            "system_details": self._details,
            "clear_cache": self._clear_cache,
            "clear_queue": self._clear_queue,
            "restart_server": self._restart,
            "update_server": lambda: _done("Server is up to date"),
        }
        return [
            Route(f"{answers.API}{name}", self._behind_the_door(operation), methods=["POST"])
            for name, operation in operations.items()
        ]

    def _behind_the_door(
        self, operation: Callable[[], JSONResponse]
    ) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            if await self._auth.admit(request) is None:
                return answers.unauthorized()
            return operation()

        return answer

    def _details(self) -> JSONResponse:
        provider = self._provider
        now = provider.clock.now()
        queued = provider.queue.count(now)
        occasion = provider.moods.occasion("system_details")
        if provider.moods.strikes("details_flat", occasion):
            seconds = queued * sum(provider.config.latency_seconds) / 2
            return JSONResponse({"status": "ok", "model_count": _MODELS, "queue_time": seconds})
        use = round(100 * queued / provider.queue.cap)
        data = {
            "server_version": "emulator",
            "uptime": f"{int(now - self._started_at)} seconds",
            "gpu_usage": f"{use}%",
        }
        return JSONResponse({"status": "success", "data": data})

    def _clear_cache(self) -> JSONResponse:
        self._renderer.forget()
        return _done("Cache cleared successfully")

    def _clear_queue(self) -> JSONResponse:
        self._provider.clear_queue()
        return _done("Queue cleared successfully")

    def _restart(self) -> JSONResponse:
        self._started_at = self._provider.clock.now()
        return _done("Server is restarting")


def _done(message: str) -> JSONResponse:
    return JSONResponse({"status": "success", "message": message})
