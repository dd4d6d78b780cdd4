import asyncio

import pytest
from starlette.types import Message

from nanobanana_pipeline.emulator import EmulatorConfig
from nanobanana_pipeline.emulator.app import EmulatorApp
from tests.emulator.account import Account
from tests.emulator.conftest import LATENCY


def test_purchases_are_grouped_by_what_changes_the_picture_and_by_nothing_else(
    account: Account,
) -> None:
    first = account.buy(seed=1, width="1024", track_id="one", negative_prompt="")
    second = account.buy(
        seed="1", track_id="two", base64="yes", temp=True, webhook="https://x.test", watermark="no"
    )
    other = account.buy(seed=1, watermark="yes", samples=3)
    record = account.admin("purchases")
    assert (record["total"], record["images"], record["bought_twice"]) == (3, 5, 1)
    twice, once = record["groups"]
    assert (twice["count"], twice["samples"]) == (2, 2)
    assert twice["ids"] == [first["id"], second["id"]]
    assert twice["track_ids"] == ["one", "two"]
    assert (twice["prompt"], twice["seed"], len(twice["times"])) == ("a red panda", 1, 2)
    assert (once["ids"], once["samples"]) == ([other["id"]], 3)


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "a red panda "},
        {"negative_prompt": "x"},
        {"seed": 2},
        {"samples": 2},
        {"height": 1056},
        {"noise_scale_start": 7},
        {"noise_scale_end": 7},
        {"noise_clip_std": 2},
        {"watermark": True},
    ],
)
def test_each_field_of_the_picture_makes_another_group(
    account: Account, change: dict[str, object]
) -> None:
    account.buy(**{"seed": 1} | change)
    account.buy(seed=1)
    assert account.admin("purchases")["bought_twice"] == 0


def test_buying_again_what_has_failed_is_not_buying_twice(account: Account) -> None:
    account.tell("moods", failed=1)
    account.buy(seed=1)
    account.tell("moods", failed=0)
    account.buy(seed=1)  # too early: nobody can know yet that the first one fails
    assert account.admin("purchases")["bought_twice"] == 1
    account.advance(LATENCY)
    record = account.admin("purchases")
    assert (record["total"], record["failed"], record["bought_twice"]) == (2, 1, 0)
    assert (record["groups"][0]["count"], record["groups"][0]["failed"]) == (2, 1)
    account.buy(seed=1)
    assert account.admin("purchases")["bought_twice"] == 1


def test_seed_0_is_a_random_seed_of_its_own_each_time(account: Account) -> None:
    seeds = {account.buy(seed=0)["meta"]["seed"] for _ in range(2)}
    groups = account.admin("purchases")["groups"]
    assert len(seeds) == 2
    assert {group["seed"] for group in groups} == seeds
    assert all(1 <= seed < 2**32 for seed in seeds)


def test_reset_forgets_purchases_figures_and_moods_and_gives_no_id_twice(account: Account) -> None:
    before = [account.buy(seed=seed)["id"] for seed in (1, 2, 3)]
    account.tell("moods", forget=1)
    assert account.tell("reset").status_code == 200
    assert account.bought() == 0
    assert account.admin("stats") == {
        "calls": {},
        "rate_limited": 0,
        "cap": 3,
        "in_flight": 0,
        "max_in_flight": 0,
        "mean_in_flight": 0,
        "mean_use": 0,
    }
    after = account.buy(seed=1)["id"]
    assert after > max(before)
    assert account.fetch(before[0])["message"] == "Request not found"
    assert account.fetch(after)["message"] == "Try Again"


def test_bad_commands_are_answered_with_the_reason_and_change_nothing(account: Account) -> None:
    for refused, reason in (
        (account.tell("clock", advance=-1), "only goes forward"),
        (account.tell("clock", advance="soon"), "a number"),
        (account.tell("moods", forget=0.5, sulky=1), "'sulky' is not a mood"),
        (account.tell("moods", forget=1.5), "between 0 and 1"),
        (account.tell("moods", forget=True), "must be a number"),
    ):
        assert refused.status_code == 400
        assert reason in refused.json()["error"]
    assert set(account.admin("moods").values()) == {0}
    account.buy()
    account.advance(LATENCY - 10)
    assert account.admin("stats")["in_flight"] == 1


@pytest.mark.parametrize("path", ["/admin/purchases", "/admin/moods", "/healthz"])
@pytest.mark.parametrize(("client", "status"), [("192.0.2.7", 403), ("127.0.0.1", 200)])
def test_the_admin_is_closed_to_all_but_loopback(path: str, client: str, status: int) -> None:
    assert asyncio.run(_status_for(client, path)) == status


async def _status_for(client: str, path: str) -> int:
    """Call the application itself: no test can come from another machine."""
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b""}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "GET",
        "path": path,
        "headers": [(b"x-forwarded-for", b"127.0.0.1")],
        "query_string": b"",
        "client": (client, 1234),
    }
    await EmulatorApp(EmulatorConfig())(scope, receive, send)
    status: int = sent[0]["status"]
    return status
