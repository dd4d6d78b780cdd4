"""The provider's endpoints over HTTP."""

import json
import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from nanobanana_pipeline.emulator import answers
from nanobanana_pipeline.emulator.admin import admin_routes
from nanobanana_pipeline.emulator.clock import ClockStoppedError
from nanobanana_pipeline.emulator.config import EmulatorConfig
from nanobanana_pipeline.emulator.fields import Order
from nanobanana_pipeline.emulator.meter import CallMeter
from nanobanana_pipeline.emulator.misbehaviour import REFUSALS, SPOILERS, NoAnswer
from nanobanana_pipeline.emulator.moods import Stage
from nanobanana_pipeline.emulator.provider import Provider
from nanobanana_pipeline.emulator.purchases import Purchase
from nanobanana_pipeline.emulator.studio import Studio
from nanobanana_pipeline.emulator.validation import InvalidOrderError, read_order

_Endpoint = Callable[[Request], Awaitable[Response]]

_OUTPUT_NAME = re.compile(r"(?P<output>[0-9a-f-]{36})-(?P<sample>[0-3])\.(?P<format>png|jpg)")


class EmulatorApp:
    """The ASGI application of one emulator."""

    def __init__(self, config: EmulatorConfig) -> None:
        self._config = config
        self._provider = Provider(config)
        self._studio = Studio()
        routes = [
            Route(f"{answers.API}text2img", _or_no_answer(self._text2img), methods=["POST"]),
            Route(
                f"{answers.API}fetch/{{purchase_id}}", _or_no_answer(self._fetch), methods=["POST"]
            ),
            Route(f"{answers.OUTPUTS}{{name}}", self._output),
        ]
        starlette = Starlette(routes=routes, lifespan=self._lifespan)
        self._meter = CallMeter(starlette)
        starlette.router.routes.extend(admin_routes(self._provider, self._meter))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a call."""
        await self._meter(scope, receive, send)

    def stop_waiting(self) -> None:
        """End at once what waits for the clock; its clients get no answer, its purchases stand."""
        self._provider.clock.stop()

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        yield
        self._studio.close()
        self._provider.close()

    async def _text2img(self, request: Request) -> Response:
        body = await _read_json_object(request)
        if not self._accepts_key(body):
            return answers.unauthorized()
        try:
            order = read_order(body)
        except InvalidOrderError as error:
            return answers.invalid(error)
        provider = self._provider
        occasion = provider.moods.occasion(order.picture.digest())
        for mood in provider.moods.striking(Stage.REFUSAL, occasion):
            return REFUSALS[mood](self._config)
        if not provider.queue.has_room(provider.clock.now()):
            return answers.rate_limited(self._config.cap, self._config.retry_after_seconds)
        return await self._sell(order, occasion, _root(request))

    async def _sell(self, order: Order, occasion: str, root: str) -> Response:
        """Buy without waiting for anything first, then answer as mode and moods will have it.

        A client that goes away meanwhile changes nothing: the purchase stands.
        """
        provider = self._provider
        purchase = provider.buy(order, occasion)
        spoiling = provider.moods.striking(Stage.ANSWER, occasion)
        answer: Response
        if self._config.mode == "sync":
            await provider.clock.wait_until(purchase.ready_at)
            answer = _completed(purchase, root)
        else:
            answer = answers.queued(purchase, root, purchase.bought_at)
        if "slow_answer" in spoiling:
            now = provider.clock.now()
            await provider.clock.wait_until(now + self._config.slow_answer_seconds)
        for mood in spoiling:
            if mood in SPOILERS:
                return SPOILERS[mood](answer)
        return answer

    async def _fetch(self, request: Request) -> Response:
        body = await _read_json_object(request)
        if not self._accepts_key(body):
            return answers.unauthorized()
        purchase = self._provider.find(request.path_params["purchase_id"])
        if purchase is None:
            return answers.fetched_unknown()
        if not self._provider.is_ready(purchase):
            return answers.fetched_too_early()
        if purchase.fails:
            return answers.generation_failed(purchase)
        # After the expiry the links are dead, but the provider goes on naming them.
        return answers.fetched_done(purchase, _root(request))

    async def _output(self, request: Request) -> Response:
        name = _OUTPUT_NAME.fullmatch(request.path_params["name"])
        purchase = self._provider.book.by_output(name["output"]) if name else None
        if name is None or purchase is None or name["format"] != purchase.image_format:
            return answers.no_such_image()
        sample = int(name["sample"])
        if sample >= purchase.picture.samples or not self._provider.shows_images(purchase):
            return answers.no_such_image()
        moods = self._provider.moods
        occasion = f"{purchase.occasion}:{sample}"
        if moods.strikes_once("image_404", occasion):
            return answers.no_such_image()
        image = await self._studio.picture(purchase.picture, sample, purchase.image_format)
        if moods.strikes_once("truncated_image", occasion):
            image = image[: len(image) // 2]  # its Content-Length fits: only the bytes tell
        media_type = "image/jpeg" if purchase.image_format == "jpg" else "image/png"
        return Response(image, media_type=media_type)

    def _accepts_key(self, body: dict[str, object]) -> bool:
        key = body.get("key")
        if not isinstance(key, str) or not key:
            return False
        expected = self._config.api_key
        if expected is None:
            return True
        wanted = expected.get_secret_value().encode(errors="surrogatepass")
        return secrets.compare_digest(key.encode(errors="surrogatepass"), wanted)


def _or_no_answer(endpoint: _Endpoint) -> _Endpoint:
    """Give no answer where there is nobody to hear it, or the emulator stops before it is due."""

    async def answer(request: Request) -> Response:
        try:
            return await endpoint(request)
        except (ClientDisconnect, ClockStoppedError):
            return NoAnswer()

    return answer


def _completed(purchase: Purchase, root: str) -> Response:
    return answers.generation_failed(purchase) if purchase.fails else answers.done(purchase, root)


def _root(request: Request) -> str:
    """Tell how the client reached the emulator, so that links lead it back the same way."""
    return str(request.base_url).rstrip("/")


async def _read_json_object(request: Request) -> dict[str, object]:
    """Read the body; what is not a JSON object has no fields, so it has no key either."""
    try:
        body = json.loads(await request.body())
    except (ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}
