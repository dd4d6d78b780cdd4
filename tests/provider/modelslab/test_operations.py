"""Operations on the server and the account: what is sent, and what every answer comes to."""

import json
import traceback

import pytest
from pydantic import SecretStr

from nanobanana_pipeline.errors import OperationFailed, OperationInDoubt, SettingsError
from nanobanana_pipeline.provider.modelslab.operations import Operations, S3Details
from tests.conftest import API_KEY, Emulators
from tests.launching import admin
from tests.provider.servers import (
    always,
    answer,
    closing,
    closing_kept_connections,
    free_port,
    once,
    serving,
)

SECRET = "aws/secret+of-the-provider"
DETAILS = S3Details(
    public_url="https://cdn.test/gen",
    region="eu-west-1",
    endpoint_url="https://s3.test/bucket",
    directory="gen",
    access_key_id=SecretStr("AKIAEXAMPLE"),
    secret_access_key=SecretStr(SECRET),
)
BASE = "/api/v1/enterprise/nano_banana/"


def at(url: str, path: str = BASE) -> Operations:
    return Operations(url + path, SecretStr(API_KEY))


def test_no_operation_meets_a_connection_that_the_server_closes_under_it() -> None:
    with serving(closing_kept_connections(answer({"status": "success"}))) as server:
        operations = at(server.url)
        for _ in range(5):
            operations.clear_cache()
    assert (server.connections, len(server.requests)) == (5, 5)


@pytest.mark.parametrize(
    "name", ["clear_queue", "clear_cache", "restart_server", "update_server", "reset_s3"]
)
def test_each_operation_is_one_post_with_the_key_in_its_body(name: str) -> None:
    with serving(always(answer({"status": "success"}))) as server:
        getattr(at(server.url), name)()
    (request,) = server.requests
    head, _, body = request.partition(b"\r\n\r\n")
    folder = "/api/v1/enterprise/" if name == "reset_s3" else BASE
    assert head.startswith(f"POST {folder}{name} HTTP/1.1".encode())
    more = {"deploy_type": "nano_banana"} if name == "reset_s3" else {}
    assert json.loads(body) == {"key": API_KEY, **more}
    assert API_KEY.encode() not in head


def test_s3_details_are_sent_by_the_documented_names() -> None:
    with serving(always(answer({"status": "success"}))) as server:
        at(server.url).update_s3(DETAILS)
    (request,) = server.requests
    assert request.startswith(b"POST /api/v1/enterprise/update_s3 ")
    assert json.loads(request.partition(b"\r\n\r\n")[2]) == {
        "key": API_KEY,
        "deploy_type": "nano_banana",
        "public_url": "https://cdn.test/gen",
        "region_name": "eu-west-1",
        "endpoint_url": "https://s3.test/bucket",
        "aws_access_key_id": "AKIAEXAMPLE",
        "aws_secret_access_key": SECRET,
        "image_directory": "gen",
    }


@pytest.mark.parametrize("mood", [0, 1])
def test_details_are_read_in_both_documented_shapes(emulators: Emulators, mood: int) -> None:
    emulator = emulators(moods={"details_flat": mood})
    told = Operations(emulator.base_url, SecretStr(API_KEY)).details()
    expected = {"model_count", "queue_time"} if mood else {"server_version", "uptime", "gpu_usage"}
    assert set(told) == expected
    assert all(told.values())


def test_the_emulator_takes_every_operation(emulators: Emulators) -> None:
    emulator = emulators()
    operations = Operations(emulator.base_url, SecretStr(API_KEY))
    for name in ("clear_queue", "clear_cache", "restart_server", "update_server"):
        getattr(operations, name)()
        assert admin(emulator, "stats")["calls"][name] == {"200": 1}
    operations.reset_s3()


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        ("200 OK", {"status": "error", "message": "not on your plan"}, "not on your plan"),
        ("200 OK", {"status": "failed", "messege": ["busy", "later"]}, "busy; later"),
        ("401 No", {"status": "error", "message": "Invalid API key"}, "Invalid API key"),
        ("400 Bad", {"errors": {"region_name": ["is required"]}}, "region_name: is required"),
        ("429 Slow", {"message": "Rate limit exceeded"}, "Rate limit exceeded"),
        ("404 No", b"<html>no such page</html>", "NANOBANANA_BASE_URL"),
        ("302 Found", b"", "NANOBANANA_BASE_URL"),
    ],
)
def test_an_answer_that_says_no_is_an_error_in_the_providers_words(
    status: str, body: bytes | dict[str, object], said: str
) -> None:
    with serving(always(answer(body, status))) as server:
        with pytest.raises(OperationFailed, match=said) as told:
            at(server.url).clear_cache()
        assert not isinstance(told.value, OperationInDoubt)
        assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("status", "body"),
    [
        ("200 OK", b"<html>welcome</html>"),
        ("200 OK", b""),
        ("200 OK", {"status": "processing", "message": "wait"}),
        ("200 OK", {}),
        ("500 Oh", {"status": "success"}),
        ("502 Oh", b"bad gateway"),
    ],
)
def test_an_answer_that_says_nothing_is_in_doubt(
    status: str, body: bytes | dict[str, object]
) -> None:
    with serving(always(answer(body, status))) as server:
        with pytest.raises(OperationInDoubt, match="nobody knows whether clear_queue"):
            at(server.url).clear_queue()
        assert len(server.requests) == 1


def test_no_answer_is_in_doubt_and_never_asked_again() -> None:
    with serving(closing) as server:
        with pytest.raises(OperationInDoubt, match="restart_server was sent"):
            at(server.url).restart_server()
        assert len(server.requests) == 1


def test_what_was_never_sent_is_not_in_doubt() -> None:
    with pytest.raises(OperationFailed, match="could not be sent") as told:
        at(f"http://127.0.0.1:{free_port()}").clear_queue()
    assert not isinstance(told.value, OperationInDoubt)


def test_secrets_that_the_provider_quotes_are_struck_out() -> None:
    quoted: dict[str, object] = {
        "status": "error",
        "message": f"no {API_KEY}, {SECRET}, AKIAEXAMPLE here",
    }
    php = json.dumps(quoted).replace("/", "\\/").encode()
    for body in (answer(quoted), answer(php)):
        with serving(once(body)) as server, pytest.raises(OperationFailed) as told:
            at(server.url).update_s3(DETAILS)
        shown = "".join(traceback.format_exception(told.value))
        assert "no ***, ***, *** here" in shown
        assert not any(secret in shown for secret in (API_KEY, SECRET, "AKIAEXAMPLE"))


def test_secrets_are_in_no_repr() -> None:
    shown = repr(DETAILS) + repr(at("https://provider.test"))
    assert not any(secret in shown for secret in (API_KEY, SECRET, "AKIAEXAMPLE"))


def test_a_base_url_that_hides_the_accounts_address_is_refused_before_anything_is_sent() -> None:
    with serving(always(answer({"status": "success"}))) as server:
        with pytest.raises(SettingsError, match="does not end in /nano_banana/"):
            at(server.url, "/proxy/").update_s3(DETAILS)
        with pytest.raises(SettingsError, match="does not end in /nano_banana/"):
            at(server.url, "/proxy/").reset_s3()
        assert server.requests == []
