"""The shapes of the emulator's answers, as JSON Schemas by name.

They are the documented ones, and every other that a mood gives them, as long as it is a whole JSON
object: `answers.py` and `response_variants.py` make them.
"""

from nanobanana_pipeline.emulator.moods import MOODS
from nanobanana_pipeline.emulator.rules import Schema

RATE: Schema = {"type": "number", "minimum": 0, "maximum": 1}

_TEXT: Schema = {"type": "string"}
_NUMBER: Schema = {"type": "number"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_LINKS: Schema = {"type": "array", "items": _TEXT}
_ID: Schema = {"type": ["integer", "string"]}
_NO_OUTPUT: Schema = {"enum": ["", None, []]}
_OUTPUT: Schema = {"anyOf": [_LINKS | {"minItems": 1}, _TEXT | {"minLength": 1}]}
_COUNTS: Schema = {"type": "object", "additionalProperties": _COUNT}


def shape(required: Schema, optional: Schema | None = None) -> Schema:
    """Make the schema of an object; it may have further fields."""
    properties = required | (optional or {})
    return {"type": "object", "properties": properties, "required": list(required)}


def _either(*names: str) -> Schema:
    """Say that one of several fields is there."""
    return {"anyOf": [{"required": [name]} for name in names]}


def _every(*parts: Schema) -> Schema:
    return {"allOf": list(parts)}


def answer_schemas() -> dict[str, Schema]:
    """Give the schema of each shape, by the name that the document refers to it by."""
    id_there, words_there = _either("id", "request_id"), _either("message", "messege")
    ids: Schema = {"id": _ID, "request_id": _ID}
    words: Schema = {"message": _TEXT, "messege": _TEXT}
    meta = shape(
        {
            "prompt": _TEXT,
            "negative_prompt": _TEXT,
            "W": _COUNT,
            "H": _COUNT,
            "seed": {"type": "integer", "minimum": 1},
            "n_samples": {"type": "integer", "minimum": 1, "maximum": 4},
            "noise_scale_start": _NUMBER,
            "noise_scale_end": _NUMBER,
            "noise_clip_std": _NUMBER,
            "watermark": {"enum": ["yes", "no"]},
            "track_id": {"type": ["string", "null"]},
            "file_prefix": _TEXT,
        }
    )
    extras: Schema = {
        "proxy_links": {"anyOf": [_LINKS, {"type": "object", "additionalProperties": _TEXT}]},
        "nsfw_content_detected": {"type": "boolean"},
        "webhook_status": _TEXT,
        "tip": _TEXT,
    }
    fetched = shape({"status": {"const": "success"}, "output": _OUTPUT}, extras)
    waiting = shape({"status": {"const": "processing"}, "output": _NO_OUTPUT}, words)
    queued = shape(
        {
            "eta": _NUMBER | {"minimum": 0},
            "fetch_result": _TEXT,
            "future_links": _LINKS | {"minItems": 1},
        },
        ids | {"meta": meta},
    )
    failed = shape({"status": {"const": "failed"}, "output": _NO_OUTPUT}, ids | words)
    errors: Schema = {"anyOf": [_LINKS, {"type": "object", "additionalProperties": _LINKS}]}
    refused = shape(
        {"status": {"const": "error"}},
        words | {"errors": errors, "retry_after": _NUMBER | {"minimum": 0}},
    )
    done = shape({"generationTime": _NUMBER | {"minimum": 0}}, ids | {"meta": meta})
    return {
        "Done": _every(fetched, done, id_there),
        "Queued": _every(waiting, queued, words_there, id_there),
        "Failed": _every(failed, words_there, id_there),
        "Refused": _every(refused, _either("message", "messege", "errors")),
        "Fetched": fetched,
        "Waiting": _every(waiting, words_there),
        "Obeyed": shape({"status": {"const": "success"}, "message": _TEXT}),
        "Details": shape(
            {
                "status": {"const": "success"},
                "data": shape({"server_version": _TEXT, "uptime": _TEXT, "gpu_usage": _TEXT}),
            }
        ),
        "FlatDetails": shape(
            {"status": {"const": "ok"}, "model_count": _COUNT, "queue_time": _NUMBER}
        ),
        **_book_schemas(),
        **_admin_schemas(),
    }


def _book_schemas() -> dict[str, Schema]:
    sold = shape({"id": {"type": "integer"}, "output": _LINKS | {"minItems": 1}})
    place: Schema = {"type": ["integer", "null"], "minimum": 1}
    numbers = dict.fromkeys(("current_page", "per_page", "last_page"), _COUNT)
    pages = shape(numbers | {"total": _COUNT, "from": place, "to": place})
    success: Schema = {"status": {"const": "success"}}
    return {
        "Assets": shape(
            success | {"type": _TEXT, "data": {"type": "array", "items": sold}, "pagination": pages}
        ),
        "Wallet": shape(success | {"data": shape({"balance": _NUMBER, "currency": _TEXT})}),
        "ProcessingCount": shape(success | {"processing_count": _COUNT}),
    }


def _admin_schemas() -> dict[str, Schema]:
    group = shape(
        {
            "picture_hash": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
            "count": {"type": "integer", "minimum": 1},
            "failed": _COUNT,
            "samples": {"type": "integer", "minimum": 1},
            "endpoint": _TEXT,
            "prompt": _TEXT,
            "seed": _COUNT,
            "references": _LINKS,
            "ids": {"type": "array", "items": {"type": "integer"}},
            "track_ids": {"type": "array", "items": {"type": ["string", "null"]}},
            "times": {"type": "array", "items": _NUMBER},
        }
    )
    counted = dict.fromkeys(("total", "images", "failed", "bought_twice"), _COUNT)
    return {
        "Well": shape({"status": {"const": "ok"}}),
        "Clock": shape({"now": _NUMBER}),
        "Moods": shape(dict.fromkeys(MOODS, RATE)),
        "Purchases": shape(counted | {"groups": {"type": "array", "items": group}}),
        "Stats": shape(
            {
                "calls": {"type": "object", "additionalProperties": _COUNTS},
                "rate_limited": _COUNT,
                "cap": {"type": "integer", "minimum": 1},
                "in_flight": _COUNT,
                "max_in_flight": _COUNT,
                "mean_in_flight": _NUMBER,
                "mean_use": _NUMBER,
            }
        ),
        "Document": shape({"openapi": _TEXT, "info": {"type": "object"}}),
        "Wrong": shape({"error": _TEXT}),
    }
