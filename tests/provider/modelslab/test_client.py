"""The two calls that matter: sent once, to one host, with the very bytes of the prompt."""

import json
import logging
import socket
import traceback
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any, get_args
from urllib.request import urlopen

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from nanobanana_pipeline.provider.modelslab.client import ModelsLab
from nanobanana_pipeline.provider.modelslab.request import ONLY_WITH_REFERENCES, ModelsLabRequest
from nanobanana_pipeline.provider.outcomes import (
    Done,
    Echo,
    FetchOutcome,
    Halted,
    Missing,
    NotSent,
    Queued,
    RateLimited,
    Refused,
    SubmitOutcome,
    Unknown,
)
from nanobanana_pipeline.webhooks.inbox import Webhooks
from tests.conftest import API_KEY, Emulators
from tests.provider.servers import (
    Handler,
    Server,
    always,
    answer,
    closing,
    closing_kept_connections,
    dribbling,
    free_port,
    once,
    serving,
    silent,
    slamming,
    within,
)

REQUEST = ModelsLabRequest(prompt="a cat", seed=1, width=1024, height=1024)


def client(base_url: str, *, key: str = API_KEY, submit_seconds: float = 5.0) -> ModelsLab:
    return ModelsLab(base_url, SecretStr(key), submit_seconds=submit_seconds)


def purchases(root_url: str) -> dict[str, Any]:
    with urlopen(f"{root_url}/admin/purchases") as found:  # noqa: S310 - our own emulator
        answer: dict[str, Any] = json.load(found)
    return answer


def sent_fields(server: Server) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(server.requests[-1].partition(b"\r\n\r\n")[2])
    return fields


def test_a_request_is_bought_queued_and_fetched(emulators: Emulators) -> None:
    emulator = emulators(latency_seconds=(0.2, 0.2))
    provider = client(emulator.base_url)
    queued = provider.submit(REQUEST)
    assert isinstance(queued, Queued)
    assert queued.provider_id is not None
    assert provider.fetch(queued.provider_id) == Queued(None)
    emulator_clock_on(emulator.root_url, 1)
    done = provider.fetch(queued.provider_id)
    assert isinstance(done, Done)
    assert len(done.output) == 1
    assert purchases(emulator.root_url)["total"] == 1


def emulator_clock_on(root_url: str, seconds: float) -> None:
    with urlopen(  # noqa: S310 - our own emulator
        f"{root_url}/admin/clock", data=json.dumps({"advance": seconds}).encode()
    ):
        pass


def test_a_provider_that_draws_at_once_is_done_at_once(emulators: Emulators) -> None:
    outcome = client(emulators(mode="sync").base_url).submit(REQUEST)
    assert isinstance(outcome, Done)
    assert outcome.echo.seed == 1


@pytest.mark.parametrize(
    ("mood", "outcome", "bought"),
    [
        ("http_500_before", Unknown, 0),
        ("rate_limited", RateLimited, 0),
        ("unauthorized", Halted, 0),
        ("no_credit", Halted, 0),
        ("http_500_after", Unknown, 1),
        ("lost_answer_after", Unknown, 1),
        ("html_answer", Unknown, 1),
        ("cut_json", Unknown, 1),
    ],
)
def test_each_mood_of_the_provider_has_its_outcome_and_nothing_is_sent_twice(
    emulators: Emulators, mood: str, outcome: type, bought: int
) -> None:
    emulator = emulators(moods={mood: 1.0})
    assert isinstance(client(emulator.base_url).submit(REQUEST), outcome)
    assert purchases(emulator.root_url)["total"] == bought


def test_an_unknown_id_is_missing(emulators: Emulators) -> None:
    assert isinstance(client(emulators().base_url).fetch("no-such-id"), Missing)


def test_a_request_beyond_the_cap_is_rate_limited(emulators: Emulators) -> None:
    provider = client(emulators(cap=1, latency_seconds=(60, 60), retry_after_seconds=3).base_url)
    assert isinstance(provider.submit(REQUEST), Queued)
    limited = provider.submit(REQUEST.model_copy(update={"seed": 2}))
    assert isinstance(limited, RateLimited)
    assert limited.retry_after == 3


def test_a_rule_that_only_the_provider_knows_is_refused(emulators: Emulators) -> None:
    broken = REQUEST.model_copy(update={"samples": 9})
    assert isinstance(client(emulators().base_url).submit(broken), Refused)


@pytest.mark.parametrize("handle", [closing, slamming, once(b"HTTP/1.1 200"), once(b"garbage\r\n")])
def test_a_lost_answer_is_unknown_and_the_post_went_out_once(handle: Handler) -> None:
    with serving(handle) as server:
        assert isinstance(client(server.url).submit(REQUEST), Unknown)
    assert server.connections == 1
    assert len(server.requests) <= 1


@pytest.mark.parametrize("handle", [silent, dribbling(answer({"status": "processing", "id": 1}))])
def test_an_answer_that_is_late_is_unknown_at_the_deadline(handle: Handler) -> None:
    with serving(handle) as server, within(1.6):
        outcome = client(server.url, submit_seconds=1).submit(REQUEST)
    assert outcome == Unknown("no whole answer within 1 s")
    assert len(server.requests) == 1


def test_what_could_not_be_sent_is_not_sent_and_what_cannot_be_fetched_is_unknown() -> None:
    provider = client(f"http://127.0.0.1:{free_port()}/api/")
    assert isinstance(provider.submit(REQUEST), NotSent)
    assert isinstance(provider.fetch("1"), Unknown)


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See", "307 T", "308 P"])
def test_the_key_never_follows_a_redirect(status: str) -> None:
    with serving(always(answer({"status": "success"}))) as other:
        moved = answer(b"", status, {"Location": f"{other.url}/nano_banana/text2img"})
        with serving(always(moved)) as server:
            provider = client(server.url)
            assert isinstance(provider.submit(REQUEST), Halted)
            assert isinstance(provider.fetch("1"), Halted)
    assert (len(server.requests), other.connections) == (2, 0)


def test_a_fetch_goes_to_the_configured_base_whatever_address_the_provider_names() -> None:
    with serving(always(answer({"status": "success"}))) as other:
        queued = answer({"status": "processing", "fetch_result": f"{other.url}/fetch/8%2F9"})
        with serving(always(queued)) as server:
            provider = client(f"{server.url}/api/v1/enterprise/nano_banana/")
            outcome = provider.submit(REQUEST)
            assert outcome == Queued("8%2F9", Echo(("8%2F9",)))
            provider.fetch("8/9?x#y")
    path = server.requests[1].split(b" ")[1]
    assert path == b"/api/v1/enterprise/nano_banana/fetch/8%2F9%3Fx%23y"
    assert other.connections == 0


def test_all_fields_are_sent_as_documented() -> None:
    with serving(always(answer({}))) as server:
        client(server.url).submit(REQUEST)
    assert sent_fields(server) == {
        "key": API_KEY,
        "prompt": "a cat",
        "negative_prompt": "",
        "width": 1024,
        "height": 1024,
        "seed": 1,
        "samples": 1,
        "noise_scale_start": 7.5,
        "noise_scale_end": 7.5,
        "noise_clip_std": 2.5,
        "watermark": "no",
        "temp": "no",
        "base64": "no",
        "webhook": None,
        "track_id": None,
    }
    assert (
        set(sent_fields(server)) == {"key", *ModelsLabRequest.model_fields} - ONLY_WITH_REFERENCES
    )


def test_the_prompt_is_sent_to_the_letter() -> None:
    captured: list[bytes] = []

    def keep(server: Server, peer: socket.socket) -> None:
        while (request := server.read(peer)) is not None:
            captured.append(request.partition(b"\r\n\r\n")[2])
            peer.sendall(answer({}))

    texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30).filter(
        str.strip
    )

    with serving(keep) as server:
        provider = client(server.url)

        @settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
        @given(texts, texts)
        def check(prompt: str, negative: str) -> None:
            request = ModelsLabRequest(prompt=prompt, negative_prompt=negative, seed=2**53 - 1)
            provider.submit(request)
            body = captured[-1]
            fields = json.loads(body)
            assert fields["prompt"].encode() == prompt.encode()
            assert fields["negative_prompt"].encode() == negative.encode()
            assert fields["seed"] == 2**53 - 1

        check()


# --- secrets -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key", [API_KEY, 'with/slash"and\\backslash', "schlüssel-ß-鍵", "tab\tand\x01control"]
)
@pytest.mark.parametrize("ascii_only", [True, False])
@pytest.mark.parametrize("php", [True, False])
def test_a_key_that_the_provider_quotes_is_masked(key: str, ascii_only: bool, php: bool) -> None:  # noqa: FBT001
    said = {"status": "error", "message": f"Invalid API key {key}", "errors": {key: [key]}}
    body = json.dumps(said, ensure_ascii=ascii_only).encode()
    if php:
        body = body.replace(b"/", rb"\/")
    with serving(always(answer(body, "401 Unauthorized"))) as server:
        provider = client(server.url, key=key)
        for outcome in (provider.submit(REQUEST), provider.fetch("1")):
            assert isinstance(outcome, Halted)
            assert key not in outcome.reason
            assert "Invalid API key ***" in outcome.reason
    assert sent_fields(server)["key"] == key


def test_a_key_in_an_answer_that_is_no_json_is_masked() -> None:
    page = f"<html>You sent {API_KEY}</html>".encode()
    with serving(always(answer(page))) as server:
        outcome = client(server.url).submit(REQUEST)
    assert isinstance(outcome, Unknown)
    assert "You sent ***" in outcome.reason


def test_the_address_of_a_webhook_that_the_provider_quotes_is_masked() -> None:
    mine = Webhooks("https://hooks.example.org", SecretStr("a secret of webhooks")).address("a-1")
    theirs = "https://example.org/hook?token=s3cret"
    for webhook in (mine, theirs):
        said = {"status": "error", "message": f"{webhook} does not answer; {mine}"}
        for body in (json.dumps(said).encode(), json.dumps(said).encode().replace(b"/", rb"\/")):
            with serving(always(answer(body, "401 Unauthorized"))) as server:
                provider = client(server.url)
                request = REQUEST.model_copy(update={"webhook": webhook})
                submitted, fetched = provider.submit(request), provider.fetch("1")
            assert isinstance(submitted, Halted)
            assert "*** does not answer" in submitted.reason
            assert "s3cret" not in submitted.reason
            for outcome in (submitted, fetched):
                assert mine.rpartition("/")[2] not in str(outcome)


def test_the_key_stands_in_no_url_header_repr_log_or_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    outcomes: list[object] = []
    for handle in (closing, slamming, once(b"\x00\xff garbage"), always(answer({"status": "x"}))):
        with serving(handle) as server:
            provider = client(server.url)
            outcomes += [provider.submit(REQUEST), provider.fetch("1")]
        for request in server.requests:
            assert API_KEY.encode() not in request.partition(b"\r\n\r\n")[0]
    provider = client(f"http://127.0.0.1:{free_port()}/")
    outcomes += [provider, provider.submit(REQUEST), provider.fetch("1")]
    assert API_KEY not in repr(outcomes)
    assert API_KEY not in caplog.text
    with pytest.raises(TypeError) as wrong:
        provider.submit(None)  # type: ignore[arg-type]
    assert API_KEY not in "".join(traceback.format_exception(wrong.value))


# --- many at once, and anything at all -----------------------------------------------------------


def test_threads_that_share_a_client_get_their_own_answers() -> None:
    def echo(server: Server, peer: socket.socket) -> None:
        while (request := server.read(peer)) is not None:
            seed = json.loads(request.partition(b"\r\n\r\n")[2])["seed"]
            peer.sendall(answer({"status": "processing", "id": f"id-{seed}"}))

    with serving(echo) as server, ThreadPoolExecutor(20) as pool:
        provider = client(server.url)

        def call(seed: int) -> bool:
            outcome = provider.submit(REQUEST.model_copy(update={"seed": seed}))
            return outcome == Queued(f"id-{seed}", Echo((f"id-{seed}",)))

        assert Counter(pool.map(call, range(400))) == {True: 400}
    assert len(server.requests) == 400


def test_a_server_that_closes_kept_connections_leaves_no_doubt() -> None:
    queued = answer({"status": "processing", "id": 1})
    with serving(closing_kept_connections(queued)) as server:
        provider = client(server.url)
        outcomes = Counter(type(provider.submit(REQUEST)) for _ in range(60))
    assert outcomes == {Queued: 60}
    assert (server.connections, len(server.requests)) == (60, 60)


def test_many_threads_buy_each_request_once(emulators: Emulators) -> None:
    emulator = emulators(cap=1000)
    provider = client(emulator.base_url)
    requests = [REQUEST.model_copy(update={"seed": seed}) for seed in range(1, 101)]
    with ThreadPoolExecutor(20) as pool:
        outcomes = Counter(type(outcome) for outcome in pool.map(provider.submit, requests))
    assert outcomes == {Queued: 100}
    bought = purchases(emulator.root_url)
    assert (bought["total"], bought["bought_twice"]) == (100, 0)


@settings(max_examples=60, deadline=None)
@given(st.integers(100, 599), st.binary(max_size=80), st.sampled_from(["", "http://[", "/x"]))
def test_no_answer_makes_a_call_raise(status: int, body: bytes, location: str) -> None:
    with serving(once(answer(body, f"{status} X", {"Location": location}))) as server:
        provider = client(server.url, submit_seconds=2)
        assert isinstance(provider.submit(REQUEST), get_args(SubmitOutcome))
    assert len(server.requests) == 1
    with serving(once(answer(body, f"{status} X", {"Location": location}))) as server:
        provider = client(server.url)
        assert isinstance(provider.fetch("\u2028/../é"), get_args(FetchOutcome))
