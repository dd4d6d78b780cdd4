"""Faults that moods put into the answers to calls: refusals, errors, cut connections."""

import json
import time
from collections.abc import Callable, Mapping

from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.types import Receive, Scope, Send

from nanobanana_pipeline.emulator import answers
from nanobanana_pipeline.emulator.config import EmulatorConfig
from nanobanana_pipeline.emulator.validation import InvalidOrderError

CUT_CONNECTION = "cut_connection"


class NoAnswer(Response):
    """Ends the connection without a byte of answer.

    ASGI has no word for that, so the server's protocol puts the means into the request's state; see
    `server.CuttableProtocol`.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - the signature is ASGI's
        """Cut the connection, and return once the server knows it."""
        scope["state"][CUT_CONNECTION]()
        while (await receive())["type"] != "http.disconnect":
            pass


def _refuse_in_200(_: EmulatorConfig) -> JSONResponse:
    reason = InvalidOrderError({"prompt": ["prompt is not allowed"]})
    return answers.invalid(reason, status_code=200)


def _limit_by_header(config: EmulatorConfig) -> JSONResponse:
    body = {"status": "error", "message": answers.rate_limit_words(config.cap)}
    reset = str(int(time.time() + config.retry_after_seconds))
    return JSONResponse(body, 429, {"X-RateLimit-Reset": reset})


def _limit_in_503(config: EmulatorConfig) -> JSONResponse:
    answer = answers.rate_limited(config.cap, config.retry_after_seconds)
    answer.status_code = 503
    return answer


def _refuse_with(errors: object) -> JSONResponse:
    return JSONResponse({"status": "error", "errors": errors}, 400)


OWN_FAILURE = "own_failure"
"""The mood of Stage.REFUSAL that is in no table: its words hang on the dice."""

OWN_FAILURES = (
    "Try again later",
    "Server is overloaded: too many jobs",
    "invalid response from GPU worker",
    "CUDA out of memory: the allocation exceeds what is free",
)


def own_failure(roll: float) -> JSONResponse:
    """Answer under HTTP 200 that the provider failed by itself; `roll` picks the words."""
    words = OWN_FAILURES[int(roll * len(OWN_FAILURES))]
    return JSONResponse({"status": "error", "message": words})


# Each mood of Stage.REFUSAL: instead of a purchase.
REFUSALS: Mapping[str, Callable[[EmulatorConfig], JSONResponse]] = {
    "http_500_before": lambda _: answers.server_error(),
    "error_200": _refuse_in_200,
    "rate_limited": lambda config: answers.rate_limited(config.cap, config.retry_after_seconds),
    "unauthorized": lambda _: answers.unauthorized(),
    "no_credit": lambda _: answers.no_credit(),
    "plan_too_small": lambda _: answers.plan_too_small(),
    "rate_limited_503": _limit_in_503,
    "rate_limited_header": _limit_by_header,
    "error_list": lambda _: _refuse_with(["prompt is not allowed"]),
    "error_map": lambda _: _refuse_with({"prompt": ["prompt is not allowed"]}),
}


def _as_html(_: Response) -> Response:
    return HTMLResponse("<!DOCTYPE html><html><body><h1>502 Bad Gateway</h1></body></html>")


def _cut_in_half(answer: Response) -> Response:
    # Its Content-Length fits what is sent, so only a parser can notice.
    body = bytes(answer.body)
    return Response(body[: len(body) // 2], answer.status_code, media_type=answer.media_type)


def _in_a_list(answer: Response) -> Response:
    return JSONResponse([json.loads(bytes(answer.body))], answer.status_code)


# Each mood of Stage.ANSWER that replaces the answer of a purchase. One of them at most is used.
SPOILERS: Mapping[str, Callable[[Response], Response]] = {
    "http_500_after": lambda _: answers.server_error(),
    "lost_answer_after": lambda _: NoAnswer(),
    "html_answer": _as_html,
    "cut_json": _cut_in_half,
    "empty_body": lambda answer: Response(b"", answer.status_code, media_type=answer.media_type),
    "json_list": _in_a_list,
    "empty_object": lambda _: JSONResponse({}),
    "queued_true": lambda _: JSONResponse({"queued": True}, 400),
}

# Each mood of Stage.FETCH. One of them at most is used.
FETCH_SPOILERS: Mapping[str, Callable[[Response], Response]] = {
    "fetch_500": lambda _: answers.server_error(),
    "fetch_html": _as_html,
    "fetch_cut": _cut_in_half,
}
