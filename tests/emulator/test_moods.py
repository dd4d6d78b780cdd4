"""Each mood does what it says; what was bought is read from the record, never from the answer."""

import io
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests
from PIL import Image

from nanobanana_pipeline.emulator import EmulatorConfig, running
from nanobanana_pipeline.emulator.moods import MOODS, Moods
from tests.emulator import (
    delivery_proofs,
    image_proofs,
    outage_proofs,
    variant_proofs,
    webhook_proofs,
)
from tests.emulator.account import Account
from tests.emulator.conftest import LATENCY

DOCS = Path(__file__).parents[2] / "docs" / "emulator.md"


def _http_500_before(account: Account) -> None:
    answer = account.text2img()
    assert (answer.status_code, answer.json()["status"]) == (500, "error")
    assert account.bought() == 0


def _http_500_after(account: Account) -> None:
    answer = account.text2img()
    assert (answer.status_code, answer.json()["status"]) == (500, "error")
    assert account.bought() == 1


def _lost_answer_after(account: Account) -> None:
    with pytest.raises(requests.ConnectionError, match="without response"):
        account.text2img()
    assert account.bought() == 1
    assert account.admin("stats")["calls"]["text2img"] == {"no answer": 1}


def _html_answer(account: Account) -> None:
    answer = account.text2img()
    assert (answer.status_code, answer.text[:15]) == (200, "<!DOCTYPE html>")
    assert account.bought() == 1


def _cut_json(account: Account) -> None:
    answer = account.text2img()
    assert (answer.status_code, answer.text[:10]) == (200, '{"status":')
    with pytest.raises(requests.JSONDecodeError):
        answer.json()
    assert account.bought() == 1


def _slow_answer(account: Account) -> None:
    begun = time.monotonic()
    assert account.buy()["status"] == "processing"
    assert time.monotonic() - begun >= 0.5
    assert account.bought() == 1


def _rate_limited(account: Account) -> None:
    answer = account.text2img()
    assert (answer.status_code, answer.json()["retry_after"]) == (429, 2)
    assert account.bought() == 0


def _error_200(account: Account) -> None:
    answer = account.text2img()
    assert (answer.status_code, answer.json()["status"]) == (200, "error")
    assert account.bought() == 0


def _unauthorized(account: Account) -> None:
    answer = account.text2img()
    assert (answer.status_code, answer.json()["message"]) == (401, "Invalid API key")
    assert account.bought() == 0


def _no_credit(account: Account) -> None:
    answer = account.text2img()
    assert answer.status_code == 402
    assert answer.json()["message"].startswith("Insufficient credits")
    assert account.bought() == 0


def _failed(account: Account) -> None:
    answer = account.buy()
    assert account.fetch(answer["id"])["status"] == "processing"
    account.advance(LATENCY)
    assert account.fetch(answer["id"])["status"] == "failed"
    assert account.fetch(answer["id"])["message"] != "Request not found"
    assert account.get(answer["future_links"][0]).status_code == 404
    assert account.bought() == 1


def _forget(account: Account) -> None:
    answer = account.buy()
    assert account.fetch(answer["id"])["message"] == "Request not found"
    assert account.bought() == 1


def _image_404(account: Account) -> None:
    link = _finished_link(account)
    assert [account.get(link).status_code for _ in range(3)] == [404, 200, 200]


def _truncated_image(account: Account) -> None:
    link = _finished_link(account)
    with pytest.raises(OSError, match="truncated"):
        Image.open(io.BytesIO(account.get(link).content)).load()
    Image.open(io.BytesIO(account.get(link).content)).load()


def _finished_link(account: Account) -> str:
    link: str = account.buy()["future_links"][0]
    account.advance(LATENCY)
    return link


_PROOFS: dict[str, Callable[[Account], None]] = {
    "http_500_before": _http_500_before,
    "http_500_after": _http_500_after,
    "lost_answer_after": _lost_answer_after,
    "html_answer": _html_answer,
    "cut_json": _cut_json,
    "slow_answer": _slow_answer,
    "rate_limited": _rate_limited,
    "error_200": _error_200,
    "unauthorized": _unauthorized,
    "no_credit": _no_credit,
    "failed": _failed,
    "forget": _forget,
    "image_404": _image_404,
    "truncated_image": _truncated_image,
    **variant_proofs.PROOFS,
    **image_proofs.PROOFS,
    **delivery_proofs.PROOFS,
    **webhook_proofs.PROOFS,
    **outage_proofs.PROOFS,
}


@pytest.fixture(scope="module")
def moody() -> Iterator[Account]:
    config = EmulatorConfig(latency_seconds=(LATENCY, LATENCY), slow_answer_seconds=0.5)
    with running(config) as base_url:
        yield Account(base_url)


@pytest.mark.parametrize("mood", MOODS)
def test_a_mood_does_what_it_says(moody: Account, mood: str) -> None:
    moody.tell("reset")
    assert moody.tell("moods", **{mood: 1}).json()[mood] == 1
    _PROOFS[mood](moody)


def test_every_mood_is_documented_with_its_standing() -> None:
    rows = [line for line in DOCS.read_text().splitlines() if line.startswith("| `")]
    with_standing = "\n".join(row for row in rows if row.endswith(("D |", "V |", "O |", "I |")))
    assert [name for name in MOODS if f"`{name}`" not in with_standing] == []


def test_moods_strike_at_their_rate_and_in_the_same_places_whatever_the_order() -> None:
    def struck(seed: int, order: list[int]) -> set[str]:
        moods = Moods({"failed": 0.2}, seed)
        occasions = [moods.occasion(f"picture {each}") for each in order]
        return {occasion for occasion in occasions if moods.strikes("failed", occasion)}

    forward = list(range(1000))
    assert 150 < len(struck(1, forward)) < 250
    assert struck(1, forward) == struck(1, forward[::-1])
    assert struck(1, forward) != struck(2, forward)


def test_a_repeated_request_gets_another_chance() -> None:
    config = EmulatorConfig(moods={"http_500_before": 0.5}, cap=100)
    with running(config) as base_url:
        account = Account(base_url)
        assert {account.text2img(seed=1).status_code for _ in range(20)} == {200, 500}
