import time

from nanobanana_pipeline.emulator.background import may_be_called
from tests.emulator.account import KEY, Account
from tests.emulator.conftest import LATENCY
from tests.emulator.receiver import receiving


def test_a_webhook_is_told_when_it_is_done_and_not_before(account: Account) -> None:
    with receiving() as receiver:
        answer = account.buy(seed=5, webhook=receiver.url, track_id="mine")
        time.sleep(0.2)
        assert receiver.payloads == []
        account.advance(LATENCY)
        [payload] = receiver.wait_for(1)
    assert payload == {
        "status": "success",
        "id": answer["id"],
        "output": account.fetch(answer["id"])["output"],
        "generationTime": LATENCY,
        "track_id": "mine",
        "meta": answer["meta"],
    }
    assert KEY not in str(payload)


def test_a_webhook_is_told_of_a_failure(account: Account) -> None:
    account.tell("moods", failed=1)
    with receiving() as receiver:
        answer = account.buy(webhook=receiver.url, track_id="mine")
        account.advance(LATENCY)
        [payload] = receiver.wait_for(1)
    assert (payload["status"], payload["id"]) == ("failed", answer["id"])
    assert payload["track_id"] == "mine"
    assert payload["message"]


def test_what_is_cleared_tells_nobody_and_a_dead_receiver_harms_nobody(account: Account) -> None:
    with receiving() as receiver:
        account.buy(seed=1, webhook=receiver.url)
        account.post("clear_queue", {})
        dead = account.buy(seed=2, webhook="http://127.0.0.1:1/")
        account.advance(LATENCY)
        time.sleep(0.2)
        assert receiver.payloads == []
    assert account.fetch(dead["id"])["status"] == "success"


def test_only_https_and_loopback_are_called() -> None:
    called = ("https://x.test/", "http://127.0.0.1:8/x", "http://localhost/", "http://[::1]:9/")
    left_alone = ("http://x.test/", "http://169.254.169.254/", "file:///etc/passwd", "https://[")
    assert [may_be_called(url) for url in called] == [True] * 4
    assert [may_be_called(url) for url in left_alone] == [False] * 4
