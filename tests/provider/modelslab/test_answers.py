"""Every shape of answer the contract knows, and any other bytes, come to one of few outcomes."""

import dataclasses
import json
import time
from typing import Any, get_args

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from requests.structures import CaseInsensitiveDict

from nanobanana_pipeline.provider.modelslab.answers import parse_fetch, parse_submit
from nanobanana_pipeline.provider.outcomes import (
    Done,
    Echo,
    Failed,
    FetchOutcome,
    Halted,
    Missing,
    Queued,
    RateLimited,
    Refused,
    SubmitOutcome,
    Unknown,
)

URL = "https://cdn.example/0-a.png"
URL_2 = "https://cdn.example/1-a.png"


def submit(answer: object, status: int = 200, **headers: str) -> SubmitOutcome:
    return parse_submit(status, headers_of(headers), bytes_of(answer))


def fetch(answer: object, status: int = 200, **headers: str) -> FetchOutcome:
    return parse_fetch(status, headers_of(headers), bytes_of(answer))


def bytes_of(answer: object) -> bytes:
    return answer if isinstance(answer, bytes) else json.dumps(answer).encode()


def headers_of(headers: dict[str, str]) -> CaseInsensitiveDict[str]:
    return CaseInsensitiveDict({name.replace("_", "-"): value for name, value in headers.items()})


def done(provider_id: str | None, output: tuple[str, ...], **echo: Any) -> Done:
    return Done(provider_id, output, Echo(() if provider_id is None else (provider_id,), **echo))


def queued(provider_id: str) -> Queued:
    return Queued(provider_id, Echo((provider_id,)))


# --- done ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ([URL], (URL,)),
        ([URL, URL_2], (URL, URL_2)),
        (URL, (URL,)),
        ({"0": URL, "1": URL_2}, (URL, URL_2)),
        ({str(n): f"u{n}" for n in (10, 2, 0, 1)}, ("u0", "u1", "u2", "u10")),
        ([URL, None, "", 5, {}], (URL,)),
        (f"  {URL}\n", (URL,)),
        (["data:image/png;base64,AAAA"], ("data:image/png;base64,AAAA",)),
    ],
)
def test_output_is_understood_in_every_shape(output: object, expected: tuple[str, ...]) -> None:
    assert submit({"status": "success", "id": 7, "output": output}) == done("7", expected)
    assert fetch({"status": "success", "output": output}) == done(None, expected)


@pytest.mark.parametrize("links", [[URL], {"0": URL}, URL])
@pytest.mark.parametrize("output", [[], "", None, {}])
def test_proxy_links_stand_in_for_an_empty_output(links: object, output: object) -> None:
    answer = {"status": "success", "id": 7, "output": output, "proxy_links": links}
    assert submit(answer) == done("7", (URL,))
    assert fetch(answer) == done("7", (URL,))


def test_escaped_slashes_are_slashes() -> None:
    body = rb'{"status":"success","id":1,"output":["https:\/\/cdn.example\/0-a.png"]}'
    assert submit(body) == done("1", (URL,))


@pytest.mark.parametrize("status", [200, 201, 400, 404])
def test_a_success_is_one_whatever_the_http_status_below_500(status: int) -> None:
    assert submit({"status": "success", "id": 7, "output": [URL]}, status) == done("7", (URL,))


def test_a_success_without_an_id_is_done() -> None:
    assert submit({"status": "success", "output": [URL]}) == done(None, (URL,))


def test_a_success_without_output_is_asked_for_by_its_id() -> None:
    assert submit({"status": "success", "id": 7, "output": []}) == queued("7")


def test_a_success_without_id_and_output_is_unknown() -> None:
    assert isinstance(submit({"status": "success"}), Unknown)


def test_a_fetched_success_without_output_is_asked_for_again() -> None:
    assert isinstance(fetch({"status": "success", "output": []}), Unknown)


@pytest.mark.parametrize("status", ["Success", " SUCCESS "])
def test_the_status_word_is_read_without_case(status: str) -> None:
    assert submit({"status": status, "id": 7, "output": [URL]}) == done("7", (URL,))


@pytest.mark.parametrize(
    ("answer", "seed"),
    [
        ({"meta": {"seed": 4294967296}}, 4294967296),
        ({"meta": {"seed": "42"}}, 42),
        ({"seed": 42}, 42),
        ({"meta": [], "seed": 42}, 42),
        ({"meta": {"W": 1024}, "seed": 42}, 42),
        ({"meta": {"seed": True}}, None),
        ({"meta": {"seed": 4.5}}, None),
        ({"meta": {"seed": "random"}}, None),
        ({"meta": {"seed": "9" * 30}}, None),
        ({}, None),
    ],
)
def test_the_seed_reported_is_kept_and_never_guessed(
    answer: dict[str, object], seed: int | None
) -> None:
    said = {"status": "success", "id": 7, "output": [URL], **answer}
    assert submit(said) == fetch(said) == done("7", (URL,), seed=seed)


@pytest.mark.parametrize("word", ["success", "processing", "failed"])
@pytest.mark.parametrize(
    ("answer", "echo"),
    [
        ({"id": 7}, Echo(("7",))),
        ({"id": "7", "request_id": 8}, Echo(("7", "8"))),
        ({"id": 7, "request_id": "7"}, Echo(("7",))),
        ({"id": "..", "request_id": 8}, Echo(("8",))),
        ({"id": 7, "fetch_result": "https://x/fetch/9"}, Echo(("7", "9"))),
        ({"id": 7, "track_id": "mark"}, Echo(("7",), "mark")),
        ({"id": 7, "meta": {"track_id": "mark"}}, Echo(("7",), "mark")),
        ({"id": 7, "track_id": ""}, Echo(("7",))),
        ({"id": 7, "track_id": None, "meta": {"track_id": 5}}, Echo(("7",))),
        ({"id": 7, "meta": {"prompt": " a fox\n"}}, Echo(("7",), prompt=" a fox\n")),
        ({"id": 7, "prompt": "a fox"}, Echo(("7",), prompt="a fox")),
        ({"id": 7, "meta": {"prompt": ["a fox"]}}, Echo(("7",))),
        ({"id": 7, "meta": {"prompt": "\ud800"}}, Echo(("7",), prompt="\ufffd")),
        ({"id": 7, "meta": {"seed": 2**40}, "seed": 1}, Echo(("7",), seed=2**40)),
    ],
)
def test_an_answer_carries_what_it_says_of_its_request(
    word: str, answer: dict[str, object], echo: Echo
) -> None:
    said = {"status": word, "output": [URL], "message": "overloaded", **answer}
    for outcome in (submit(said), fetch(said)):
        assert isinstance(outcome, Done | Queued | Failed)
        assert outcome.echo == echo


# --- queued --------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 202, 400, 404, 429])
@pytest.mark.parametrize("output", [[], "", None])
def test_processing_is_queued_under_any_status_below_500(status: int, output: object) -> None:
    answer = {
        "status": "processing",
        "id": 99,
        "eta": 12.5,
        "output": output,
        "messege": "Rate limit? No: try again",
        "future_links": [URL],
    }
    assert submit(answer, status) == queued("99")


def test_links_of_a_picture_still_to_come_are_not_its_output() -> None:
    answer = {"status": "processing", "id": 1, "output": [URL], "future_links": [URL]}
    assert submit(answer) == queued("1")
    assert fetch(answer) == queued("1")


@pytest.mark.parametrize(
    ("fields", "provider_id"),
    [
        ({"id": 123}, "123"),
        ({"id": " 123 "}, "123"),
        ({"id": "0f3b-uuid"}, "0f3b-uuid"),
        ({"id": 2**70}, str(2**70)),
        ({"id": "", "request_id": 5}, "5"),
        ({"request_id": "5"}, "5"),
        ({"fetch_result": "https://other.example/api/fetch/777"}, "777"),
        ({"id": None, "fetch_result": "https://x/fetch/777/?a=b"}, "777"),
        ({"id": "..", "request_id": 5}, "5"),
        ({"id": "\ud800", "request_id": 5}, "5"),
        ({"id": "x" * 10_000, "request_id": 5}, "5"),
    ],
)
def test_the_provider_id_is_found_wherever_it_stands(
    fields: dict[str, object], provider_id: str
) -> None:
    assert submit({"status": "processing", **fields}) == queued(provider_id)


@pytest.mark.parametrize("not_an_id", [None, "", " ", True, {}, [1], 1.5, "..", ".", "\udfff"])
def test_processing_without_an_id_is_unknown(not_an_id: object) -> None:
    outcome = submit({"status": "processing", "id": not_an_id, "message": "Try Again"})
    assert isinstance(outcome, Unknown)
    assert outcome.provider_id is None


def test_an_observed_early_fetch_needs_no_id() -> None:
    answer = {"status": "processing", "message": "Try Again", "output": ""}
    assert fetch(answer) == Queued(None)


@pytest.mark.parametrize("eta", ["3", "-1", "true", '"soon"', "NaN", "1e999", "9" * 400])
def test_an_eta_is_not_read(eta: str) -> None:
    body = f'{{"status": "processing", "id": 1, "eta": {eta}}}'.encode()
    assert submit(body) == queued("1")


def test_a_state_nobody_documented_is_unknown_and_keeps_its_id() -> None:
    outcome = submit({"status": "queued", "id": 5, "message": "soon"})
    assert isinstance(outcome, Unknown)
    assert outcome.provider_id == "5"


# --- rate limits ---------------------------------------------------------------------------------

LIMIT = "Rate limit exceeded. Maximum 5 queued requests allowed."


@pytest.mark.parametrize("status", [200, 400, 403, 429, 503])
@pytest.mark.parametrize("word", ["error", "failed"])
@pytest.mark.parametrize("text", [LIMIT, "Too Many Requests"])
def test_a_rate_limit_is_one_under_any_status(status: int, word: str, text: str) -> None:
    answer = {"status": word, "message": text, "retry_after": 4}
    assert submit(answer, status) == RateLimited(4.0, text)
    assert fetch(answer, status) == RateLimited(4.0, text)


@pytest.mark.parametrize(
    "answer", [{"status": "error"}, {}, {"message": "slow down"}, b"", b"<html>429</html>", []]
)
def test_a_429_is_a_rate_limit_whatever_its_body(answer: object) -> None:
    assert isinstance(submit(answer, 429), RateLimited)
    assert isinstance(fetch(answer, 429), RateLimited)


@pytest.mark.parametrize(
    ("body", "headers", "seconds"),
    [
        ({"retry_after": 30}, {}, 30),
        ({"retry_after": 1.5}, {}, 1.5),
        ({"retry_after": "30"}, {}, 30),
        ({"retry_after": 0}, {}, 0),
        ({"retry_after": 10**9}, {}, 300),
        ({"retry_after": -5}, {"Retry-After": "7"}, 7),
        ({"retry_after": "soon"}, {"Retry-After": "7"}, 7),
        ({"retry_after": True}, {"retry-after": "7"}, 7),
        ({}, {"X-RateLimit-Reset": "9"}, 9),
        ({}, {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}, None),
        ({}, {}, None),
    ],
)
def test_the_wait_is_found_in_body_or_headers_and_bounded(
    body: dict[str, object], headers: dict[str, str], seconds: float | None
) -> None:
    answer = bytes_of({"status": "error", "message": LIMIT, **body})
    outcome = parse_submit(429, CaseInsensitiveDict(headers), answer)
    assert outcome == RateLimited(seconds, LIMIT)


def test_a_reset_that_is_a_moment_becomes_a_wait() -> None:
    outcome = submit({"status": "error"}, 429, X_RateLimit_Reset=str(time.time() + 20))
    assert isinstance(outcome, RateLimited)
    assert outcome.retry_after == pytest.approx(20, abs=2)


def test_a_reset_in_the_past_is_no_wait() -> None:
    outcome = submit({"status": "error"}, 429, X_RateLimit_Reset=str(time.time() - 20))
    assert isinstance(outcome, RateLimited)
    assert outcome.retry_after == 0


@pytest.mark.parametrize(
    "answer",
    [
        {"status": "queued", "id": 5, "retry_after": 3},
        {"status": "queued", "id": 5, "message": LIMIT},
        {"id": 5, "retry_after": 3},
        {"status": "started", "output": [URL], "retry_after": 3},
    ],
)
def test_what_may_be_bought_is_never_called_rate_limited(answer: dict[str, object]) -> None:
    assert isinstance(submit(answer), Unknown | Queued)


def test_an_undocumented_state_with_an_id_under_429_is_unknown() -> None:
    assert isinstance(submit({"status": "queued", "id": 5}, 429), Unknown)


# --- server errors -------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [500, 502, 503, 504, 520, 599])
@pytest.mark.parametrize(
    "answer",
    [
        {"status": "error", "message": "Server Error"},
        {"status": "failed", "message": "prompt is required"},
        {"status": "error", "message": "Invalid API key"},
        {"status": "success", "output": [URL]},
        {"status": "processing"},
        {},
        [],
        b"",
        b"<html>Bad Gateway</html>",
        b'{"status": "succ',
    ],
)
def test_a_server_error_is_unknown_whatever_its_body(status: int, answer: object) -> None:
    assert isinstance(submit(answer, status), Unknown)
    assert isinstance(fetch(answer, status), Unknown)


@pytest.mark.parametrize("status", [500, 502, 503])
@pytest.mark.parametrize("word", ["success", "processing", "error", "whatever"])
def test_a_server_error_keeps_the_id_it_names(status: int, word: str) -> None:
    outcome = submit({"status": word, "id": 77, "output": [URL]}, status)
    assert isinstance(outcome, Unknown)
    assert outcome.provider_id == "77"


@pytest.mark.parametrize("status", [500, 502, 504])
def test_only_a_503_among_server_errors_can_be_a_rate_limit(status: int) -> None:
    assert isinstance(submit({"status": "error", "message": LIMIT}, status), Unknown)


# --- refused, failed, halted ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["message", "messege", "errors", "error", "detail"])
@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("prompt is required", "prompt is required"),
        (["prompt is required"], "prompt is required"),
        ({"prompt": ["prompt is required"]}, "prompt: prompt is required"),
        ({"prompt": "prompt is required"}, "prompt: prompt is required"),
        ([{"message": "prompt is required"}], "prompt is required"),
        (["a", "must be b"], "a; must be b"),
        ("no CUDA here", "no CUDA here"),
    ],
)
@pytest.mark.parametrize("status", [400, 413, 414, 415, 422])
def test_a_broken_rule_is_refused_in_every_shape(
    name: str, said: object, reason: str, status: int
) -> None:
    assert submit({"status": "error", name: said}, status) == Refused(reason)
    assert submit({name: said}, status) == Refused(reason)


@pytest.mark.parametrize("name", ["message", "messege", "errors", "error", "detail"])
@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"prompt": ["prompt is required"]}, "prompt: prompt is required"),
        ({"ref_image.0": ["too large"]}, "ref_image.0: too large"),
        ({"account": ["x"], "width": ["no"]}, "account: x; width: no"),
        ({"prompt": "Invalid API key"}, "prompt: Invalid API key"),
        ({"prompt": "Too many requests"}, "prompt: Too many requests"),
    ],
)
@pytest.mark.parametrize("status", [200, 400, 403, 404, 409])
def test_a_map_that_blames_a_field_of_the_request_refuses_it_under_any_status(
    name: str, said: object, reason: str, status: int
) -> None:
    assert submit({"status": "error", name: said}, status) == Refused(reason)
    fetched = fetch({"status": "error", name: said}, status)
    assert not isinstance(fetched, Failed) or not fetched.is_own


@pytest.mark.parametrize("status", [400, 413, 415, 422])
def test_a_broken_rule_needs_no_status_word(status: int) -> None:
    answer = {"message": "The given data was invalid.", "errors": {"width": ["too wide"]}}
    assert submit(answer, status) == Refused("The given data was invalid.; width: too wide")


OWN_FAILURES = [
    "CUDA out of memory",
    "CUDA error: tensor exceeds the memory limit",
    "Try again later",
    "Server is overloaded: too many jobs",
    "invalid response from GPU worker",
    "Server busy, the queue must be between 0 and 100",
    "internal error: a validation of the model's weights is required",
    "The request was lost: prompt is required",
    "job 7 was told that its API key is old",
    "too small a worker; unauthorized by the scheduler",
    "Unauthorized content in the output of the worker",
    "your worker's plan file is not valid",
    "the GPU is rate limited",
]


@pytest.mark.parametrize("text", OWN_FAILURES)
@pytest.mark.parametrize("word", ["error", "failed"])
@pytest.mark.parametrize("shape", ["message", "messege", "errors", "error", "detail"])
def test_a_plain_message_under_200_is_the_providers_own_failure_whatever_its_words(
    text: str, word: str, shape: str
) -> None:
    for said in (text, [text]):
        answer = {"status": word, shape: said, "id": 5}
        assert submit(answer) == fetch(answer) == Failed(text, is_own=True, echo=Echo(("5",)))


@pytest.mark.parametrize("word", ["error", "failed"])
def test_a_failure_without_words_is_the_providers_own(word: str) -> None:
    outcome = submit({"status": word})
    assert isinstance(outcome, Failed)
    assert outcome.is_own


@pytest.mark.parametrize(
    "about_request",
    [
        {"message": "failed", "nsfw_content_detected": True},
        {"errors": {"content": ["not allowed"]}},
    ],
)
def test_a_failure_that_is_about_the_request_is_not_the_providers_own(
    about_request: dict[str, object],
) -> None:
    for outcome in (submit, fetch):
        failed = outcome({"status": "failed", **about_request})
        assert isinstance(failed, Failed)
        assert not failed.is_own
    said = {"status": "failed", "message": "x", "nsfw_content_detected": False}
    assert submit(said) == Failed("x", is_own=True)


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (401, "Invalid API key"),
        (402, "Insufficient credits. Please top up."),
        (403, "Your current plan does not include this"),
        (403, "whatever"),
    ],
)
@pytest.mark.parametrize(
    "wrap",
    [
        lambda text: {"status": "error", "message": text},
        lambda text: {"status": "failed", "messege": [text]},
        lambda text: {"status": "error", "errors": {"account": [text]}},
        lambda text: {"message": text},
        lambda text: {"message": text, "id": "req-1"},
    ],
)
def test_an_object_that_refuses_the_account_by_its_status_halts_for_sure(
    status: int, text: str, wrap: Any
) -> None:
    for outcome in (submit(wrap(text), status), fetch(wrap(text), status)):
        assert isinstance(outcome, Halted)
        assert outcome.is_sure
        assert text in outcome.reason


@pytest.mark.parametrize("status", [401, 402])
def test_a_field_that_is_blamed_under_401_or_402_is_the_account(status: int) -> None:
    answer = {"status": "error", "errors": {"samples": ["four cost more than you have"]}}
    assert isinstance(submit(answer, status), Halted)


@pytest.mark.parametrize("status", [401, 402, 403, 404, 405, 410])
@pytest.mark.parametrize(
    "body", [b"<!DOCTYPE html><h1>Blocked by the firewall</h1>", b"", b"[]", b"null", b'"no"']
)
def test_a_refusal_without_an_object_may_be_about_this_request_alone(
    status: int, body: bytes
) -> None:
    for outcome in (submit(body, status), fetch(body, status)):
        assert isinstance(outcome, Halted)
        assert not outcome.is_sure


@pytest.mark.parametrize(
    "text",
    [
        "Invalid API key",
        "Invalid api_key",
        "API key is invalid",
        "The provided API key has expired",
        "Unauthorized",
        "Unauthorized.",
        "Unauthenticated",
        "Insufficient credits to generate",
        "Insufficient balance",
        "You have insufficient funds",
        "Your plan is too small",
        "Your current subscription has ended",
        "Please upgrade your plan",
    ],
)
@pytest.mark.parametrize("status", [200, 400])
def test_words_of_the_account_in_a_plain_message_halt_but_are_not_sure(
    text: str, status: int
) -> None:
    answer = {"status": "error", "message": text}
    assert submit(answer, status) == fetch(answer, status) == Halted(text, is_sure=False)


@pytest.mark.parametrize("status", [200, 400, 422])
def test_a_fault_of_the_key_refuses_no_request(status: int) -> None:
    answer = {"status": "error", "errors": {"key": ["The key field is required."]}}
    assert submit(answer, status) == Halted("key: The key field is required.", is_sure=False)


# --- objects that say nothing --------------------------------------------------------------------

NOTHING: list[dict[str, object]] = [
    {},
    {"queued": True},
    {"status": ""},
    {"status": None, "message": "", "errors": {}, "output": []},
    {"code": 1, "error": True},
]


@pytest.mark.parametrize("answer", NOTHING)
def test_an_object_that_says_nothing_is_unknown_under_2xx_and_4xx(
    answer: dict[str, object],
) -> None:
    for status in (*range(200, 300), *range(400, 429), *range(430, 500)):
        for outcome in (submit(answer, status), fetch(answer, status)):
            assert isinstance(outcome, Unknown), status
            assert outcome.provider_id is None


@pytest.mark.parametrize("answer", NOTHING)
def test_a_429_needs_no_words(answer: dict[str, object]) -> None:
    assert isinstance(submit(answer, 429), RateLimited)
    assert isinstance(fetch(answer, 429), RateLimited)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
@pytest.mark.parametrize("answer", [b"", b"<html>", {"message": "Moved"}])
def test_a_redirect_halts_with_a_hint_at_the_base_url(status: int, answer: object) -> None:
    outcome = submit(answer, status)
    assert isinstance(outcome, Halted)
    assert not outcome.is_sure
    assert "NANOBANANA_BASE_URL" in outcome.reason


@pytest.mark.parametrize("status", [404, 405])
def test_a_wrong_address_halts(status: int) -> None:
    assert isinstance(submit(b"<html>Not Found</html>", status), Halted)
    assert submit({"status": "error", "message": "no route"}, status) == Halted(
        "no route", is_sure=False
    )


# --- unknown ids ---------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 400, 404])
@pytest.mark.parametrize("word", ["failed", "error"])
def test_an_id_the_provider_does_not_know_is_missing_not_failed(status: int, word: str) -> None:
    answer = {"status": word, "message": "Request not found", "output": "", "id": ""}
    assert fetch(answer, status) == Missing("Request not found")


@pytest.mark.parametrize(
    "answer",
    [
        {"message": "Request not found", "id": 5},
        {"message": "The request id 5 was not found", "id": 5},
        {"message": "No image of this name: not found", "id": ""},
        {"errors": ["Not Found"]},
    ],
)
def test_a_failure_that_may_be_about_an_unknown_id_is_missing(answer: dict[str, object]) -> None:
    assert isinstance(fetch({"status": "error", **answer}), Missing)


@pytest.mark.parametrize("status", [404, 410])
def test_an_error_under_404_is_about_the_id(status: int) -> None:
    assert fetch({"status": "error", "message": "gone"}, status) == Missing("gone")


def test_a_failure_that_names_its_id_and_misses_something_else_is_failed() -> None:
    outcome = fetch({"status": "failed", "message": "CUDA: device not found", "id": 5})
    assert outcome == Failed("CUDA: device not found", is_own=True, echo=Echo(("5",)))


# --- unreadable ----------------------------------------------------------------------------------

UNREADABLE = [
    b"",
    b" ",
    b"<!DOCTYPE html><html><body>502</body></html>",
    b'{"status": "success", "output": ["https://cdn',
    b'{"status": "processing", "id": 1}}',
    b"null",
    b"[]",
    b'"success"',
    b"42",
    b"NaN",
    b"\xff\xfe\x00",
    b"\x80\x81",
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b'{"id": ' + b"9" * 5000 + b', "status": "processing"}',
]


@pytest.mark.parametrize("body", UNREADABLE, ids=range(len(UNREADABLE)))
@pytest.mark.parametrize("status", [200, 400, 500])
def test_what_cannot_be_read_is_unknown_and_quoted_in_short(body: bytes, status: int) -> None:
    for outcome in (submit(body, status), fetch(body, status)):
        assert isinstance(outcome, Unknown)
        assert str(status) in outcome.reason
        assert len(outcome.reason) <= 500


def test_json_in_other_encodings_is_read() -> None:
    text = json.dumps({"status": "processing", "id": 1})
    for encoding in ("utf-8-sig", "utf-16", "utf-32"):
        assert submit(text.encode(encoding)) == queued("1")


def test_a_long_reason_is_cut() -> None:
    outcome = submit({"status": "error", "message": "must " * 10_000}, 400)
    assert isinstance(outcome, Refused)
    assert len(outcome.reason) <= 500


def test_nested_reasons_end() -> None:
    deep: object = "must not matter"
    for _ in range(50):
        deep = {"a": [deep]}
    assert isinstance(submit({"status": "error", "message": deep}), Refused | Failed)


# --- anything at all -----------------------------------------------------------------------------

text = st.text(max_size=12) | st.sampled_from(
    ["success", "processing", "error", "failed", URL, LIMIT, "\ud800", "1", "Request not found"]
)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | text,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["0", "message", "seed", "prompt", "track_id", "key"]), inner
        )
    ),
    max_leaves=6,
)
answers = st.dictionaries(
    st.sampled_from(
        [
            *("status", "id", "request_id", "output", "proxy_links", "message", "messege", "seed"),
            *("errors", "eta", "meta", "retry_after", "fetch_result", "error", "detail"),
        ]
    ),
    anything,
).map(lambda answer: json.dumps(answer).encode())
statuses = st.integers(100, 599) | st.sampled_from([200, 400, 401, 402, 403, 404, 429, 500, 503])
some_headers = st.dictionaries(st.sampled_from(["Retry-After", "X-RateLimit-Reset"]), text).map(
    CaseInsensitiveDict
)


@given(
    statuses, some_headers, answers | st.binary() | anything.map(lambda a: json.dumps(a).encode())
)
@example(200, CaseInsensitiveDict(), b'{"status": "success", "id": "\\ud800", "output": "\\ud800"}')
@example(200, CaseInsensitiveDict(), b'{"status": "error", "message": "\xed\xa0\x80"}')
def test_any_bytes_come_to_one_of_the_outcomes_and_can_be_written_down(
    status: int, headers: CaseInsensitiveDict[str], body: bytes
) -> None:
    submitted, fetched = parse_submit(status, headers, body), parse_fetch(status, headers, body)
    assert isinstance(submitted, get_args(SubmitOutcome))
    assert isinstance(fetched, get_args(FetchOutcome))
    for outcome in (submitted, fetched):
        json.dumps(dataclasses.asdict(outcome), ensure_ascii=False, allow_nan=False).encode()
        if isinstance(outcome, Done):
            assert outcome.output
        if isinstance(outcome, RateLimited) and outcome.retry_after is not None:
            assert 0 <= outcome.retry_after <= 300
        if isinstance(outcome, Queued) and outcome is submitted:
            assert outcome.provider_id
    if 500 <= status < 600:
        assert isinstance(submitted, Unknown | RateLimited)
        assert isinstance(submitted, Unknown) or status == 503
