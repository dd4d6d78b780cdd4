"""What shows that each mood of webhooks is there."""

import time
from collections.abc import Callable

from tests.emulator.account import Account
from tests.emulator.conftest import LATENCY
from tests.emulator.receiver import receiving

_LATE = 60
_A_MOMENT = 0.3


def _webhook_twice(account: Account) -> None:
    with receiving() as receiver:
        account.buy(webhook=receiver.url)
        account.advance(LATENCY)
        one, other = receiver.wait_for(2)
        assert one == other


def _webhook_late(account: Account) -> None:
    with receiving() as receiver:
        answer = account.buy(webhook=receiver.url)
        account.advance(LATENCY)
        assert account.fetch(answer["id"])["status"] == "success"
        time.sleep(_A_MOMENT)
        assert receiver.payloads == []
        account.advance(_LATE)
        assert receiver.wait_for(1)[0]["id"] == answer["id"]


def _webhook_never(account: Account) -> None:
    with receiving() as receiver:
        account.buy(webhook=receiver.url)
        account.advance(LATENCY)
        time.sleep(_A_MOMENT)
        assert receiver.payloads == []


def _webhook_lies(account: Account) -> None:
    with receiving() as receiver:
        answer = account.buy(webhook=receiver.url)
        account.advance(LATENCY)
        [payload] = receiver.wait_for(1)
        assert payload["status"] == "success"
        assert payload["output"] != account.fetch(answer["id"])["output"]
        assert account.get(payload["output"][0]).status_code == 404


def _webhook_request_id(account: Account) -> None:
    with receiving() as receiver:
        answer = account.buy(webhook=receiver.url)
        account.advance(LATENCY)
        [payload] = receiver.wait_for(1)
        assert (payload["request_id"], "id" in payload) == (answer["id"], False)


PROOFS: dict[str, Callable[[Account], None]] = {
    proof.__name__[1:]: proof
    for proof in (
        _webhook_twice,
        _webhook_late,
        _webhook_never,
        _webhook_lies,
        _webhook_request_id,
    )
}
