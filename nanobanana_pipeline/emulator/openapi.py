"""The emulator's own description: an OpenAPI 3.1 document of all that it answers.

What requests may hold is told by the rules that read them, what answers look like by
`answer_schemas.py`. Answers that a mood breaks off, loses or replaces by HTML are not described.
"""

from collections.abc import Mapping, Sequence
from importlib.metadata import version

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from nanobanana_pipeline.emulator.account_books import assets_schema
from nanobanana_pipeline.emulator.admin import LONGEST_ADVANCE
from nanobanana_pipeline.emulator.answer_schemas import RATE, answer_schemas, shape
from nanobanana_pipeline.emulator.answers import (
    ACCOUNT,
    API,
    BOOKS,
    GENERATIONS,
    OPERATIONS,
    OUTPUTS,
)
from nanobanana_pipeline.emulator.bucket import bucket_schema
from nanobanana_pipeline.emulator.moods import MOODS
from nanobanana_pipeline.emulator.outputs import MEDIA_TYPES
from nanobanana_pipeline.emulator.references import REF_IMAGE, reference_schema
from nanobanana_pipeline.emulator.rules import Schema
from nanobanana_pipeline.emulator.validation import ORDER_RULES

_PATH = "/openapi.json"
_KEY: Schema = {"key": {"type": "string", "minLength": 1}}
_DEPLOYMENT: Schema = {
    "deploy_type": {"description": "Nothing but `nano_banana` means anything here."}
}
_ASPECT = "keep_original_aspect"  # means something only where there is a reference
_STATUSES = {
    "200": "It is as asked.",
    "400": "The body breaks the rules; or it is well and said so under a wrong status.",
    "401": "No key, or a wrong one; so is a body that is no JSON object.",
    "402": "No credit.",
    "403": "The plan is too small.",
    "429": "Too many queued requests.",
    "500": "Something broke; what was bought, nobody says.",
    "503": "Too many queued requests, said so.",
}
_Answers = Mapping[str, Sequence[str]]


def openapi_route() -> Route:
    """Build the route that serves the document."""
    answer = JSONResponse(document())

    async def show(_: Request) -> JSONResponse:
        return answer

    return Route(_PATH, show)


def document() -> Schema:
    """Write the document."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "The emulator of the provider",
            "version": version("nanobanana-pipeline"),
            "description": "The API key travels in the body, as `key`. Fields that are not named"
            " are ignored. Numbers and switches may be spelt in more ways than are named.",
        },
        "paths": {
            **_generations(),
            **_fetching(),
            **_operations(),
            **_account(),
            **_books(),
            **_admin(),
        },
        "components": {"schemas": answer_schemas()},
    }


def _generations() -> Schema:
    answers: _Answers = {
        "200": ["Done", "Queued", "Failed", "Refused"],
        "400": ["Refused", "Queued"],
        **{status: ["Refused"] for status in ("402", "403", "429", "500", "503")},
    }
    paths: Schema = {}
    for endpoint in GENERATIONS:
        call = _call(endpoint, "Buy pictures; each accepted call is a purchase.", answers)
        call["requestBody"] = _order(endpoint)
        call["responses"]["200"]["links"] = {
            "fetch": {
                "operationId": "fetch",
                "parameters": {"purchase_id": "$response.body#/id"},
                "requestBody": {"key": "$request.body#/key"},
            }
        }
        paths[f"{API}{endpoint}"] = {"post": call}
    return paths


def _order(endpoint: str) -> Schema:
    required = dict(_KEY)
    optional: Schema = {}
    for rule in ORDER_RULES:
        (required if rule.required else optional)[rule.name] = rule.as_property()
    if endpoint == "text2img":
        del optional[_ASPECT]
    else:
        required[REF_IMAGE] = reference_schema(endpoint)
        for side in ("width", "height"):  # the reference's, unless told
            del optional[side]["default"]
    return _json(shape(required, optional))


def _fetching() -> Schema:
    answers: _Answers = {
        "200": ["Fetched", "Waiting", "Failed"],
        "400": ["Waiting"],
        "500": ["Refused"],
    }
    fetch = _call("fetch", "Ask for what was bought.", answers)
    fetch["parameters"] = [_in_path("purchase_id")]
    pictures: Schema = {each: {} for each in (*MEDIA_TYPES.values(), "text/plain")}
    output = {
        "operationId": "output",
        "summary": "Load a picture, or its text of base64.",
        "parameters": [_in_path("name")],
        "responses": {
            "200": {"description": "Its bytes.", "content": pictures},
            "302": {"description": "It is elsewhere."},
            "404": {
                "description": "Not yet, not any more, or never.",
                "content": {"text/html": {}},
            },
        },
    }
    return {
        f"{API}fetch/{{purchase_id}}": {"post": fetch},
        f"{OUTPUTS}{{name}}": {"get": output},
    }


def _operations() -> Schema:
    answers = {name: ["Obeyed"] for name in OPERATIONS}
    answers["system_details"] = ["Details", "FlatDetails"]
    return {
        f"{API}{name}": {"post": _call(name, "Tell the server itself.", {"200": schemas})}
        for name, schemas in answers.items()
    }


def _account() -> Schema:
    update = _call(
        "update_s3", "Name a bucket of one's own.", {"200": ["Obeyed"], "400": ["Refused"]}
    )
    update["requestBody"] = _json(shape(_KEY | bucket_schema(), _DEPLOYMENT))
    reset = _call("reset_s3", "Forget that bucket.", {"200": ["Obeyed"]})
    reset["requestBody"] = _json(shape(_KEY, _DEPLOYMENT))
    return {f"{ACCOUNT}update_s3": {"post": update}, f"{ACCOUNT}reset_s3": {"post": reset}}


def _books() -> Schema:
    assets = _call(
        "assets_generated",
        "List what the account was sold, the newest first.",
        {"200": ["Assets"], "400": ["Refused"]},
    )
    required, optional = assets_schema()
    assets["requestBody"] = _json(shape(_KEY | required, optional))
    calls = {
        "assets_generated": assets,
        "wallet_balance": _call(
            "wallet_balance", "See what is left in the wallet.", {"200": ["Wallet"]}
        ),
        "request_count": _call(
            "request_count",
            "Count what is under way.",
            {"200": ["ProcessingCount"], "429": ["Refused"]},
        ),
    }
    return {BOOKS[name]: {"post": call} for name, call in calls.items()}


def _admin() -> Schema:
    advance = shape({"advance": {"type": "number", "minimum": 0, "maximum": LONGEST_ADVANCE}})
    rates = {
        "type": "object",
        "properties": dict.fromkeys(MOODS, RATE),
        "additionalProperties": False,
    }
    return {
        _PATH: {"get": _local("document", "Read this.", "Document")},
        "/healthz": {"get": _local("health", "Ask whether it is up.", "Well")},
        "/admin/purchases": {"get": _local("purchases", "See what was bought.", "Purchases")},
        "/admin/stats": {"get": _local("stats", "See how it was called.", "Stats")},
        "/admin/reset": {"post": _local("reset", "Forget it all.", "Well")},
        "/admin/clock": {
            "get": _local("clock", "Read the clock.", "Clock"),
            "post": _local("advance", "Move the clock forward.", "Clock", advance),
        },
        "/admin/moods": {
            "get": _local("moods", "See the rates.", "Moods"),
            "post": _local("change", "Change some rates.", "Moods", rates),
        },
    }


def _call(name: str, summary: str, answers: _Answers) -> Schema:
    """Describe a call with the key in its body."""
    return {
        "operationId": name,
        "summary": summary,
        "requestBody": _json(shape(_KEY)),
        "responses": {
            status: {"description": _STATUSES[status], **_answer(schemas)}
            for status, schemas in {**answers, "401": ["Refused"]}.items()
        },
    }


def _local(name: str, summary: str, schema: str, body: Schema | None = None) -> Schema:
    """Describe a call without a key."""
    responses: Schema = {"200": {"description": _STATUSES["200"], **_answer([schema])}}
    if schema != "Document":
        responses["403"] = {"description": "Not from loopback.", **_answer(["Wrong"])}
    call = {"operationId": name, "summary": summary, "responses": responses}
    if body is None:
        return call
    responses["400"] = {"description": "It cannot be obeyed.", **_answer(["Wrong"])}
    return {**call, "requestBody": _json(body)}


def _answer(names: Sequence[str]) -> Schema:
    schemas = [{"$ref": f"#/components/schemas/{name}"} for name in names]
    schema = schemas[0] if len(schemas) == 1 else {"anyOf": schemas}
    return {"content": {"application/json": {"schema": schema}}}


def _json(schema: Schema) -> Schema:
    return {"required": True, "content": {"application/json": {"schema": schema}}}


def _in_path(name: str) -> Schema:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
