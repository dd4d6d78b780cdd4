"""Variants in which the provider's answers have been observed: same meaning, another body.

A variant takes the answer that `answers.py` documents and gives the one that may come instead.
Variants of one answer add up, in the order of `VARIANTS`.
"""

import json
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeAlias

from starlette.responses import JSONResponse, Response

_Body: TypeAlias = dict[str, Any]
ESCAPED_SLASHES = "escaped_slashes"
PROCESSING_400 = "processing_400"


def _messege(body: _Body) -> _Body:
    return {"messege" if name == "message" else name: value for name, value in body.items()}


def _output_string(body: _Body) -> _Body:
    output = body.get("output")
    alone = isinstance(output, list) and len(output) == 1
    return body | {"output": output[0]} if output and alone else body


def _output_blank(body: _Body) -> _Body:
    return body | {"output": ""} if body.get("output") == [] else body


def _output_null(body: _Body) -> _Body:
    nothing = "output" in body and not body["output"]
    return body | {"output": None} if nothing else body


def _links(body: _Body) -> list[str]:
    output = body.get("output")
    return output if isinstance(output, list) else [output] if output else []


def _proxy_links_list(body: _Body) -> _Body:
    return body | {"proxy_links": links} if (links := _links(body)) else body


def _proxy_links_map(body: _Body) -> _Body:
    links = {str(number): link for number, link in enumerate(_links(body))}
    return body | {"proxy_links": links} if links else body


def _extras(body: _Body) -> _Body:
    if body.get("status") != "success":
        return body
    tip = "Get faster answers with an enterprise plan"
    return body | {"nsfw_content_detected": False, "webhook_status": "", "tip": tip}


def _id_string(body: _Body) -> _Body:
    return body | {"id": str(body["id"])} if "id" in body else body


def _request_id(body: _Body) -> _Body:
    return {"request_id" if name == "id" else name: value for name, value in body.items()}


def _no_meta(body: _Body) -> _Body:
    return {name: value for name, value in body.items() if name != "meta"}


def _eta_float(body: _Body) -> _Body:
    return body | {"eta": body["eta"] + 0.5} if "eta" in body else body


# Each mood of Stage.VARIANT that says the same in another body.
VARIANTS: Mapping[str, Callable[[_Body], _Body]] = {
    "output_blank": _output_blank,
    "output_null": _output_null,
    "proxy_links_list": _proxy_links_list,
    "proxy_links_map": _proxy_links_map,
    "output_string": _output_string,
    "extras": _extras,
    "messege": _messege,
    "no_meta": _no_meta,
    "eta_float": _eta_float,
    "id_string": _id_string,
    "request_id": _request_id,
}


def as_variant(answer: JSONResponse, moods: Collection[str]) -> Response:
    """Give an answer in the shapes that are the mood."""
    body = json.loads(bytes(answer.body))
    for name, vary in VARIANTS.items():
        if name in moods:
            body = vary(body)
    text = json.dumps(body, separators=(",", ":"))
    if ESCAPED_SLASHES in moods:
        text = text.replace("/", r"\/")
    early = PROCESSING_400 in moods and body.get("status") == "processing"
    status_code = 400 if early else answer.status_code
    headers = {
        name: value
        for name, value in answer.headers.items()
        if name not in {"content-length", "content-type"}
    }
    return Response(text, status_code, headers, "application/json")
