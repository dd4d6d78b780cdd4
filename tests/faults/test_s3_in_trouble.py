"""S3 that is slow, overloaded, cut off, killed: a launch waits, and nothing is bought twice."""

import json
import os
import signal
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import repeat
from pathlib import Path

import pytest

from nanobanana_pipeline import local
from nanobanana_pipeline.generation.budget.counters import day_scope, partition_scope
from nanobanana_pipeline.generation.launch_steps import settle_shard
from nanobanana_pipeline.ledger import State
from nanobanana_pipeline.local import ports
from nanobanana_pipeline.money import Budget
from nanobanana_pipeline.storage import ObjectStore, s3_client
from tests.conftest import Emulators, account_for
from tests.faults.conftest import server_of
from tests.launching import (
    admin,
    bought,
    check_images,
    entries,
    keep_prompts,
    launch,
    planned,
    prompts,
)
from tests.s3_proxy import SLOW_DOWN, Fate, Late, Loss, Refusal, S3Proxy, wait_until

REQUESTS = 12


def for_so_many(calls: int, fate: Fate, *, begins: Callable[[], bool]) -> Callable[..., object]:
    """A rule: from some moment on, so many calls have this fate."""
    # The proxy asks from many threads: an iterator gives none of them one too many.
    fates = repeat(fate, calls)

    def rule(method: str, _path: str) -> Fate | None:
        if (fate is Loss.MIDDLE and method != "PUT") or not begins():
            return None
        return next(fates, None)

    return rule


@pytest.mark.parametrize(
    ("fate", "calls"),
    [
        (Late(0.2), 100),
        (SLOW_DOWN, 40),
        (Refusal(500, "InternalError"), 40),
        (Loss.RESET, 20),
        (Loss.MIDDLE, 20),
    ],
    ids=["slow", "slow_down", "internal_error", "reset", "cut_off"],
)
def test_s3_in_trouble_for_a_while_is_waited_for(
    store: ObjectStore, emulators: Emulators, proxy: S3Proxy, fate: Fate, calls: int
) -> None:
    emulator = emulators(latency_seconds=(0.2, 0.4))
    account = account_for(emulator.base_url, store)
    keep_prompts(store, "set", prompts(REQUESTS))
    proxy.rule = for_so_many(calls, fate, begins=lambda: bought(emulator) >= 2)  # type: ignore[assignment]
    made = launch(proxy.store_like(store), account)
    assert (made.states, made.report.bought) == ({"settled": REQUESTS}, REQUESTS)
    assert made.report.halted is None
    check_images(store, made.rows)
    record = admin(emulator, "purchases")
    assert (record["total"], record["bought_twice"]) == (REQUESTS, 0)


@pytest.mark.parametrize("part", ["/images/", "/ledger/"])
def test_a_put_that_is_cut_off_in_the_middle_is_written_whole_or_not_at_all(
    store: ObjectStore, emulators: Emulators, proxy: S3Proxy, part: str
) -> None:
    emulator = emulators()
    account = account_for(emulator.base_url, store)
    keep_prompts(store, "set", prompts(4))

    def rule(method: str, path: str) -> Loss | None:
        is_meant = method == "PUT" and part in path
        return Loss.MIDDLE if is_meant and proxy.count("PUT", part) % 2 else None

    proxy.rule = rule
    made = launch(proxy.store_like(store), account)
    assert made.states == {"settled": 4}
    check_images(store, made.rows)
    record = admin(emulator, "purchases")
    assert (record["total"], record["bought_twice"]) == (4, 0)


@pytest.mark.parametrize(
    ("part", "number"),
    [
        pytest.param("/ledger/", 1, id="claim"),
        pytest.param("/ledger/", 2, id="accept"),
        pytest.param("/images/", 1, id="picture"),
        pytest.param("/ledger/", 3, id="settle"),
        pytest.param("/current.json", 1, id="manifest"),
        pytest.param("/budget/days/", 1, id="reserve"),
        pytest.param("/budget/days/", 2, id="close_the_account"),
        pytest.param("/budget/partitions/", 2, id="close_the_partitions_account"),
    ],
)
def test_a_write_whose_answer_is_lost_knows_itself_again(
    store: ObjectStore, emulators: Emulators, proxy: S3Proxy, part: str, number: int
) -> None:
    emulator = emulators()
    account = account_for(emulator.base_url, store)
    keep_prompts(store, "set", prompts(1))
    lost: list[str] = []

    def rule(method: str, path: str) -> Loss | None:
        if method == "PUT" and part in path and proxy.count("PUT", part) == number:
            lost.append(path)
            return Loss.ANSWER
        return None

    proxy.rule = rule
    made = launch(proxy.store_like(store), account)
    assert len(lost) == 1
    assert (made.states, made.report.bought) == ({"settled": 1}, 1)
    (entry,) = entries(store)
    assert [attempt.outcome.value for attempt in entry.attempts] == ["settled"]
    for scope in (day_scope(store, Budget()), partition_scope(store, Budget(), "set", 1)):
        counter = scope.read()
        assert (counter.images_counted, counter.open) == (1, {})
    assert not [key for key in store.keys("images/") if ".refs/" in key], "it owns its own"
    assert bought(emulator) == 1


def kill_server_of(data: Path) -> None:
    """End the S3 server that keeps this folder, as a power cut would."""
    os.kill(server_of(data), signal.SIGKILL)
    # Its other threads may hold the ports for a while after the first one has ended.
    ports = json.loads((data / "ports.json").read_text()).values()
    wait_until(lambda: all(map(is_silent, ports)))


def is_silent(port: int) -> bool:
    """Whether nobody listens there, nor at the second port of SeaweedFS."""
    for each in (port, port + ports.GRPC_OFFSET):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", each)) == 0:
                return False
    return True


def test_an_s3_server_that_is_killed_and_started_again_loses_nothing(
    tmp_path: Path, s3_url: str, emulators: Emulators
) -> None:
    assert s3_url
    data = tmp_path / "s3"
    emulator = emulators(latency_seconds=(0.2, 0.4))
    with ExitStack() as servers:
        url = servers.enter_context(local.s3_server(data))
        ports = json.loads((data / "ports.json").read_text())
        store = ObjectStore(s3_client(endpoint_url=url), local.BUCKET, "launch")
        account = account_for(emulator.base_url, store)
        keep_prompts(store, "set", prompts(24))
        made = planned(store)
        with ThreadPoolExecutor(1) as aside:
            settling = aside.submit(settle_shard, store, account, made.run_id, made.shards[0])
            wait_until(lambda: bought(emulator) >= 5)
            kill_server_of(data)
            servers.enter_context(local.s3_server(data, ports))
            report = settling.result(60)
        assert (report.states, report.bought) == ({State.SETTLED: 24}, 24)
        again = launch(store, account)
        assert (again.states, again.made.buy) == ({"settled": 24}, 0)
        check_images(store, again.rows)
    record = admin(emulator, "purchases")
    assert (record["total"], record["bought_twice"]) == (24, 0)
