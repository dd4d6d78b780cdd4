"""What shows that each mood of outages and systematic faults is there."""

import io
from collections.abc import Callable
from typing import Any

import pytest
import requests
from PIL import Image

from nanobanana_pipeline.emulator.config import EmulatorConfig
from nanobanana_pipeline.emulator.response_faults import OWN_FAILURES
from tests.emulator.account import KEY, Account
from tests.emulator.conftest import LATENCY
from tests.emulator.receiver import receiving

_BLOCKED = EmulatorConfig().firewall_text
_LATE = EmulatorConfig().found_late_seconds


def _bad_gateway(account: Account) -> None:
    answer = account.text2img()
    assert (answer.status_code, answer.text[:15]) == (502, "<!DOCTYPE html>")
    account.tell("moods", bad_gateway=0)
    purchase_id = account.buy()["id"]
    account.tell("moods", bad_gateway=1)
    for path in (f"fetch/{purchase_id}", "system_details"):
        assert account.post(path, {}).status_code == 502
    assert account.bought() == 1
    account.tell("moods", bad_gateway=0)
    assert account.fetch(purchase_id)["message"] == "Try Again"


def _firewall(account: Account) -> None:
    answer = account.text2img(prompt=f"a cat reads {_BLOCKED} aloud")
    assert (answer.status_code, answer.text[:15]) == (403, "<!DOCTYPE html>")
    assert account.bought() == 0
    assert account.buy(prompt="a cat reads aloud")["status"] == "processing"


def _unread_close(account: Account) -> None:
    url = f"{account.base_url}text2img"
    body = {"key": KEY, "prompt": "a fox"}
    with requests.Session() as session:
        assert session.post(url, json=body, timeout=10).status_code == 200
        with pytest.raises(requests.ConnectionError):
            session.post(url, json=body, timeout=10)
        assert session.post(url, json=body, timeout=10).status_code == 200
    assert account.bought() == 2


def _own_failure(account: Account) -> None:
    said = [account.text2img(seed=seed) for seed in range(1, 21)]
    assert {answer.status_code for answer in said} == {200}
    assert {answer.json()["status"] for answer in said} == {"error"}
    assert {answer.json()["message"] for answer in said} == set(OWN_FAILURES)
    assert account.bought() == 0


def _empty_object(account: Account) -> None:
    answer = account.text2img()
    assert (answer.status_code, answer.json()) == (200, {})
    assert account.bought() == 1


def _queued_true(account: Account) -> None:
    answer = account.text2img()
    assert (answer.status_code, answer.json()) == (400, {"queued": True})
    assert account.bought() == 1


def _found_late(account: Account) -> None:
    purchase_id = account.buy()["id"]
    assert account.fetch(purchase_id)["message"] == "Request not found"
    account.advance(_LATE)
    assert account.fetch(purchase_id)["message"] == "Try Again"


def _never_ready(account: Account) -> None:
    with receiving() as receiver:
        answer = account.buy(webhook=receiver.url)
        for _ in range(2):
            account.advance(LATENCY)
            assert account.fetch(answer["id"])["message"] == "Try Again"
            assert account.get(answer["future_links"][0]).status_code == 404
        assert receiver.payloads == []
    assert account.bought() == 1
    account.tell("moods", never_ready=0)
    assert account.fetch(answer["id"])["status"] == "success"
    assert account.get(answer["future_links"][0]).status_code == 200


def _shared_id(account: Account) -> None:
    bought = [account.buy(prompt=f"fox {number}") for number in range(8)]
    ids = [answer["id"] for answer in bought]
    assert ids == [ids[0]] * 4 + [ids[4]] * 4
    assert ids[0] != ids[4]
    assert bought[3]["fetch_result"].endswith(f"/{ids[0]}")
    account.advance(LATENCY)
    assert account.fetch(ids[0])["output"] == bought[0]["future_links"]
    assert account.bought() == 8


def _fetch_other(account: Account) -> None:
    one, other = account.buy(prompt="a fox"), account.buy(prompt="an owl")
    assert account.fetch(one["id"])["message"] == "Try Again"
    account.advance(LATENCY)
    answer = account.fetch(one["id"])
    assert (answer["id"], answer["output"]) == (other["id"], other["future_links"])
    assert answer["meta"]["prompt"] == "an owl"
    account.tell("moods", fetch_other=0)
    assert account.fetch(one["id"])["output"] == one["future_links"]


def _webhook_other_id(account: Account) -> None:
    with receiving() as receiver:
        account.buy(prompt="a fox", track_id="A", webhook=receiver.url)
        other = account.buy(prompt="an owl", track_id="B")
        account.advance(LATENCY)
        [payload] = receiver.wait_for(1)
    assert (payload["track_id"], payload["id"]) == ("A", other["id"])
    assert payload["output"] == other["future_links"]


def _echo(account: Account) -> tuple[dict[str, Any], dict[str, Any]]:
    purchase = account.buy(prompt="a red panda ", seed=7, track_id="mark")
    account.advance(LATENCY)
    answer = account.fetch(purchase["id"])
    assert answer["output"] == purchase["future_links"]
    return purchase, answer


def _fetch_meta(account: Account) -> None:
    purchase, answer = _echo(account)
    assert (answer["id"], answer["meta"]) == (purchase["id"], purchase["meta"])


def _fetch_seed(account: Account) -> None:
    purchase, answer = _echo(account)
    assert answer["meta"] == purchase["meta"] | {"seed": 8}


def _fetch_trimmed(account: Account) -> None:
    purchase, answer = _echo(account)
    assert answer["meta"] == purchase["meta"] | {"prompt": "a red"}


def _fetch_translated(account: Account) -> None:
    purchase, answer = _echo(account)
    assert answer["meta"] == purchase["meta"] | {"prompt": "Une image : a red panda "}


def _both_ids(account: Account) -> None:
    purchase, answer = _echo(account)
    assert answer["request_id"] == purchase["id"] != answer["id"]


def _bytes(account: Account) -> bytes:
    answer = account.buy()
    account.advance(LATENCY)
    one, two = (account.get(answer["future_links"][0]) for _ in range(2))
    assert one.status_code == two.status_code == 200
    assert one.content == two.content
    return one.content


def _smaller_size(account: Account) -> None:
    assert Image.open(io.BytesIO(_bytes(account))).size == (992, 992)


def _avif(account: Account) -> None:
    picture = Image.open(io.BytesIO(_bytes(account)))
    assert (picture.format, picture.size) == ("AVIF", (1024, 1024))


def _picture_html(account: Account) -> None:
    assert _bytes(account).startswith(b"<!DOCTYPE html>")


def _picture_cut(account: Account) -> None:
    with pytest.raises(OSError, match="truncated"):
        Image.open(io.BytesIO(_bytes(account))).load()


PROOFS: dict[str, Callable[[Account], None]] = {
    proof.__name__[1:]: proof
    for proof in (
        _bad_gateway,
        _firewall,
        _unread_close,
        _own_failure,
        _empty_object,
        _queued_true,
        _found_late,
        _never_ready,
        _shared_id,
        _fetch_other,
        _webhook_other_id,
        _fetch_meta,
        _fetch_seed,
        _fetch_trimmed,
        _fetch_translated,
        _both_ids,
        _smaller_size,
        _avif,
        _picture_html,
        _picture_cut,
    )
}
