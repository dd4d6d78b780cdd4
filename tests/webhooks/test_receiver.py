"""The receiver over real HTTP, before a real bucket."""

import http.client
import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal
from urllib.parse import urlsplit

import pytest
import requests

from nanobanana_pipeline.storage import ObjectStore
from nanobanana_pipeline.webhooks import receiver
from nanobanana_pipeline.webhooks.inbox import MAX_PAYLOADS, Inbox, Payload, Webhooks, attempt_id
from nanobanana_pipeline.webhooks.receiver import MAX_BODY_BYTES
from tests.conftest import Emulators
from tests.emulator.account import Account
from tests.s3_proxy import Loss, S3Proxy, wait_until
from tests.webhooks.serving import ATTEMPT, OTHER_ATTEMPT, SECRET, receiving

SUCCESS = {"status": "success", "id": 7, "output": ["https://x.example/7.png"]}

Way = Literal["whole", "chunked"]


@pytest.fixture
def webhooks(store: ObjectStore) -> Iterator[Webhooks]:
    with receiving(store) as running:
        yield running


def post(url: str, body: Any) -> int:
    """Send a body, which is JSON unless it is bytes or comes in chunks."""
    data = json.dumps(body) if isinstance(body, dict) else body
    answer = requests.post(url, data=data, timeout=30, allow_redirects=False)
    assert bool(answer.content) == (answer.status_code != 204)
    return answer.status_code


def raw(webhooks: Webhooks, data: bytes) -> socket.socket:
    """A connection on which these bytes were sent."""
    parts = urlsplit(webhooks.url)
    peer = socket.create_connection((str(parts.hostname), int(parts.port or 0)), timeout=20)
    peer.sendall(data)
    return peer


def head(address: str, *lines: str) -> bytes:
    path = urlsplit(address).path
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: x", *lines, "", ""]).encode()


def kept(store: ObjectStore) -> list[str]:
    return list(store.keys("webhooks/"))


# --- what is kept --------------------------------------------------------------------------------


def test_a_webhook_is_kept_as_it_came(store: ObjectStore, webhooks: Webhooks) -> None:
    body = b'{"id": 7,  "status":"success"}'
    assert post(webhooks.address(ATTEMPT), body) == 204
    (key,) = kept(store)
    stored = store.get(key)
    assert stored is not None
    assert stored.body == body


def test_repeats_are_welcome_and_kept_once(store: ObjectStore, webhooks: Webhooks) -> None:
    address = webhooks.address(ATTEMPT)
    assert [post(address, SUCCESS) for _ in range(3)] == [204] * 3
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: post(address, SUCCESS), range(16))) == {204}
    assert len(kept(store)) == 1


def test_the_order_of_arrival_is_kept_whatever_it_is(
    store: ObjectStore, webhooks: Webhooks
) -> None:
    address = webhooks.address(ATTEMPT)
    for status in ("success", "processing"):
        assert post(address, {"status": status, "id": 7}) == 204
        time.sleep(1.1)  # S3 tells whole seconds
    assert [each.status for each in Inbox(store).read(ATTEMPT)] == ["success", "processing"]


def test_the_path_counts_and_not_the_track_id(store: ObjectStore, webhooks: Webhooks) -> None:
    assert post(webhooks.address(ATTEMPT), SUCCESS | {"track_id": OTHER_ATTEMPT}) == 204
    (payload,) = Inbox(store).read(ATTEMPT)
    assert payload.track_id == OTHER_ATTEMPT
    assert not Inbox(store).has_mail(OTHER_ATTEMPT)


@pytest.mark.parametrize("body", [b"", b"done", b"\x00\xff", b"[1]", b"<html>", b"{" * 5000])
def test_what_is_no_json_is_a_hint_too(body: bytes, store: ObjectStore, webhooks: Webhooks) -> None:
    assert post(webhooks.address(ATTEMPT), body) == 204
    (payload,) = Inbox(store).read(ATTEMPT)
    assert payload == Payload(payload.received)


def test_a_full_inbox_is_no_reason_to_come_again(store: ObjectStore, webhooks: Webhooks) -> None:
    address = webhooks.address(ATTEMPT)
    answers = [post(address, {"id": number}) for number in range(MAX_PAYLOADS + 4)]
    assert answers == [204] * (MAX_PAYLOADS + 4)
    assert len(kept(store)) == MAX_PAYLOADS


# --- lies ----------------------------------------------------------------------------------------


def test_only_the_right_token_opens_an_inbox(
    store: ObjectStore, webhooks: Webhooks, caplog: pytest.LogCaptureFixture
) -> None:
    own, other = webhooks.address(ATTEMPT), webhooks.address(OTHER_ATTEMPT)
    token = other.rpartition("/")[2]
    base = own.rpartition("/")[0]
    for wrong in (token, "0" * 64, token[:10], "x", "%C3%A9", own.rpartition("/")[2].upper()):
        answer = requests.post(f"{base}/{wrong}", json=SUCCESS, timeout=10)
        assert (answer.status_code, answer.text) == (403, "Not yours to tell.")
    assert kept(store) == []
    assert f"a webhook for attempt {ATTEMPT} had a wrong token" in caplog.text


@pytest.mark.parametrize(
    "wrong",
    [
        "x",
        ATTEMPT.upper(),
        ATTEMPT + ".label",
        ATTEMPT + "%0A",
        ATTEMPT[:-1],
        "..%2F" + ATTEMPT,
        ATTEMPT + "%00",
        "%D9%A0" * 64 + "." + "0" * 16,
    ],
)
def test_an_address_of_another_form_is_none(
    wrong: str, store: ObjectStore, webhooks: Webhooks
) -> None:
    token = webhooks.address(wrong).rpartition("/")[2]
    assert post(f"{webhooks.url}/webhooks/{wrong}/{token}", SUCCESS) == 404
    assert kept(store) == []


def test_other_paths_and_methods_lead_nowhere(store: ObjectStore, webhooks: Webhooks) -> None:
    address = webhooks.address(ATTEMPT)
    assert post(f"{address}/", SUCCESS) == 404
    assert post(address.replace("/webhooks/", "//webhooks/"), SUCCESS) == 404
    assert post(webhooks.url, SUCCESS) == 404
    for method in ("GET", "PUT", "DELETE", "OPTIONS"):
        assert requests.request(method, address, timeout=10).status_code == 405
    assert kept(store) == []


@pytest.mark.parametrize("size", [MAX_BODY_BYTES + 1, 3 * 2**20])
@pytest.mark.parametrize("way", ["whole", "chunked"])
def test_a_body_that_is_too_large_is_not_kept(
    size: int, way: Way, store: ObjectStore, webhooks: Webhooks
) -> None:
    body = b" " * size
    chunks = (body[at : at + 9999] for at in range(0, size, 9999))
    assert post(webhooks.address(ATTEMPT), chunks if way == "chunked" else body) == 413
    assert kept(store) == []


@pytest.mark.parametrize("way", ["whole", "chunked"])
def test_the_largest_body_is_kept(way: Way, store: ObjectStore, webhooks: Webhooks) -> None:
    body = json.dumps({"id": 7, "message": ""}).encode().ljust(MAX_BODY_BYTES)
    sent = iter([body[:5], body[5:]]) if way == "chunked" else body
    assert post(webhooks.address(ATTEMPT), sent) == 204
    (payload,) = Inbox(store).read(ATTEMPT)
    assert payload.provider_id == "7"


def test_a_body_that_is_cut_off_is_not_kept(
    store: ObjectStore, webhooks: Webhooks, caplog: pytest.LogCaptureFixture
) -> None:
    address = webhooks.address(ATTEMPT)
    raw(webhooks, head(address, "Content-Length: 100") + b'{"id": 7').close()
    raw(webhooks, head(address, "Transfer-Encoding: chunked") + b'8\r\n{"id": 7\r\n').close()
    assert requests.get(f"{webhooks.url}/healthz", timeout=10).status_code == 200
    time.sleep(0.3)
    assert kept(store) == []
    assert "Traceback" not in caplog.text


def test_a_body_that_does_not_come_is_not_waited_for(
    store: ObjectStore, webhooks: Webhooks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receiver, "BODY_SECONDS", 0.3)
    with raw(webhooks, head(webhooks.address(ATTEMPT), "Content-Length: 99999999") + b"{") as peer:
        answer = http.client.HTTPResponse(peer)
        answer.begin()
        assert answer.status == 408
    assert kept(store) == []


# --- S3 in trouble -------------------------------------------------------------------------------


def test_without_s3_the_sender_is_asked_to_come_again(
    store: ObjectStore, s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receiver, "STORE_SECONDS", 1.0)
    with S3Proxy(s3_url) as proxy, receiving(proxy.store_like(store)) as webhooks:
        address = webhooks.address(ATTEMPT)
        proxy.go_down()
        assert post(address, SUCCESS) == 503
        proxy.come_back()
        monkeypatch.setattr(receiver, "STORE_SECONDS", 30.0)
        assert post(address, SUCCESS) == 204
        wait_until(lambda: "webhook" not in {thread.name for thread in threading.enumerate()})
    assert len(kept(store)) == 1


def test_a_write_whose_answer_is_lost_is_kept_once(store: ObjectStore, s3_url: str) -> None:
    with S3Proxy(s3_url) as proxy, receiving(proxy.store_like(store)) as webhooks:
        address = webhooks.address(ATTEMPT)
        proxy.lose_once(Loss.ANSWER, "PUT", "webhooks/")
        assert post(address, SUCCESS) == 503
        assert post(address, SUCCESS) == 204
    assert len(kept(store)) == 1


def test_a_bucket_that_refuses_is_told_in_the_log_and_may_be_mended(
    store: ObjectStore, caplog: pytest.LogCaptureFixture
) -> None:
    with receiving(ObjectStore(store.client, "no-such-bucket")) as webhooks:
        address = webhooks.address(ATTEMPT)
        assert post(address, SUCCESS) == 503
    assert "NANOBANANA_BUCKET" in caplog.text
    said = "".join(each.getMessage() for each in caplog.records if "urllib3" not in each.name)
    assert address.rpartition("/")[2] not in said


def test_a_crowd_before_a_slow_bucket_is_sent_away(
    store: ObjectStore, s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receiver, "WRITES_AT_ONCE", 2)
    monkeypatch.setattr(receiver, "STORE_SECONDS", 0.5)
    with S3Proxy(s3_url) as proxy, receiving(proxy.store_like(store)) as webhooks:
        gate = threading.Event()

        def wait(_method: str, _path: str) -> Loss | None:
            gate.wait(20)
            return None

        proxy.rule = wait
        addresses = [webhooks.address(attempt_id("0a" * 32, f"{n:016x}")) for n in range(3)]
        # The first two are given up, and their threads are at it still.
        assert [post(address, SUCCESS) for address in addresses] == [503] * 3
        assert len([each for each in threading.enumerate() if each.name == "webhook"]) == 2
        gate.set()
        wait_until(lambda: "webhook" not in {thread.name for thread in threading.enumerate()})
        monkeypatch.setattr(receiver, "STORE_SECONDS", 30.0)
        assert post(addresses[2], SUCCESS) == 204
    assert len(kept(store)) == 3


# --- the rest ------------------------------------------------------------------------------------


def test_it_tells_that_it_lives_and_what_it_takes(webhooks: Webhooks) -> None:
    assert requests.get(f"{webhooks.url}/healthz", timeout=10).text == "ok"
    document = requests.get(f"{webhooks.url}/openapi.json", timeout=10).json()
    assert set(document["paths"]) == {"/webhooks/{attempt_id}/{token}", "/healthz"}


def test_no_log_shows_a_token_or_the_secret(
    store: ObjectStore, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG), receiving(store) as webhooks:
        address = webhooks.address(ATTEMPT)
        assert post(address, SUCCESS) == 204
        assert post(address, b" " * (MAX_BODY_BYTES + 1)) == 413
        assert post(address + "0", SUCCESS) == 403
        with raw(webhooks, head(address)[:-4] + b"\r\nbad header\r\n\r\n") as peer:
            peer.recv(1000)
    # urllib3 is how this test sends, and logs what it does.
    said = [
        f"{each.getMessage()} {each.args}"
        for each in caplog.records
        if each.name != "urllib3.connectionpool"
    ]
    assert any(ATTEMPT in line for line in said)
    token = address.rpartition("/")[2]
    assert not [line for line in said if token in line or SECRET in line]


# --- from the emulator's hand --------------------------------------------------------------------


def told(store: ObjectStore, count: int, attempt: str = ATTEMPT) -> list[Payload]:
    wait_until(lambda: len(kept(store)) >= count)
    return Inbox(store).read(attempt)


def test_the_provider_tells_of_a_picture(
    store: ObjectStore, webhooks: Webhooks, emulators: Emulators
) -> None:
    account = Account(emulators().base_url)
    answer = account.buy(webhook=webhooks.address(ATTEMPT), track_id=f"{ATTEMPT}.mine")
    (payload,) = told(store, 1)
    assert payload.provider_id == str(answer["id"])
    assert payload.status == "success"
    assert payload.track_id == f"{ATTEMPT}.mine"
    assert account.fetch(payload.provider_id)["status"] == "success"


@pytest.mark.parametrize(
    ("mood", "status"),
    [
        ("webhook_twice", "success"),
        ("webhook_request_id", "success"),
        ("webhook_lies", "success"),
        ("failed", "failed"),
    ],
)
def test_the_provider_in_its_moods_is_understood(
    mood: str, status: str, store: ObjectStore, webhooks: Webhooks, emulators: Emulators
) -> None:
    account = Account(emulators(moods={mood: 1.0}).base_url)
    answer = account.buy(webhook=webhooks.address(ATTEMPT), track_id=ATTEMPT)
    (payload,) = told(store, 1)
    assert (payload.provider_id, payload.status) == (str(answer["id"]), status)


def test_the_provider_tells_of_each_attempt_in_its_own_inbox(
    store: ObjectStore, webhooks: Webhooks, emulators: Emulators
) -> None:
    account = Account(emulators().base_url)
    bought = {
        attempt: account.buy(seed=seed, webhook=webhooks.address(attempt))["id"]
        for seed, attempt in enumerate((ATTEMPT, OTHER_ATTEMPT), start=1)
    }
    for attempt, provider_id in bought.items():
        (payload,) = told(store, 2, attempt)
        assert (payload.provider_id, payload.track_id) == (str(provider_id), None)
