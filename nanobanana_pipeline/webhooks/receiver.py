"""The door at which the provider's webhooks arrive: it checks the address and keeps the body.

Nothing is decided here. What counts is the path, whose token only we can have made; what the body
says is kept for whoever asks the provider. A body that is no JSON is kept too: nobody has seen
every shape that the provider sends, it is bounded, and that it came at all says that it is time to
ask.
"""

import asyncio
import concurrent.futures
import logging
import threading
from collections.abc import Callable
from http import HTTPStatus
from importlib.metadata import version
from typing import Any, Final, TypeVar

import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from nanobanana_pipeline.errors import StorageError
from nanobanana_pipeline.storage import ObjectStore
from nanobanana_pipeline.webhooks.inbox import Inbox, Webhooks, is_attempt_id

__all__ = ["MAX_BODY_BYTES", "document", "receiver_app", "receiver_server"]

MAX_BODY_BYTES: Final = 64 * 1024
BODY_SECONDS: Final = 10.0
STORE_SECONDS: Final = 10.0
"""Together well below the 30 s that the provider waits."""
WRITES_AT_ONCE: Final = 32
"""Writes to S3; below the sockets of one S3 client."""
STOP_SECONDS: Final = 5

T = TypeVar("T")
log = logging.getLogger(__name__)


def receiver_app(store: ObjectStore, webhooks: Webhooks) -> Starlette:
    """An ASGI application that keeps genuine webhooks in the inbox of `store`.

    ``POST /webhooks/{attempt_id}/{token}`` answers 204 once a body is kept (or was before, or finds
    its inbox full), 403 to a wrong token, 404 to what is no attempt id, 408 and 413 to what is too
    slow or above 64 KiB, and 503 when S3 does not take it: the sender may come again.
    ``GET /healthz`` answers 200 as long as this process does; ``GET /openapi.json`` says all this.
    """
    receiver = _Receiver(Inbox(store), webhooks)
    app = Starlette(
        routes=[
            Route("/webhooks/{attempt_id}/{token}", receiver.receive, methods=["POST"]),
            Route("/healthz", _healthy),
            Route("/openapi.json", _describe),
        ]
    )
    # A redirect would repeat the token, to a host that the caller names.
    app.router.redirect_slashes = False
    return app


def receiver_server(app: Starlette) -> uvicorn.Server:
    """A server for it, to be run on a listening socket: ``server.run(sockets=[…])``.

    SIGTERM and SIGINT end it; what is under way then gets five seconds.
    """
    return uvicorn.Server(
        uvicorn.Config(
            app,
            ws="none",
            lifespan="off",
            access_log=False,  # the paths hold tokens
            log_config=None,  # leave the logging of this process as it is
            log_level="warning",
            server_header=False,
            timeout_graceful_shutdown=STOP_SECONDS,
        )
    )


class _Receiver:
    def __init__(self, inbox: Inbox, webhooks: Webhooks) -> None:
        self._inbox = inbox
        self._webhooks = webhooks
        self._turns = threading.BoundedSemaphore(WRITES_AT_ONCE)

    async def receive(self, request: Request) -> Response:
        attempt_id, token = request.path_params["attempt_id"], request.path_params["token"]
        if not is_attempt_id(attempt_id):
            return _refused(HTTPStatus.NOT_FOUND)
        if not self._webhooks.is_genuine(attempt_id, token):
            log.warning("a webhook for attempt %s had a wrong token", attempt_id)
            return _refused(HTTPStatus.FORBIDDEN)
        try:
            async with asyncio.timeout(BODY_SECONDS):
                body = await _read(request)
        except TimeoutError:
            return _refused(HTTPStatus.REQUEST_TIMEOUT)
        except ClientDisconnect:
            return _refused(HTTPStatus.BAD_REQUEST)  # nobody hears it
        if body is None:
            log.warning("a webhook for attempt %s is above 64 KiB: not kept", attempt_id)
            return _refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        if not await self._keep(attempt_id, body):
            return _refused(HTTPStatus.SERVICE_UNAVAILABLE)
        return Response(status_code=HTTPStatus.NO_CONTENT)

    async def _keep(self, attempt_id: str, body: bytes) -> bool:
        """Whether S3 took it, now or before. A write that comes too late does no harm."""
        if not self._turns.acquire(blocking=False):
            log.error("a webhook for attempt %s was not kept: S3 is too slow", attempt_id)
            return False

        def put() -> bool:
            try:
                return self._inbox.put(attempt_id, body)
            finally:
                self._turns.release()

        try:
            async with asyncio.timeout(STORE_SECONDS):
                new = await _in_thread(put)
        except TimeoutError:
            log.error(  # noqa: TRY400 - where it waited is no news
                "a webhook for attempt %s was not kept: S3 did not take it in %.0f s",
                attempt_id,
                STORE_SECONDS,
            )
            return False
        except StorageError as error:
            log.error("a webhook for attempt %s was not kept: %s", attempt_id, error)  # noqa: TRY400
            return False
        log.info("a webhook for attempt %s: %s", attempt_id, "kept" if new else "nothing new")
        return True


async def _read(request: Request) -> bytes | None:
    """The body; None as soon as it is too large."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            return None
    return bytes(body)


async def _in_thread(work: Callable[[], T]) -> T:
    """Do blocking work in a thread that dies with the process.

    A pool would not do: Python waits for its threads at the end, and S3 may be silent for long.
    """
    done: concurrent.futures.Future[T] = concurrent.futures.Future()
    done.set_running_or_notify_cancel()  # so that nobody who stops waiting can cancel it

    def run() -> None:
        try:
            done.set_result(work())
        except Exception as error:  # noqa: BLE001 - it is raised where the work is awaited
            done.set_exception(error)

    threading.Thread(target=run, name="webhook", daemon=True).start()
    return await asyncio.wrap_future(done)


async def _healthy(_: Request) -> Response:
    return PlainTextResponse("ok")


async def _describe(_: Request) -> Response:
    return JSONResponse(document())


def _refused(status: HTTPStatus) -> Response:
    return PlainTextResponse(REFUSALS[status], status)


REFUSALS: Final = {
    HTTPStatus.BAD_REQUEST: "The body was cut off.",
    HTTPStatus.FORBIDDEN: "Not yours to tell.",
    HTTPStatus.NOT_FOUND: "No such address.",
    HTTPStatus.REQUEST_TIMEOUT: "The body did not come in time.",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "The body is above 64 KiB.",
    HTTPStatus.SERVICE_UNAVAILABLE: "It could not be kept: please send it again.",
}


def document() -> dict[str, Any]:
    """What the receiver takes and answers, as OpenAPI 3.1."""
    text = {"text/plain": {"schema": {"type": "string"}}}
    path = [
        _in_path("attempt_id", "^[0-9a-f]{64}\\.[0-9a-f]{16}$", "<request key>.<attempt nonce>"),
        _in_path("token", "^[0-9a-f]{64}$", "HMAC-SHA256 of the attempt id under our secret"),
    ]
    return {
        "openapi": "3.1.0",
        "info": {"title": "Nanobanana webhook receiver", "version": version("nanobanana-pipeline")},
        "paths": {
            "/webhooks/{attempt_id}/{token}": {
                "post": {
                    "operationId": "tell",
                    "summary": "Tell what became of an attempt.",
                    "parameters": path,
                    "requestBody": {"content": {"application/json": PAYLOAD}},
                    "responses": {
                        str(HTTPStatus.NO_CONTENT): {"description": "It is kept, now or before."},
                        **{
                            str(status): {"description": said, "content": text}
                            for status, said in REFUSALS.items()
                        },
                    },
                }
            },
            "/healthz": {
                "get": {
                    "operationId": "health",
                    "summary": "Tell whether this process answers.",
                    "responses": {"200": {"description": "It does.", "content": text}},
                }
            },
        },
    }


def _in_path(name: str, pattern: str, description: str) -> dict[str, Any]:
    return {
        "name": name,
        "in": "path",
        "required": True,
        "description": description,
        "schema": {"type": "string", "pattern": pattern},
    }


PAYLOAD: Final = {
    "schema": {
        "description": "As the provider sends it; nothing of it is required, and none is believed.",
        "properties": {
            "status": {"type": "string", "examples": ["success", "failed"]},
            "id": {"type": ["integer", "string"]},
            "request_id": {"type": ["integer", "string"]},
            "track_id": {"type": ["string", "null"]},
            "message": {"type": "string"},
            "output": {"type": "array", "items": {"type": "string"}},
        },
    }
}
