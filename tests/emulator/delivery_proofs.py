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


def _double_slash(account: Account) -> None:
    """That the picture is put there is shown in `test_bucket`, where there is an S3 server."""
    details = {
        "deploy_type": "nano_banana",
        "public_url": "https://cdn.test/generations/",
        "region_name": "us-east-1",
        "endpoint_url": "http://127.0.0.1:1/",
        "aws_access_key_id": "id",
        "aws_secret_access_key": "secret",
        "image_directory": "generations",
    }
    at_account = Account(account.base_url.replace("nano_banana/", ""))
    assert at_account.post("update_s3", details).json()["status"] == "success"
    link = account.buy()["future_links"][0]
    assert link.startswith("https://cdn.test/generations//")


def _details_flat(account: Account) -> None:
    assert account.post("system_details", {}).json() == {
        "status": "ok",
        "model_count": 1,
        "queue_time": 0,
    }


PROOFS: dict[str, Callable[[Account], None]] = {
    proof.__name__[1:]: proof
    for proof in (_base64_inline, _base64_data_uri, _double_slash, _details_flat)
}
