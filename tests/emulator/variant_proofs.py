"""What shows that each mood of answers in other shapes, and of refusals and fetches, is there."""

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
import requests

from tests.emulator.account import Account
from tests.emulator.conftest import LATENCY


def _result(account: Account, **fields: object) -> dict[str, Any]:
    purchase = account.buy(**fields)
    account.advance(LATENCY)
    answer = account.fetch(purchase.get("id", purchase.get("request_id")))
    assert answer["status"] == "success"
    return answer


def _plan_too_small(account: Account) -> None:
    assert account.text2img().status_code == 403
    assert account.bought() == 0


def _rate_limited_503(account: Account) -> None:
    answer = account.text2img()
    assert (answer.status_code, answer.json()["retry_after"]) == (503, 2)
    assert account.bought() == 0


def _rate_limited_header(account: Account) -> None:
    answer = account.text2img()
    assert answer.status_code == 429
    assert abs(int(answer.headers["X-RateLimit-Reset"]) - time.time() - 2) < 5
    assert "retry_after" not in answer.json()
    assert account.bought() == 0


def _error_list(account: Account) -> None:
    assert account.text2img().json()["errors"] == ["prompt is not allowed"]
    assert account.bought() == 0


def _error_map(account: Account) -> None:
    assert account.text2img().json()["errors"] == {"prompt": ["prompt is not allowed"]}
    assert account.bought() == 0


def _empty_body(account: Account) -> None:
    answer = account.text2img()
    assert (answer.status_code, answer.content) == (200, b"")
    assert account.bought() == 1


def _json_list(account: Account) -> None:
    [answer] = account.text2img().json()
    assert answer["status"] == "processing"


def _processing_400(account: Account) -> None:
    answer = account.text2img()
    assert (answer.status_code, answer.json()["status"]) == (400, "processing")
    assert account.bought() == 1
    early = account.post(f"fetch/{answer.json()['id']}", {})
    assert (early.status_code, early.json()["message"]) == (400, "Try Again")
    account.advance(LATENCY)
    assert account.post(f"fetch/{answer.json()['id']}", {}).status_code == 200


def _messege(account: Account) -> None:
    answer = account.buy()
    assert answer["messege"]
    assert "message" not in answer
    account.tell("moods", error_200=1)
    refused = account.text2img(seed=2).json()
    assert (refused["messege"], "message" in refused) == ("prompt is not allowed", False)


def _output_string(account: Account) -> None:
    assert account.get(_result(account)["output"]).status_code == 200
    assert len(_result(account, samples=2)["output"]) == 2


def _output_blank(account: Account) -> None:
    assert account.buy()["output"] == ""


def _output_null(account: Account) -> None:
    answer = account.buy()
    assert answer["output"] is None
    assert account.fetch(answer["id"])["output"] is None


def _proxy_links_list(account: Account) -> None:
    answer = _result(account, samples=2)
    assert answer["proxy_links"] == answer["output"]


def _proxy_links_map(account: Account) -> None:
    answer = _result(account, samples=2)
    assert answer["proxy_links"] == {"0": answer["output"][0], "1": answer["output"][1]}


def _extras(account: Account) -> None:
    assert {"nsfw_content_detected", "webhook_status", "tip"} < set(_result(account))


def _id_string(account: Account) -> None:
    assert account.buy()["id"].isdigit()


def _request_id(account: Account) -> None:
    answer = account.buy()
    assert "id" not in answer
    assert account.fetch(answer["request_id"])["message"] == "Try Again"


def _no_meta(account: Account) -> None:
    assert "meta" not in account.buy()


def _eta_float(account: Account) -> None:
    assert account.buy()["eta"] == LATENCY + 0.5


def _escaped_slashes(account: Account) -> None:
    text = account.text2img().text
    assert r"http:\/\/" in text
    assert "/" not in text.replace(r"\/", "")
    assert json.loads(text)["fetch_result"].startswith(account.base_url)


def _fetch(account: Account) -> requests.Response:
    purchase = account.buy()
    account.advance(LATENCY)
    return account.post(f"fetch/{purchase['id']}", {})


def _fetch_500(account: Account) -> None:
    assert _fetch(account).status_code == 500


def _fetch_html(account: Account) -> None:
    assert _fetch(account).text.startswith("<!DOCTYPE html>")


def _fetch_cut(account: Account) -> None:
    with pytest.raises(requests.JSONDecodeError):
        _fetch(account).json()


PROOFS: dict[str, Callable[[Account], None]] = {
    proof.__name__[1:]: proof
    for proof in (
        _plan_too_small,
        _rate_limited_503,
        _rate_limited_header,
        _error_list,
        _error_map,
        _empty_body,
        _json_list,
        _processing_400,
        _messege,
        _output_string,
        _output_blank,
        _output_null,
        _proxy_links_list,
        _proxy_links_map,
        _extras,
        _id_string,
        _request_id,
        _no_meta,
        _eta_float,
        _escaped_slashes,
        _fetch_500,
        _fetch_html,
        _fetch_cut,
    )
}
