"""`nanobanana provider`, against the emulator and a real bucket."""

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable

import pytest
import requests
from typer.testing import CliRunner, Result

from nanobanana_pipeline.cli import app
from nanobanana_pipeline.emulator import EmulatorThread
from nanobanana_pipeline.ledger import State
from nanobanana_pipeline.storage import ObjectStore
from tests.conftest import API_KEY, Emulators, account_for
from tests.launching import (
    admin,
    bought,
    check_images,
    entries,
    keep_prompts,
    launch,
    prompts,
    states,
    tell,
)
from tests.provider.servers import always, answer, closing, serving
from tests.s3_proxy import NO_ACLS, Refusal, S3Proxy

Command = Callable[..., Result]
PUBLIC = "https://cdn.test/gen"
"""No such host: whatever is settled from there was not downloaded."""


@pytest.fixture
def emulator(emulators: Emulators) -> EmulatorThread:
    return emulators()


@pytest.fixture
def nanobanana(
    store: ObjectStore, emulator: EmulatorThread, monkeypatch: pytest.MonkeyPatch
) -> Command:
    """Runs a command with a user's environment."""
    for name, value in {
        "NANOBANANA_API_KEY": API_KEY,
        "NANOBANANA_BASE_URL": emulator.base_url,
        "NANOBANANA_BUCKET": store.bucket,
        "NANOBANANA_PREFIX": store.prefix.rstrip("/"),
        "NANOBANANA_ALLOWED_HOSTS": "127.0.0.1",
        "NANOBANANA_PROVIDER_AWS_ACCESS_KEY_ID": os.environ["AWS_ACCESS_KEY_ID"],
        "NANOBANANA_PROVIDER_AWS_SECRET_ACCESS_KEY": os.environ["AWS_SECRET_ACCESS_KEY"],
    }.items():
        monkeypatch.setenv(name, value)
    return lambda *args: CliRunner().invoke(app, ["provider", *args])


def set_s3(nanobanana: Command, store: ObjectStore, *more: str) -> Result:
    folder = f"{store.prefix}deliveries"
    return nanobanana("set-s3", "--public-url", PUBLIC, "--directory", folder, *more)


def places(store: ObjectStore) -> list[dict[str, str | None]]:
    found = store.get("delivery.json")
    if found is None:
        return []
    held: list[dict[str, str | None]] = json.loads(found.body)["places"]
    return held


def downloads(emulator: EmulatorThread) -> int:
    return sum(admin(emulator, "stats")["calls"].get("outputs", {}).values())


# --- pictures straight into one's own bucket -----------------------------------------------------


@pytest.mark.parametrize("mode", ["queued", "sync"])
@pytest.mark.parametrize("mood", [{}, {"double_slash": 1}])
def test_pictures_come_through_the_bucket_until_that_is_ended(
    nanobanana: Command,
    store: ObjectStore,
    emulators: Emulators,
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
    mood: dict[str, float],
) -> None:
    emulator = emulators(mode=mode, moods=mood, latency_seconds=(0.05, 0.1))
    monkeypatch.setenv("NANOBANANA_BASE_URL", emulator.base_url)
    account = account_for(emulator.base_url, store)
    told = set_s3(nanobanana, store)
    assert told.exit_code == 0, told.output
    keep_prompts(
        store,
        "set",
        [
            *prompts(3),
            {"prompt": "three of a kind", "samples": 3},
            {"prompt": "as a text", "base64": "yes"},
        ],
    )
    through = launch(store, account)
    assert through.states == {"settled": 5}
    assert downloads(emulator) == 0
    delivered = {
        stored.body
        for key in store.keys("deliveries/")
        if (stored := store.get(key)) and not key.endswith(".base64")
    }
    kept = {
        stored.body
        for key in store.keys("images/")
        if ".refs/" not in key and (stored := store.get(key))
    }
    assert len(delivered) == 6
    assert delivered < kept
    check_images(store, through.rows)
    (place,) = places(store)
    assert (place["public_url"], place["uri"]) == (PUBLIC, store.uri("deliveries"))
    assert place["until"] is None

    ended = nanobanana("reset-s3", "--yes")
    assert ended.exit_code == 0, ended.output
    (place,) = places(store)
    assert place["until"] is not None
    keep_prompts(store, "later", prompts(2, "later"))
    assert launch(store, account, "later").states == {"settled": 2}
    assert downloads(emulator) == 2
    record = admin(emulator, "purchases")
    assert (record["total"], record["bought_twice"]) == (7, 0)


def test_what_was_accepted_before_the_end_is_still_found(
    nanobanana: Command, store: ObjectStore, emulator: EmulatorThread
) -> None:
    account = account_for(emulator.base_url, store)
    set_s3(nanobanana, store)
    keep_prompts(store, "set", prompts(1))
    delivery = store.get("delivery.json")
    assert delivery is not None
    store.put("delivery.json", b"{}")
    with pytest.raises(Exception, match="damaged"):
        launch(store, account)
    assert states(store) == {State.ACCEPTED: 1}
    store.put("delivery.json", delivery.body)
    assert nanobanana("reset-s3", "--yes").exit_code == 0
    assert launch(store, account).states == {"settled": 1}
    assert (bought(emulator), downloads(emulator)) == (1, 0)


def test_no_secret_is_kept_or_shown(
    nanobanana: Command,
    store: ObjectStore,
    monkeypatch: pytest.MonkeyPatch,
    emulator: EmulatorThread,
) -> None:
    secret, right = "the-providers-own-secret-4711", os.environ["AWS_SECRET_ACCESS_KEY"]
    said = ""
    for each, code in ((secret, 2), (right, 0)):
        monkeypatch.setenv("NANOBANANA_PROVIDER_AWS_SECRET_ACCESS_KEY", each)
        told = set_s3(nanobanana, store)
        assert told.exit_code == code, told.output
        said += told.output
    assert "S3 does not accept the provider's key (SignatureDoesNotMatch)" in said
    tell(emulator, "moods", unauthorized=1)
    said += nanobanana("reset-s3", "--yes").output + nanobanana("details").output
    assert secret not in said
    assert right not in said
    assert API_KEY not in said
    for key in store.keys(""):
        found = store.get(key)
        assert found is not None
        assert secret.encode() not in found.body
        assert right.encode() not in found.body
        assert API_KEY.encode() not in found.body
    assert entries(store) == []


def test_a_provider_that_refuses_leaves_the_places_as_they_were(
    nanobanana: Command, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert set_s3(nanobanana, store).exit_code == 0
    before = places(store)
    no = answer({"status": "error", "message": "S3 is not on your plan"})
    with serving(always(no)) as server:
        base = f"{server.url}/api/v1/enterprise/nano_banana/"
        monkeypatch.setenv("NANOBANANA_BASE_URL", base)
        for public in (PUBLIC, "https://cdn.test/other"):
            refused = nanobanana(
                *("set-s3", "--public-url", public, "--directory", f"{store.prefix}other")
            )
            assert refused.exit_code == 2
            assert "S3 is not on your plan" in refused.output
            assert places(store) == before


@pytest.mark.parametrize(
    ("refusal", "always_refused", "said"),
    [
        (NO_ACLS, False, ["refuses ACLs", "AccessControlListNotSupported", "Object Ownership"]),
        (Refusal(403, "AccessDenied"), False, ["s3:PutObjectAcl", "BlockPublicAcls"]),
        (Refusal(403, "AccessDenied"), True, ["may not write", "s3:PutObject and"]),
        (Refusal(404, "NoSuchBucket"), True, ["NoSuchBucket"]),
    ],
)
def test_a_key_that_cannot_do_what_the_provider_does_is_refused_before_it_is_sent(
    nanobanana: Command,
    store: ObjectStore,
    s3_url: str,
    monkeypatch: pytest.MonkeyPatch,
    emulator: EmulatorThread,
    refusal: Refusal,
    said: list[str],
    *,
    always_refused: bool,
) -> None:
    with S3Proxy(s3_url) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        proxy.rule = lambda method, path: (
            refusal
            if method == "PUT" and "nanobanana-check" in path and (proxy.acl or always_refused)
            else None
        )
        told = set_s3(nanobanana, store)
    assert told.exit_code == 2
    assert all(words in " ".join(told.output.split()) for words in said), told.output
    assert places(store) == []
    assert "update_s3" not in str(admin(emulator, "stats")["calls"])
    assert list(store.keys("deliveries/")) == []


def test_the_key_is_tried_with_an_acl_in_the_folder_and_nothing_stays(
    nanobanana: Command, store: ObjectStore, s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[tuple[str, str]] = []
    with S3Proxy(s3_url) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)

        def note(method: str, path: str) -> None:
            if "nanobanana-check" in path:
                tried.append((method, proxy.acl))

        proxy.rule = note
        assert set_s3(nanobanana, store).exit_code == 0
    assert tried == [("PUT", "public-read"), ("DELETE", "")]
    assert list(store.keys("deliveries/")) == []


def test_a_bucket_that_refuses_acls_is_named_where_a_picture_does_not_arrive(
    nanobanana: Command,
    store: ObjectStore,
    s3_url: str,
    emulators: Emulators,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The bucket's owner has disabled ACLs after `set-s3`."""
    emulator = emulators(mode="sync")
    monkeypatch.setenv("NANOBANANA_BASE_URL", emulator.base_url)
    with S3Proxy(s3_url) as proxy:
        told = set_s3(nanobanana, store, "--endpoint-url", f"{proxy.url}/{store.bucket}")
        assert told.exit_code == 0, told.output
        proxy.refuse_acls()
        keep_prompts(store, "set", prompts(1))
        ended = launch(store, account_for(emulator.base_url, store))
    assert ended.states == {"lost": 1}
    (reason,) = ended.rows["reason"]
    assert "s3:PutObjectAcl" in reason
    assert "nanobanana provider set-s3" in reason


def test_where_nobody_knows_the_place_is_kept(
    nanobanana: Command, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The provider may have taken it: what it then writes there must be found."""
    with serving(closing) as server:
        base = f"{server.url}/api/v1/enterprise/nano_banana/"
        monkeypatch.setenv("NANOBANANA_BASE_URL", base)
        doubtful = set_s3(nanobanana, store)
    assert doubtful.exit_code == 2
    assert "run the same command again" in doubtful.output
    assert [place["public_url"] for place in places(store)] == [PUBLIC]


def test_what_the_provider_is_told_can_be_chosen(
    nanobanana: Command, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.client.create_bucket(Bucket="elsewhere")
    with serving(always(answer({"status": "success"}))) as server:
        base = f"{server.url}/api/v1/enterprise/nano_banana/"
        monkeypatch.setenv("NANOBANANA_BASE_URL", base)
        told = set_s3(
            nanobanana,
            store,
            *("--bucket-uri", "s3://elsewhere/in/", "--region", "eu-west-3"),
            *("--endpoint-url", "https://elsewhere.s3.test"),
        )
        assert told.exit_code == 0, told.output
        (request,) = server.requests
    sent = json.loads(request.partition(b"\r\n\r\n")[2])
    assert sent["public_url"] == PUBLIC
    assert sent["region_name"] == "eu-west-3"
    assert sent["endpoint_url"] == "https://elsewhere.s3.test"
    assert sent["image_directory"] == f"{store.prefix}deliveries"
    assert [place["uri"] for place in places(store)] == ["s3://elsewhere/in"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--public-url", "cdn.test", "--directory", "in"], "no http(s) URL"),
        (["--public-url", PUBLIC, "--directory", "../in"], "s3://bucket/folder"),
        (["--public-url", PUBLIC, "--directory", "in", "--bucket-uri", "in"], "s3://bucket/folder"),
        (["--public-url", PUBLIC, "--directory", ""], "another --directory"),
        (["--public-url", PUBLIC], "--directory"),
    ],
)
def test_wrong_use_is_told_before_anything_is_sent(
    nanobanana: Command,
    store: ObjectStore,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    said: str,
) -> None:
    with serving(always(answer({"status": "success"}))) as server:
        base = f"{server.url}/api/v1/enterprise/nano_banana/"
        monkeypatch.setenv("NANOBANANA_BASE_URL", base)
        result = nanobanana("set-s3", *options)
        assert result.exit_code == 2
        assert said in " ".join(result.output.split())
        assert server.requests == []
    assert places(store) == []


def test_keys_that_are_missing_are_named(
    nanobanana: Command, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"):
        monkeypatch.delenv(f"NANOBANANA_PROVIDER_AWS_{name}")
    result = set_s3(nanobanana, store)
    assert result.exit_code == 2
    assert "NANOBANANA_PROVIDER_AWS_ACCESS_KEY_ID and" in result.output
    assert "NANOBANANA_PROVIDER_AWS_SECRET_ACCESS_KEY" in result.output
    assert places(store) == []


# --- the server ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mood", "said"), [(0, ["server_version", "uptime", "0%"]), (1, ["model_count", "queue_time"])]
)
def test_details_are_shown(
    nanobanana: Command, emulator: EmulatorThread, mood: int, said: list[str]
) -> None:
    tell(emulator, "moods", details_flat=mood)
    result = nanobanana("details")
    assert result.exit_code == 0, result.output
    assert all(word in result.output for word in said)
    assert "wallet" not in result.output


def test_the_books_that_are_switched_on_are_among_the_details(
    nanobanana: Command, emulators: Emulators, monkeypatch: pytest.MonkeyPatch
) -> None:
    emulator = emulators(latency_seconds=(1000, 1000), wallet=20, price_per_image=0.5)
    monkeypatch.setenv("NANOBANANA_BASE_URL", emulator.base_url)
    monkeypatch.setenv("NANOBANANA_VENDOR_BOOKS", "balance,count")
    body = {"key": API_KEY, "prompt": "a fox"}
    requests.post(f"{emulator.base_url}text2img", json=body, timeout=30).raise_for_status()
    told = nanobanana("details").output
    assert "19.5 USD" in told
    assert re.search(r"requests under way, of the whole account\W+1\b", told)


OPERATIONS = {
    "clear-queue": ("clear_queue", "become lost"),
    "clear-cache": ("clear_cache", "slower"),
    "restart": ("restart_server", "interrupts everybody"),
    "update": ("update_server", "interrupts everybody"),
}


@pytest.mark.parametrize("command", OPERATIONS)
def test_operations_ask_first_and_without_a_terminal_refuse(
    nanobanana: Command, emulator: EmulatorThread, command: str
) -> None:
    endpoint, disturbs = OPERATIONS[command]
    refused = nanobanana(command)
    assert refused.exit_code == 2
    assert disturbs in refused.output
    assert "--yes" in refused.output
    assert endpoint not in admin(emulator, "stats")["calls"]
    done = nanobanana(command, "--yes")
    assert done.exit_code == 0, done.output
    assert admin(emulator, "stats")["calls"][endpoint] == {"200": 1}


@pytest.mark.usefixtures("nanobanana")
@pytest.mark.parametrize(("said", "code", "sent"), [("n\n", 1, 0), ("y\n", 0, 1)])
def test_on_a_terminal_the_answer_decides(
    emulator: EmulatorThread, said: str, code: int, sent: int
) -> None:
    ours, theirs = pty.openpty()
    try:
        os.write(ours, said.encode())
        result = subprocess.run(
            [
                *(sys.executable, "-c", "from nanobanana_pipeline.cli import app; app()"),
                *("provider", "clear-queue"),
            ],
            stdin=theirs,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        os.close(ours)
        os.close(theirs)
    assert result.returncode == code, result.stderr
    assert "Go on?" in result.stdout + result.stderr
    asked = admin(emulator, "stats")["calls"].get("clear_queue", {})
    assert sum(asked.values()) == sent


def test_what_the_provider_says_is_shown_when_it_refuses(
    nanobanana: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    no = answer({"status": "error", "message": f"not with {API_KEY}"})
    with serving(always(no)) as server:
        base = f"{server.url}/api/v1/enterprise/nano_banana/"
        monkeypatch.setenv("NANOBANANA_BASE_URL", base)
        result = nanobanana("restart", "--yes")
    assert result.exit_code == 2
    assert "the provider did not do restart_server: not with ***" in result.output
