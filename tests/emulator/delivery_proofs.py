"""What shows that each mood of deliveries and of the server's details is there."""

import base64
from collections.abc import Callable

from tests.emulator.account import Account
from tests.emulator.conftest import LATENCY

_PNG = b"\x89PNG"


def _output(account: Account) -> str:
    answer = account.buy(base64="yes")
    account.advance(LATENCY)
    output: str = account.fetch(answer["id"])["output"][0]
    return output


def _base64_inline(account: Account) -> None:
    assert base64.b64decode(_output(account), validate=True)[:4] == _PNG


def _base64_data_uri(account: Account) -> None:
    head, _, text = _output(account).partition(",")
    assert head == "data:image/png;base64"
    assert base64.b64decode(text, validate=True)[:4] == _PNG


def _details_flat(account: Account) -> None:
    assert account.post("system_details", {}).json() == {
        "status": "ok",
        "model_count": 1,
        "queue_time": 0,
    }


PROOFS: dict[str, Callable[[Account], None]] = {
    proof.__name__[1:]: proof for proof in (_base64_inline, _base64_data_uri, _details_flat)
}
