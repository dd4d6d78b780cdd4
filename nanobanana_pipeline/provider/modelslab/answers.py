"""What the provider says, brought to a small closed set of outcomes.

The body decides, not the HTTP status: the vendor answers errors under 200 and `processing` under
400. Only where the body says nothing does the status count. Whatever comes, the parsers return an
outcome and never raise.
"""

import json
import math
import re
import time
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from typing import Any, Final

from nanobanana_pipeline.provider.outcomes import (
    Answered,
    Done,
    Failed,
    FetchOutcome,
    Halted,
    Missing,
    OperationOutcome,
    Queued,
    RateLimited,
    Refused,
    SubmitOutcome,
    Unknown,
)

__all__ = ["parse_fetch", "parse_operation", "parse_submit"]

MAX_RETRY_AFTER_SECONDS: Final = 300.0
MAX_REASON_CHARACTERS: Final = 500
MAX_ID_CHARACTERS: Final = 200

MAX_DEPTH: Final = 4
BAD_REQUEST_STATUSES = frozenset({400, 413, 414, 415, 422})
HALT_STATUSES = frozenset({401, 402, 403, 404, 405, 410})
NO_SUCH_ADDRESS = frozenset({404, 410})
REDIRECTION_STATUSES = range(300, 400)
FAILED = frozenset({"error", "failed"})
WELL_DONE = frozenset({"success", "ok"})
GOING_WELL = frozenset({"success", "processing"})
SERVER_ERRORS = range(500, 600)
EPOCH_SECONDS_SINCE = 1_000_000_000
"""A reset header above this is a moment, below it a number of seconds."""

_RATE = re.compile(r"rate.?limit|too many requests|queued requests allowed", re.IGNORECASE)
_ACCOUNT = re.compile(
    r"api.?key|unauthori[sz]ed|insufficient (credit|balance|fund)|out of credits?|no credits? left|"
    r"your (current )?(plan|subscription)|upgrade your",
    re.IGNORECASE,
)
_VALIDATION = re.compile(
    r"\brequired\b|\bmust\b|\bbetween\b|divisible|validation|not (a )?(valid|allowed|supported)|"
    r"\binvalid\b|\bexceeds?\b|too (long|large|many|small)",
    re.IGNORECASE,
)
_FETCH_ID = re.compile(r"/fetch/([^/?#]+)")


def parse_submit(status: int, headers: Mapping[str, str], body: bytes) -> SubmitOutcome:
    """Read the answer to a generation call; headers are looked up without regard to case."""
    answer = _json_object(body)
    if answer is None:
        return _unreadable(status, headers, body)
    said = _said(answer)
    reason = _reason(answer) or f"HTTP {status}, status {said or 'missing'!r}"
    provider_id, output = _provider_id(answer), _output(answer)
    if _is_rate_limit(status, answer, reason, said):
        return RateLimited(_retry_after(headers, answer), reason)
    if status in SERVER_ERRORS:
        return Unknown(f"HTTP {status}: {reason}", provider_id)
    if said in {"success", ""} and output:
        return Done(provider_id, output, _seed(answer), _prompt(answer))
    if provider_id and (said in GOING_WELL or (said == "" and status not in HALT_STATUSES)):
        return Queued(provider_id, _seed(answer))
    if said in FAILED or (said == "" and status in HALT_STATUSES | BAD_REQUEST_STATUSES):
        return _error(status, answer, reason)
    if said == "" and status in REDIRECTION_STATUSES:
        return Halted(f"{reason}; is NANOBANANA_BASE_URL right?")
    return Unknown(f"an answer that says neither done nor failed: {reason}", provider_id)


def parse_fetch(status: int, headers: Mapping[str, str], body: bytes) -> FetchOutcome:
    """Read the answer to `fetch/{id}`, which may be asked again at will."""
    answer = _json_object(body)
    if answer is None:
        outcome = _unreadable(status, headers, body)
        return outcome if isinstance(outcome, Halted | RateLimited) else Unknown(outcome.reason)
    said = _said(answer)
    reason = _reason(answer) or f"HTTP {status}, status {said or 'missing'!r}"
    if _is_rate_limit(status, answer, reason, said):
        return RateLimited(_retry_after(headers, answer), reason)
    if status in SERVER_ERRORS:
        return Unknown(f"HTTP {status}: {reason}")
    output = _output(answer)
    if said in {"success", ""} and output:
        return Done(_provider_id(answer), output, _seed(answer), _prompt(answer))
    if said == "processing":
        return Queued(_provider_id(answer), _seed(answer))
    if said in FAILED and "not found" in reason.lower():
        return Missing(reason)
    if said in FAILED | {""} and status in HALT_STATUSES - NO_SUCH_ADDRESS:
        return Halted(reason)
    if said in FAILED:
        return Halted(reason) if _ACCOUNT.search(reason) else Failed(reason)
    return Unknown(f"an answer that says neither done nor failed: {reason}")


def parse_operation(status: int, headers: Mapping[str, str], body: bytes) -> OperationOutcome:
    """Read the answer to a call that concerns the server or the account, and draws nothing."""
    answer = _json_object(body)
    if answer is None:
        outcome = _unreadable(status, headers, body)
        return outcome if isinstance(outcome, Unknown) else Failed(outcome.reason)
    said = _said(answer)
    reason = _reason(answer) or f"HTTP {status}, status {said or 'missing'!r}"
    if status in SERVER_ERRORS:
        return Unknown(f"HTTP {status}: {reason}")
    if said in WELL_DONE:
        return Answered(answer)
    if said in FAILED or status in HALT_STATUSES | BAD_REQUEST_STATUSES | {
        HTTPStatus.TOO_MANY_REQUESTS
    }:
        return Failed(reason)
    return Unknown(f"an answer that says neither done nor failed: {reason}")


def _error(status: int, answer: Mapping[str, Any], reason: str) -> SubmitOutcome:
    if status in HALT_STATUSES or _ACCOUNT.search(reason):
        return Halted(reason)
    if (
        status in BAD_REQUEST_STATUSES
        or isinstance(answer.get("errors"), dict)
        or _VALIDATION.search(reason)
    ):
        return Refused(reason)
    if status < HTTPStatus.BAD_REQUEST:
        return Failed(reason)
    return Unknown(f"HTTP {status}: {reason}", _provider_id(answer))


def _unreadable(
    status: int, headers: Mapping[str, str], body: bytes
) -> Halted | RateLimited | Unknown:
    text = " ".join(body[:400].decode("utf-8", "replace").split())
    reason = f"HTTP {status} and no JSON object: {text!r}"[:MAX_REASON_CHARACTERS]
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return RateLimited(_retry_after(headers, {}), reason)
    if status in HALT_STATUSES or status in REDIRECTION_STATUSES:
        return Halted(f"{reason}; is NANOBANANA_BASE_URL right?")
    return Unknown(reason)


def _is_rate_limit(status: int, answer: Mapping[str, Any], reason: str, said: str) -> bool:
    if said in GOING_WELL:
        return False
    # An answer that may be a purchase under another name is never taken for a refusal.
    bought = said not in FAILED and bool(_provider_id(answer) or _output(answer))
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return not bought or said == ""
    if bought:
        return False
    says_so = bool(_RATE.search(reason)) or "retry_after" in answer
    return says_so and (status not in SERVER_ERRORS or status == HTTPStatus.SERVICE_UNAVAILABLE)


def _json_object(body: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _said(answer: Mapping[str, Any]) -> str:
    said = answer.get("status")
    return _clean(said).lower() if isinstance(said, str) else ""


def _clean(text: str) -> str:
    """The text as UTF-8 can hold it: a lone surrogate would break whatever is written down."""
    if not text.isascii():
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text.strip()


def _reason(answer: Mapping[str, Any]) -> str:
    said = (
        text
        for name in ("message", "messege", "errors", "error", "detail")
        for text in _texts(answer.get(name))
    )
    return _clean("; ".join(dict.fromkeys(said)))[:MAX_REASON_CHARACTERS]


def _texts(value: object, depth: int = 0) -> Iterator[str]:
    """The words in a string, a list, or a map field → words."""
    if isinstance(value, str):
        if value.strip():
            yield value.strip()
    elif isinstance(value, dict):
        for name, inner in value.items():
            for text in _texts(inner, depth + 1) if depth < MAX_DEPTH else ():
                yield text if name in {"message", "messege"} else f"{name}: {text}"
    elif isinstance(value, list):
        for inner in value if depth < MAX_DEPTH else ():
            yield from _texts(inner, depth + 1)


def _provider_id(answer: Mapping[str, Any]) -> str | None:
    for name in ("id", "request_id"):
        value = answer.get(name)
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        if isinstance(value, str) and _can_be_fetched(value.strip()):
            return value.strip()
    link = answer.get("fetch_result")
    found = _FETCH_ID.search(link) if isinstance(link, str) else None
    return found[1] if found and _can_be_fetched(found[1]) else None


def _can_be_fetched(provider_id: str) -> bool:
    """Whether it can be part of an address."""
    return (
        0 < len(provider_id) <= MAX_ID_CHARACTERS
        and provider_id not in {".", ".."}
        and _clean(provider_id) == provider_id
    )


def _output(answer: Mapping[str, Any]) -> tuple[str, ...]:
    for name in ("output", "proxy_links"):
        value = answer.get(name)
        if isinstance(value, str):
            value = [value]
        elif isinstance(value, dict):
            value = [value[place] for place in sorted(value, key=lambda name: (len(name), name))]
        links = (
            tuple(_clean(link) for link in value if isinstance(link, str) and link.strip())
            if isinstance(value, list)
            else ()
        )
        if links:
            return links
    return ()


def _seed(answer: Mapping[str, Any]) -> int | None:
    meta = answer.get("meta")
    value = meta.get("seed") if isinstance(meta, dict) else None
    value = answer.get("seed") if value is None else value
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, str) and re.fullmatch(r"\d{1,20}", value.strip()):
        return int(value)
    return None


def _prompt(answer: Mapping[str, Any]) -> str | None:
    meta = answer.get("meta")
    value = meta.get("prompt") if isinstance(meta, dict) else None
    return value if isinstance(value, str) else None


def _seconds(value: object) -> float | None:
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        seconds = float(value)
    except OverflowError:
        return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None


def _retry_after(headers: Mapping[str, str], answer: Mapping[str, Any]) -> float | None:
    seconds = _seconds(answer.get("retry_after"))
    if seconds is None:
        seconds = _seconds(headers.get("Retry-After"))
    if seconds is None:
        reset = _seconds(headers.get("X-RateLimit-Reset"))
        if reset is not None:
            seconds = max(0.0, reset - time.time()) if reset > EPOCH_SECONDS_SINCE else reset
    return None if seconds is None else min(seconds, MAX_RETRY_AFTER_SECONDS)
