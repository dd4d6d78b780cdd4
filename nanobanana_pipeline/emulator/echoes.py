"""What the answer to a fetch says of the request: nothing, the truth, or something else.

The documented answer names neither id nor request. A mood of `Stage.ECHO` names both, and changes
one of them; the picture is the right one all the same. Moods of one answer add up.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeAlias

from starlette.responses import JSONResponse

from nanobanana_pipeline.emulator import answers
from nanobanana_pipeline.emulator.purchases import Purchase

_Body: TypeAlias = dict[str, Any]
_ROW_NUMBERS = 1_000_000


def _in_meta(body: _Body, **fields: object) -> _Body:
    return body | {"meta": body["meta"] | fields}


def _another_seed(body: _Body) -> _Body:
    return _in_meta(body, seed=body["meta"]["seed"] + 1)


def _trimmed(body: _Body) -> _Body:
    prompt: str = body["meta"]["prompt"]
    return _in_meta(body, prompt=prompt[: max(1, len(prompt) // 2)].strip())


def _translated(body: _Body) -> _Body:
    return _in_meta(body, prompt=f"Une image : {body['meta']['prompt']}")


def _two_ids(body: _Body) -> _Body:
    return body | {"id": body["id"] % _ROW_NUMBERS, "request_id": body["id"]}


# Each mood of Stage.ECHO.
ECHOES: Mapping[str, Callable[[_Body], _Body]] = {
    "fetch_meta": lambda body: body,
    "fetch_seed": _another_seed,
    "fetch_trimmed": _trimmed,
    "fetch_translated": _translated,
    "both_ids": _two_ids,
}


def fetched_with_echo(purchase: Purchase, links: list[str], moods: Collection[str]) -> JSONResponse:
    """Answer a fetch of finished pictures, and say of which request they are."""
    body = answers.named_done(purchase, links)
    for name, change in ECHOES.items():
        if name in moods:
            body = change(body)
    return JSONResponse(body)
