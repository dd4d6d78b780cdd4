import pytest
from pydantic import SecretStr

from nanobanana_pipeline.emulator import EmulatorConfig, running
from tests.emulator.account import Account
from tests.emulator.conftest import LATENCY

OPERATIONS = ["system_details", "clear_cache", "clear_queue", "restart_server", "update_server"]


def test_a_cleared_queue_forgets_what_was_under_way_and_nothing_else(account: Account) -> None:
    done = account.buy(seed=1)
    account.advance(LATENCY)
    queued = [account.buy(seed=seed) for seed in (2, 3, 4)]
    assert account.text2img(seed=5).status_code == 429
    assert account.post("clear_queue", {}).json()["status"] == "success"
    assert account.buy(seed=6)["status"] == "processing"
    account.advance(LATENCY)
    assert account.fetch(done["id"])["status"] == "success"
    for each in queued:
        assert account.fetch(each["id"])["message"] == "Request not found"
        assert account.get(each["future_links"][0]).status_code == 404
    record = account.admin("purchases")
    assert (record["total"], record["failed"]) == (5, 0)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_each_operation_wants_the_key_and_answers_success(operation: str) -> None:
    with running(EmulatorConfig(api_key=SecretStr("sk-right"))) as base_url:
        refused = Account(base_url, "sk-wrong").post(operation, {})
        assert (refused.status_code, refused.json()["message"]) == (401, "Invalid API key")
        account = Account(base_url, "sk-right")
        answer = account.post(operation, {})
        assert (answer.status_code, answer.json()["status"]) == (200, "success")
        assert account.admin("stats")["calls"][operation] == {"401": 1, "200": 1}


def test_details_are_documented_ones(account: Account) -> None:
    data = account.post("system_details", {}).json()["data"]
    assert set(data) == {"server_version", "uptime", "gpu_usage"}
