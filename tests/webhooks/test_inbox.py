"""Addresses that nobody else can make, and an inbox that takes what comes, within bounds."""

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from nanobanana_pipeline.provider.account import Account
from nanobanana_pipeline.settings import Settings
from nanobanana_pipeline.storage import ObjectStore
from nanobanana_pipeline.webhooks.inbox import (
    MAX_PAYLOADS,
    Inbox,
    Payload,
    Webhooks,
    attempt_id,
    is_attempt_id,
)
from tests.conftest import settings_for
from tests.s3_proxy import S3Proxy
from tests.webhooks.serving import ATTEMPT, OTHER_ATTEMPT, SECRET

NOW = datetime(2026, 1, 1, tzinfo=UTC)
WEBHOOKS = Webhooks("https://hooks.example/in/", SecretStr(SECRET))


def token_of(attempt: str, webhooks: Webhooks = WEBHOOKS) -> str:
    return webhooks.address(attempt).rpartition("/")[2]


# --- addresses -----------------------------------------------------------------------------------


def test_an_address_is_pinned() -> None:
    """By openssl dgst -sha256 -hmac: what was sent yesterday must be known today."""
    assert WEBHOOKS.address(ATTEMPT) == (
        f"https://hooks.example/in/webhooks/{'0a' * 32}.{'1b' * 8}/"
        "de06290a000784808122fdf73cebf1be846a60c5c1483da850f4bbdbc6afcd94"
    )


def test_a_token_opens_its_own_attempt_only_and_under_its_own_secret() -> None:
    token = token_of(ATTEMPT)
    assert WEBHOOKS.is_genuine(ATTEMPT, token)
    assert Webhooks("https://elsewhere.example", SecretStr(SECRET)).is_genuine(ATTEMPT, token)
    assert not WEBHOOKS.is_genuine(OTHER_ATTEMPT, token)
    assert not Webhooks(WEBHOOKS.url, SecretStr(SECRET + "x")).is_genuine(ATTEMPT, token)
    for wrong in ("", "0" * 64, token[:-1], token + "0", token.upper(), "é" * 64, "\ud800"):
        assert not WEBHOOKS.is_genuine(ATTEMPT, wrong)
    assert not WEBHOOKS.is_genuine("é\ud800", token)


def test_an_attempt_id_has_one_form() -> None:
    assert is_attempt_id(ATTEMPT)
    for wrong in (
        "",
        ATTEMPT.upper(),
        ATTEMPT + "\n",
        ATTEMPT + ".label",
        ATTEMPT.replace(".", "/"),
        "\N{ARABIC-INDIC DIGIT ZERO}" * 64 + "." + "1b" * 8,
    ):
        assert not is_attempt_id(wrong)


def test_the_secret_is_in_no_repr() -> None:
    assert SECRET not in f"{WEBHOOKS!r} {WEBHOOKS}"


def test_settings_without_webhooks_have_none(store: ObjectStore) -> None:
    base_url = "http://127.0.0.1:1/"
    assert Webhooks.from_settings(settings_for(base_url, store)) is None
    assert Account.open(settings_for(base_url, store)).webhooks is None
    blank = {"webhook_url": "", "webhook_secret": " "}
    assert Webhooks.from_settings(settings_for(base_url, store, **blank)) is None
    told = {"webhook_url": WEBHOOKS.url, "webhook_secret": SECRET}
    account = Account.open(settings_for(base_url, store, **told))
    assert account.webhooks == WEBHOOKS
    assert SECRET not in repr(account)


def test_settings_that_were_not_checked_make_no_webhooks_from_half() -> None:
    assert Webhooks.from_settings(Settings(webhook_url="https://hooks.example")) is None


# --- the inbox -----------------------------------------------------------------------------------


def test_what_is_put_is_read_back_once(store: ObjectStore) -> None:
    inbox = Inbox(store)
    assert not inbox.has_mail(ATTEMPT)
    assert inbox.read(ATTEMPT) == []
    body = json.dumps({"status": "success", "id": 7, "track_id": ATTEMPT}).encode()
    assert inbox.put(ATTEMPT, body)
    assert not inbox.put(ATTEMPT, body)
    assert inbox.has_mail(ATTEMPT)
    (payload,) = inbox.read(ATTEMPT)
    assert (payload.provider_id, payload.status, payload.track_id) == ("7", "success", ATTEMPT)
    assert abs((payload.received - datetime.now(UTC)).total_seconds()) < 60
    (key,) = store.keys("webhooks/")
    assert key.startswith(f"webhooks/{ATTEMPT}/")
    stored = store.get(key)
    assert stored is not None
    assert stored.body == body


def test_attempts_do_not_see_each_others_mail(store: ObjectStore) -> None:
    inbox = Inbox(store)
    inbox.put(ATTEMPT, b"{}")
    longer = attempt_id("0a" * 32, "1b" * 8 + "ff")
    assert not inbox.has_mail(OTHER_ATTEMPT)
    assert not inbox.has_mail(longer)
    assert not inbox.has_mail(ATTEMPT[:-1])


def test_an_inbox_is_bounded_and_others_are_not_harmed(
    store: ObjectStore, caplog: pytest.LogCaptureFixture
) -> None:
    inbox = Inbox(store)
    bodies = [json.dumps({"id": number}).encode() for number in range(MAX_PAYLOADS + 3)]
    assert [inbox.put(ATTEMPT, body) for body in bodies] == [True] * MAX_PAYLOADS + [False] * 3
    assert "is full" in caplog.text
    caplog.clear()
    assert not inbox.put(ATTEMPT, bodies[0])
    assert "is full" not in caplog.text
    assert {payload.provider_id for payload in inbox.read(ATTEMPT)} == {
        str(number) for number in range(MAX_PAYLOADS)
    }
    assert inbox.put(OTHER_ATTEMPT, bodies[0])


def test_of_many_that_bring_the_same_at_once_one_is_kept(store: ObjectStore) -> None:
    inbox = Inbox(store)
    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(lambda _: inbox.put(ATTEMPT, b"{}"), range(8))) == 1
    assert len(inbox.read(ATTEMPT)) == 1


def test_looking_for_mail_is_one_call_that_lists_one_key(store: ObjectStore, s3_url: str) -> None:
    for number in range(3):
        Inbox(store).put(ATTEMPT, str(number).encode())
    with S3Proxy(s3_url) as proxy:
        assert Inbox(proxy.store_like(store)).has_mail(ATTEMPT)
        ((method, path),) = proxy.calls
    assert method == "GET"
    assert "max-keys=1&" in f"{path}&"
    assert len(list(store.keys(f"webhooks/{ATTEMPT}/", limit=2))) == 2


# --- payloads ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "provider_id"),
    [
        ({"id": 7}, "7"),
        ({"id": " a-b "}, "a-b"),
        ({"request_id": 8}, "8"),
        ({"id": "", "request_id": "9"}, "9"),
        ({"id": None, "request_id": 9}, "9"),
        ({"id": True}, None),
        ({"id": 7.5}, None),
        ({"id": [7]}, None),
        ({"id": ".."}, None),
        ({"id": "a\nb"}, None),
        ({"id": "\ud800"}, None),
        ({"id": "7" * 501}, None),
        ({}, None),
    ],
)
def test_an_id_is_what_can_be_fetched(said: dict[str, object], provider_id: str | None) -> None:
    assert Payload.read(json.dumps(said).encode(), NOW).provider_id == provider_id


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff\xfe\x00",
        b"{",
        b"[]",
        b"null",
        b"7",
        b"[" * 60_000,
        b'{"id":' + b"9" * 5000 + b"}",
    ],
)
def test_what_is_no_json_object_says_nothing(body: bytes) -> None:
    assert Payload.read(body, NOW) == Payload(NOW, None, None, None)


def test_a_status_is_told_in_lower_case() -> None:
    assert Payload.read(b'{"status": " Success "}', NOW).status == "success"
    assert Payload.read(b'{"status": {}, "track_id": 5}', NOW) == Payload(NOW, track_id="5")


_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


@given(
    st.binary()
    | st.dictionaries(st.sampled_from(["id", "request_id", "status", "track_id"]), _values).map(
        lambda said: json.dumps(said).encode()
    )
)
def test_nothing_that_is_sent_makes_reading_fail(body: bytes) -> None:
    payload = Payload.read(body, NOW)
    for text in (payload.provider_id, payload.status, payload.track_id):
        assert text is None or (text.strip() == text and text.encode())
