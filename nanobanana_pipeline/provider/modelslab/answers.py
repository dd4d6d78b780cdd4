"""What the provider says, brought to a small closed set of outcomes.

The body decides first, then the HTTP status: the vendor answers errors under 200 and `processing`
under 400. What an error means is judged by where its words stand, because a message may hold any
words, also those of a prompt:

- a map with a field of the request among its names, or HTTP 400, 413, 414, 415 or 422: the request
  breaks a rule;
- 401, 402, 403: the account;
- a plain message under 2xx, or to a fetch: the provider's own failure.

Only two kinds of message are known by their words, and only at the beginning of a message: rate
limits, and the account's key, credit and plan. A wrong `Failed` costs a second try, a wrong
`Refused` a picture, a wrong `Halted` a launch: in doubt it is `Failed`. An object without a word
under 2xx or 4xx is `Unknown`, except under 429, which says enough by itself. The parsers
return an outcome for every answer and never raise.
"""

import json
import math
import re
import time
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from typing import Any, Final

from nanobanana_pipeline.provider.modelslab.request import ModelsLabRequest
from nanobanana_pipeline.provider.outcomes import (
    Answered,
    Done,
    Echo,
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
ACCOUNT_STATUSES = frozenset({401, 402, 403})
NO_SUCH_ADDRESS = frozenset({404, 410})
HALT_STATUSES = ACCOUNT_STATUSES | NO_SUCH_ADDRESS | {405}
REDIRECTION_STATUSES = range(300, 400)
FAILED = frozenset({"error", "failed"})
WELL_DONE = frozenset({"success", "ok"})
GOING_WELL = frozenset({"success", "processing"})
SERVER_ERRORS = range(500, 600)
EPOCH_SECONDS_SINCE = 1_000_000_000
"""A reset header above this is a moment, below it a number of seconds."""

# What a message may begin with. The words that count stand behind it, and nowhere else.
_LEAD = (
    r"\W*(?:(?:you|your|the|this|have|has|are|is|an?|exceeded|reached|hit|account|current|provided|"
    r"please|sorry|error|invalid|wrong|missing|incorrect|unknown|expired)\W+){0,6}"
)
_RATE = re.compile(
    _LEAD + r"(?:rate.?limit|too many requests|maximum \d+ queued requests)", re.IGNORECASE
)
_ACCOUNT = re.compile(
    _LEAD + r"(?:api.?key|insufficient (?:credit|balance|fund)|out of credits?|no credits? left|"
    r"unauth(?:ori[sz]ed|enticated)(?:\W*$| (?:access|request|user)\b)|upgrade your|"
    r"(?:plan|subscription) (?:is|does|has|too|expired|ended)\b)",
    re.IGNORECASE,
)
_NO_SUCH_REQUEST = re.compile(_LEAD + r"(?:request|id)\b.{0,40}\bnot found", re.IGNORECASE)
_FIELDS = frozenset(ModelsLabRequest.model_fields) | {"ref_image"}
_WORDS_IN = ("message", "messege", "errors", "error", "detail")
_FETCH_ID = re.compile(r"/fetch/([^/?#]+)")


def parse_submit(status: int, headers: Mapping[str, str], body: bytes) -> SubmitOutcome:
    """Read the answer to a generation call; headers are looked up without regard to case."""
    answer = _json_object(body)
    if answer is None:
        return _unreadable(status, headers, body)
    said, words = _said(answer), _words(answer)
    reason = words or f"HTTP {status}, status {said or 'missing'!r}"
    provider_id, output = _provider_id(answer), _output(answer)
    if _is_rate_limit(status, answer, words, said):
        return RateLimited(_retry_after(headers, answer), reason)
    if status in SERVER_ERRORS:
        return Unknown(f"HTTP {status}: {reason}", provider_id)
    if said in {"success", ""} and output:
        return Done(provider_id, output, _echo(answer))
    if provider_id and (said in GOING_WELL or (said == "" and status not in HALT_STATUSES)):
        return Queued(provider_id, _echo(answer))
    refuses = said == "" and words and status in HALT_STATUSES | BAD_REQUEST_STATUSES
    if said in FAILED or refuses:
        return _error(status, answer, reason)
    if said == "" and status in REDIRECTION_STATUSES:
        return Halted(f"{reason}; is NANOBANANA_BASE_URL right?", is_sure=False)
    return Unknown(f"an answer that says neither done nor failed: {reason}", provider_id)


def parse_fetch(status: int, headers: Mapping[str, str], body: bytes) -> FetchOutcome:
    """Read the answer to `fetch/{id}`, which may be asked again at will."""
    answer = _json_object(body)
    if answer is None:
        outcome = _unreadable(status, headers, body)
        return outcome if isinstance(outcome, Halted | RateLimited) else Unknown(outcome.reason)
    said, words = _said(answer), _words(answer)
    reason = words or f"HTTP {status}, status {said or 'missing'!r}"
    if _is_rate_limit(status, answer, words, said):
        return RateLimited(_retry_after(headers, answer), reason)
    if status in SERVER_ERRORS:
        return Unknown(f"HTTP {status}: {reason}")
    output = _output(answer)
    if said in {"success", ""} and output:
        return Done(_provider_id(answer), output, _echo(answer))
    if said == "processing":
        return Queued(_provider_id(answer), _echo(answer))
    refuses = said == "" and words and status in HALT_STATUSES - NO_SUCH_ADDRESS
    if said in FAILED or refuses:
        return _fetch_error(status, answer, words, reason)
    return Unknown(f"an answer that says neither done nor failed: {reason}")


def parse_operation(status: int, headers: Mapping[str, str], body: bytes) -> OperationOutcome:
    """Read the answer to a call that concerns the server or the account, and draws nothing."""
    answer = _json_object(body)
    if answer is None:
        outcome = _unreadable(status, headers, body)
        return outcome if isinstance(outcome, Unknown) else Failed(outcome.reason)
    said = _said(answer)
    reason = _words(answer) or f"HTTP {status}, status {said or 'missing'!r}"
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
    """What an answer means that says that it is an error, by where its words stand."""
    blamed = _blamed_fields(answer)
    if status in ACCOUNT_STATUSES and not (blamed and status == HTTPStatus.FORBIDDEN):
        return Halted(reason)
    if blamed:
        return Refused(reason)
    if status in HALT_STATUSES or "key" in _field_names(answer) or _ACCOUNT.match(reason):
        return Halted(reason, is_sure=False)
    if status in BAD_REQUEST_STATUSES:
        return Refused(reason)
    if status < HTTPStatus.BAD_REQUEST:
        return _failed(status, answer, reason)
    return Unknown(f"HTTP {status}: {reason}", _provider_id(answer))


def _fetch_error(
    status: int, answer: Mapping[str, Any], words: str, reason: str
) -> Missing | Halted | Failed:
    """The same for a fetch. An id that may be unknown is `Missing`: `Failed` is bought again."""
    no_id = not _ids(answer) and "not found" in words.lower()
    if status in NO_SUCH_ADDRESS or no_id or _NO_SUCH_REQUEST.match(words):
        return Missing(reason)
    if status in HALT_STATUSES or _ACCOUNT.match(words):
        return Halted(reason, is_sure=status in ACCOUNT_STATUSES)
    return _failed(status, answer, reason)


def _failed(status: int, answer: Mapping[str, Any], reason: str) -> Failed:
    # A flag for unsafe content, or a map of unknown names, is about the request. Neither is a
    # `Refused`: a filter may look at the picture, and the next one may pass.
    about_request = (
        status >= HTTPStatus.BAD_REQUEST
        or isinstance(answer.get("errors"), dict)
        or bool(_blamed_fields(answer))
        or answer.get("nsfw_content_detected") is True
    )
    return Failed(reason, is_own=not about_request, echo=_echo(answer))


def _field_names(answer: Mapping[str, Any]) -> set[str]:
    """The names in the maps field → words, as in `{"errors": {"ref_image.0": ["too large"]}}`."""
    maps = (answer.get(place) for place in _WORDS_IN)
    return {
        str(name).partition(".")[0]
        for each in maps
        if isinstance(each, dict)
        for name, words in each.items()
        if any(_texts(words))
    }


def _blamed_fields(answer: Mapping[str, Any]) -> set[str]:
    """The fields of the request that an answer finds fault with."""
    return _field_names(answer) & _FIELDS


def _unreadable(
    status: int, headers: Mapping[str, str], body: bytes
) -> Halted | RateLimited | Unknown:
    text = " ".join(body[:400].decode("utf-8", "replace").split())
    reason = f"HTTP {status} and no JSON object: {text!r}"[:MAX_REASON_CHARACTERS]
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return RateLimited(_retry_after(headers, {}), reason)
    if status in HALT_STATUSES or status in REDIRECTION_STATUSES:
        return Halted(f"{reason}; is NANOBANANA_BASE_URL right?", is_sure=False)
    return Unknown(reason)


def _is_rate_limit(status: int, answer: Mapping[str, Any], words: str, said: str) -> bool:
    if said in GOING_WELL:
        return False
    # An answer that may be a purchase under another name is never taken for a refusal.
    bought = said not in FAILED and bool(_provider_id(answer) or _output(answer))
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return not bought or said == ""
    if bought:
        return False
    says_so = bool(_RATE.match(words)) or "retry_after" in answer
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


def _utf8(text: str) -> str:
    """The text as UTF-8 can hold it: a lone surrogate would break whatever is written down."""
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _clean(text: str) -> str:
    return _utf8(text).strip()


def _words(answer: Mapping[str, Any]) -> str:
    """Every message in an answer; empty if there is none."""
    said = (text for name in _WORDS_IN for text in _texts(answer.get(name)))
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
    """The id to fetch by."""
    return next(iter(_ids(answer)), None)


def _ids(answer: Mapping[str, Any]) -> tuple[str, ...]:
    """Every id that an answer names and that can be fetched, the one to fetch by first."""
    link = answer.get("fetch_result")
    found = _FETCH_ID.search(link) if isinstance(link, str) else None
    named = [answer.get("id"), answer.get("request_id"), found[1] if found else None]
    texts = (
        str(value).strip()
        for value in named
        if isinstance(value, str | int) and not isinstance(value, bool)
    )
    return tuple(dict.fromkeys(text for text in texts if _can_be_fetched(text)))


def _echo(answer: Mapping[str, Any]) -> Echo:
    track_id, prompt = _named(answer, "track_id"), _named(answer, "prompt")
    return Echo(
        _ids(answer),
        _utf8(track_id) if isinstance(track_id, str) and track_id else None,
        _utf8(prompt) if isinstance(prompt, str) and prompt else None,
        _seed(_named(answer, "seed")),
    )


def _named(answer: Mapping[str, Any], name: str) -> object:
    """A fact of the request: in `meta`, else beside it."""
    meta = answer.get("meta")
    value = meta.get(name) if isinstance(meta, dict) else None
    return answer.get(name) if value is None else value


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


def _seed(value: object) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, str) and re.fullmatch(r"\d{1,20}", value.strip()):
        return int(value)
    return None


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
