"""The provider's endpoints over HTTP."""

import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from nanobanana_pipeline.emulator import answers
from nanobanana_pipeline.emulator.account_books import AccountBooks
from nanobanana_pipeline.emulator.accounts import AccountDesk
from nanobanana_pipeline.emulator.admin import admin_routes
from nanobanana_pipeline.emulator.auth import Auth
from nanobanana_pipeline.emulator.call_counter import CallCounter
from nanobanana_pipeline.emulator.clock import ClockStoppedError
from nanobanana_pipeline.emulator.completion import Completion
from nanobanana_pipeline.emulator.config import EmulatorConfig
from nanobanana_pipeline.emulator.delivery import Delivery
from nanobanana_pipeline.emulator.echoes import fetched_with_echo
from nanobanana_pipeline.emulator.fields import Order
from nanobanana_pipeline.emulator.gateway import Gateway, blocked_by_firewall
from nanobanana_pipeline.emulator.moods import Stage
from nanobanana_pipeline.emulator.openapi import openapi_route
from nanobanana_pipeline.emulator.operations import Operations
from nanobanana_pipeline.emulator.outputs import Outputs
from nanobanana_pipeline.emulator.provider import Provider
from nanobanana_pipeline.emulator.purchases import Purchase
from nanobanana_pipeline.emulator.references import read_references
from nanobanana_pipeline.emulator.renderer import Renderer
from nanobanana_pipeline.emulator.response_faults import (
    FETCH_SPOILERS,
    OWN_FAILURE,
    REFUSALS,
    SPOILERS,
    NoAnswer,
    own_failure,
)
from nanobanana_pipeline.emulator.response_variants import as_variant
from nanobanana_pipeline.emulator.validation import InvalidOrderError, read_order

_Endpoint = Callable[[Request], Awaitable[Response]]


class EmulatorApp:
    """The ASGI application of one emulator."""

    def __init__(self, config: EmulatorConfig) -> None:
        self._config = config
        self._provider = Provider(config)
        self._renderer = Renderer()
        self._delivery = Delivery(self._provider)
        self._outputs = Outputs(self._provider, self._renderer, self._delivery)
        self._completion = Completion(self._provider, self._outputs, self._delivery)
        self._auth = Auth(config)
        routes = [
            *(
                Route(
                    f"{answers.API}{endpoint}",
                    _or_no_answer(functools.partial(self._generate, endpoint)),
                    methods=["POST"],
                )
                for endpoint in answers.GENERATIONS
            ),
            Route(
                f"{answers.API}fetch/{{purchase_id}}", _or_no_answer(self._fetch), methods=["POST"]
            ),
            Route(f"{answers.OUTPUTS}{{name:path}}", self._outputs.show),
            *AccountDesk(self._provider, self._auth).routes(),
            *Operations(self._provider, self._renderer, self._auth).routes(),
            *AccountBooks(self._provider, self._delivery, self._auth).routes(),
            openapi_route(),
        ]
        starlette = Starlette(
            routes=routes, lifespan=self._lifespan, exception_handlers={404: _no_such_address}
        )
        gateway = Gateway(starlette, lambda: self._provider.moods)
        self._counter = CallCounter(gateway)
        starlette.router.routes.extend(admin_routes(self._provider, self._counter))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a call."""
        await self._counter(scope, receive, send)

    def stop_waiting(self) -> None:
        """End at once what waits for the clock; its clients get no answer, its purchases stand."""
        self._provider.clock.stop()

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        yield
        self._completion.stop()
        self._renderer.close()
        self._provider.close()

    async def _generate(self, endpoint: str, request: Request) -> Response:
        body = await self._auth.admit(request)
        if body is None:
            return answers.unauthorized()
        try:
            order = await _read(body, endpoint)
        except InvalidOrderError as error:
            return answers.invalid(error)
        provider = self._provider
        occasion = provider.moods.occasion(order.picture.digest())
        blocked = self._config.firewall_text in order.picture.prompt
        if blocked and provider.moods.strikes("firewall", occasion):
            return blocked_by_firewall()
        for mood in provider.moods.striking(Stage.REFUSAL, occasion):
            if mood == OWN_FAILURE:
                refusal = own_failure(provider.moods.roll(f"words of {mood}", occasion))
                return self._as_variant(refusal, occasion)
            return self._as_variant(REFUSALS[mood](self._config), occasion)
        if not provider.queue.has_room(provider.clock.now()):
            refusal = answers.rate_limited(self._config.cap, self._config.retry_after_seconds)
            return self._as_variant(refusal, occasion)
        return await self._sell(order, occasion, _root(request))

    async def _sell(self, order: Order, occasion: str, root: str) -> Response:
        """Buy without waiting for anything first, then answer as mode and moods will have it.

        A client that goes away meanwhile changes nothing: the purchase stands.
        """
        provider = self._provider
        purchase = provider.buy(order, occasion)
        self._completion.look_after(purchase, order.webhook, root)
        spoiling = provider.moods.striking(Stage.ANSWER, occasion)
        if self._config.mode == "sync":
            await self._completion.wait_for(purchase)
        if self._config.mode == "queued" or not provider.is_ready(purchase):
            links = self._delivery.future_links(purchase, root)
            told = replace(purchase, id=provider.id_told(purchase))
            answer = answers.queued(told, root, purchase.bought_at, links)
        else:
            answer = await self._completed(purchase.id, root)
        finished = self._as_variant(answer, occasion)
        if "slow_answer" in spoiling:
            now = provider.clock.now()
            await provider.clock.wait_until(now + self._config.slow_answer_seconds)
        for mood in spoiling:
            if mood in SPOILERS:
                return SPOILERS[mood](finished)
        return finished

    async def _completed(self, purchase_id: int, root: str) -> JSONResponse:
        purchase = self._provider.book.by_id(purchase_id)  # as it is by now
        if purchase is None or purchase.cleared:
            return answers.fetched_unknown()
        if purchase.fails:
            return answers.generation_failed(purchase)
        told = replace(purchase, id=self._provider.id_told(purchase))
        return answers.done(told, await self._outputs.outputs(purchase, root))

    async def _fetch(self, request: Request) -> Response:
        if await self._auth.admit(request) is None:
            return answers.unauthorized()
        provider = self._provider
        purchase = provider.find(request.path_params["purchase_id"])
        if purchase is None:
            return answers.fetched_unknown()
        moods, root = provider.moods, _root(request)
        this_time = moods.occasion(f"fetch {purchase.occasion}")
        other = provider.another(purchase) if moods.strikes("fetch_other", this_time) else None
        if other is not None:
            links = await self._outputs.outputs(other, root)
            return self._as_variant(fetched_with_echo(other, links, ()), purchase.occasion)
        answer = self._as_variant(await self._result(purchase, root), purchase.occasion)
        for mood in moods.striking(Stage.FETCH, this_time):
            if mood in FETCH_SPOILERS:
                return FETCH_SPOILERS[mood](answer)
        return answer

    async def _result(self, purchase: Purchase, root: str) -> JSONResponse:
        if not self._completion.is_done(purchase):
            return answers.fetched_too_early()
        if purchase.fails:
            return answers.generation_failed(purchase)
        # After the expiry the links are dead, but the provider goes on naming them.
        links = await self._outputs.outputs(purchase, root)
        echoes = self._provider.moods.striking(Stage.ECHO, purchase.occasion)
        return fetched_with_echo(purchase, links, echoes) if echoes else answers.fetched_done(links)

    def _as_variant(self, answer: JSONResponse, occasion: str) -> Response:
        variants = self._provider.moods.striking(Stage.VARIANT, occasion)
        return as_variant(answer, variants) if variants else answer


async def _read(body: dict[str, object], endpoint: str) -> Order:
    if endpoint == "text2img":
        return read_order(body)
    references = await read_references(body, endpoint)
    hashes = [each.sha256 for each in references]
    return read_order(body, endpoint, hashes, references[0].size)


def _or_no_answer(endpoint: _Endpoint) -> _Endpoint:
    """Give no answer where there is nobody to hear it, or the emulator stops before it is due."""

    async def answer(request: Request) -> Response:
        try:
            return await endpoint(request)
        except (ClientDisconnect, ClockStoppedError):
            return NoAnswer()

    return answer


async def _no_such_address(_: Request, __: Exception) -> Response:
    return answers.not_found()


def _root(request: Request) -> str:
    """Tell how the client reached the emulator, so that links lead it back the same way."""
    return str(request.base_url).rstrip("/")
