import io
import threading
import time

import pytest
import requests
from PIL import Image
from pydantic import SecretStr

from nanobanana_pipeline.emulator import EmulatorConfig, running
from tests.emulator.account import Account
from tests.emulator.conftest import LATENCY


def test_a_queued_request_is_answered_at_once_and_fetched_when_its_time_has_come(
    account: Account,
) -> None:
    answer = account.buy(seed="7", samples=2, track_id="mine")
    links = answer["future_links"]
    assert answer["status"] == "processing"
    assert answer["output"] == []
    assert answer["eta"] == LATENCY
    assert answer["fetch_result"] == f"{account.base_url}fetch/{answer['id']}"
    assert answer["meta"]["seed"] == 7
    assert [link.startswith(f"{account.root_url}/outputs/") for link in links] == [True, True]
    assert [link[-6:] for link in links] == ["-0.png", "-1.png"]
    too_early = {"status": "processing", "message": "Try Again", "output": ""}
    assert account.fetch(answer["id"]) == too_early
    account.advance(LATENCY - 50)
    assert account.fetch(answer["id"]) == too_early
    early = account.get(links[0])
    assert (early.status_code, early.headers["content-type"]) == (404, "text/html; charset=utf-8")
    account.advance(50)
    assert account.fetch(answer["id"]) == {"status": "success", "output": links}
    image = Image.open(io.BytesIO(account.get(links[1]).content))
    assert (image.format, image.size) == ("PNG", (1024, 1024))
    image.load()


def test_an_unknown_id_is_answered_as_observed(account: Account) -> None:
    unknown = {"status": "failed", "message": "Request not found", "output": "", "id": ""}
    for purchase_id in ("1", "abc", "9" * 40, "%D9%A1", "-1"):
        assert account.fetch(purchase_id) == unknown


def test_outputs_die_a_day_after_completion_and_not_before(account: Account) -> None:
    answer = account.buy()
    link = answer["future_links"][0]
    account.advance(LATENCY + 24 * 3600 - 60)
    assert account.get(link).status_code == 200
    account.advance(60)
    assert account.get(link).status_code == 404
    assert account.fetch(answer["id"]) == {"status": "success", "output": [link]}


def test_one_request_above_the_cap_is_refused_until_another_is_ready(account: Account) -> None:
    for seed in (1, 2, 3):
        account.buy(seed=seed)
    refused = account.text2img(seed=4)
    assert refused.status_code == 429
    assert refused.json() == {
        "status": "error",
        "message": "Rate limit exceeded. Maximum 3 queued requests allowed.",
        "retry_after": 7,
    }
    assert account.bought() == 3
    account.advance(LATENCY)
    account.buy(seed=4)
    stats = account.admin("stats")
    assert (stats["in_flight"], stats["max_in_flight"], stats["cap"]) == (1, 3, 3)
    assert stats["rate_limited"] == 1
    assert stats["calls"]["text2img"] == {"200": 4, "429": 1}
    account.advance(LATENCY)
    # Three for one latency, then one for another; what ran in real time makes it inexact.
    assert account.admin("stats")["mean_in_flight"] == pytest.approx(2, abs=0.1)
    assert account.admin("stats")["mean_use"] == pytest.approx(2 / 3, abs=0.1)


def test_only_the_expected_key_is_accepted() -> None:
    with running(EmulatorConfig(api_key=SecretStr("sk-right"))) as base_url:
        for key in ("sk-wrong", "", "sk-right "):
            wrong = Account(base_url, key)
            for refused in (wrong.text2img(), wrong.post("fetch/1", {})):
                assert refused.status_code == 401
                assert refused.json() == {"status": "error", "message": "Invalid API key"}
        unreadable = requests.post(f"{base_url}text2img", data=b"[" * 100_000, timeout=10)
        assert unreadable.status_code == 401
        right = Account(base_url, "sk-right")
        assert right.text2img().status_code == 200
        assert right.bought() == 1


def test_a_bad_body_is_refused_with_every_reason_and_not_bought(account: Account) -> None:
    refused = account.text2img(prompt=" ", samples=9)
    assert refused.status_code == 400
    assert refused.json() == {
        "status": "error",
        "message": "prompt is required; samples must be between 1 and 4",
        "errors": {
            "prompt": ["prompt is required"],
            "samples": ["samples must be between 1 and 4"],
        },
    }
    assert account.bought() == 0


def test_sync_mode_answers_when_done_and_counts_against_the_cap_meanwhile() -> None:
    config = EmulatorConfig(mode="sync", cap=1, latency_seconds=(LATENCY, LATENCY))
    with running(config) as base_url:
        account = Account(base_url)
        answers = []
        buyer = threading.Thread(target=lambda: answers.append(account.buy(seed=5)))
        buyer.start()
        deadline = time.monotonic() + 60
        while account.bought() == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert account.text2img(seed=6).status_code == 429
        assert answers == []
        account.advance(LATENCY)
        buyer.join(5)
        [answer] = answers
        assert answer["status"] == "success"
        assert answer["generationTime"] == LATENCY
        assert answer["meta"]["seed"] == 5
        assert account.get(answer["output"][0]).status_code == 200


def test_a_sync_purchase_stands_when_its_client_has_gone() -> None:
    with running(EmulatorConfig(mode="sync", latency_seconds=(LATENCY, LATENCY))) as base_url:
        account = Account(base_url)
        body = {"key": "k", "prompt": "p"}
        with pytest.raises(requests.ReadTimeout):
            requests.post(f"{base_url}text2img", json=body, timeout=3)
        [group] = account.admin("purchases")["groups"]
        account.advance(LATENCY)
        assert account.fetch(group["ids"][0])["status"] == "success"


def test_links_lead_back_to_the_address_that_the_client_used(account: Account) -> None:
    answer = requests.post(
        f"{account.base_url}text2img",
        json={"key": "k", "prompt": "p"},
        headers={"Host": "provider.test:81"},
        timeout=10,
    ).json()
    assert answer["fetch_result"].startswith("http://provider.test:81/api/")
    assert answer["future_links"][0].startswith("http://provider.test:81/outputs/")


def test_an_emulator_that_kept_nothing_gives_no_id_again() -> None:
    ids = []
    for _ in range(2):
        with running(EmulatorConfig()) as base_url:
            ids += [Account(base_url).buy(seed=seed)["id"] for seed in (1, 2)]
    assert sorted(set(ids)) == ids
    assert ids[-1] < 2**53  # exact for readers of JSON that know only doubles


def test_pictures_kept_at_hand_are_not_mixed_up(account: Account) -> None:
    """The first of two and the only one share everything but their caption."""
    links = [account.buy(seed=1, samples=samples)["future_links"][0] for samples in (1, 2)]
    account.advance(LATENCY)
    one, other = (account.get(link).content for link in links)
    assert one != other
    assert account.get(links[0]).content == one
