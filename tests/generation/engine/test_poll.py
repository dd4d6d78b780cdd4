"""With webhooks on, the provider is not asked what it will tell."""

from dataclasses import replace

import pytest

from nanobanana_pipeline.emulator import EmulatorThread
from nanobanana_pipeline.generation.engine.poll import _pause
from nanobanana_pipeline.generation.engine.timing import DEFAULT_TIMING, Timing
from nanobanana_pipeline.storage import ObjectStore
from tests.conftest import Emulators, account_for
from tests.launching import admin, bought, check_images, entries, keep_prompts, launch, prompts
from tests.s3_proxy import wait_until
from tests.webhooks.serving import SECRET, receiving

REQUESTS = 6


def fetches(emulator: EmulatorThread) -> int:
    calls: dict[str, int] = admin(emulator, "stats")["calls"].get("fetch", {})
    return sum(calls.values())


@pytest.mark.parametrize("mood", [None, "webhook_twice", "webhook_request_id", "webhook_lies"])
def test_what_is_told_is_confirmed_by_one_fetch(
    store: ObjectStore, emulators: Emulators, mood: str | None
) -> None:
    emulator = emulators(latency_seconds=(1, 1.5), cap=REQUESTS, moods={mood: 1} if mood else {})
    with receiving(store) as webhooks:
        account = replace(account_for(emulator.base_url, store), webhooks=webhooks)
        keep_prompts(store, "set", prompts(REQUESTS))
        told = launch(store, account)
    assert told.states == {"settled": REQUESTS}
    check_images(store, told.rows)
    assert fetches(emulator) <= 2 * REQUESTS
    assert len(list(store.keys("webhooks/"))) >= REQUESTS
    written = [store.get(key) for key in store.keys("ledger/")]
    assert all(found and SECRET.encode() not in found.body for found in written)


@pytest.mark.parametrize("mood", ["webhook_never", "webhook_late"])
def test_what_is_not_told_in_time_is_fetched(
    store: ObjectStore, emulators: Emulators, mood: str
) -> None:
    timing = Timing(webhook_patience_seconds=1.0)
    emulator = emulators(latency_seconds=(0.2, 0.4), moods={mood: 1})
    with receiving(store) as webhooks:
        account = replace(account_for(emulator.base_url, store), webhooks=webhooks)
        keep_prompts(store, "set", prompts(2))
        assert launch(store, account, timing=timing).states == {"settled": 2}
    assert list(store.keys("webhooks/")) == []


def test_a_doubt_that_the_provider_tells_of_is_settled_by_the_next_launch(
    store: ObjectStore, emulators: Emulators
) -> None:
    emulator = emulators(latency_seconds=(0.1, 0.2), moods={"lost_answer_after": 1})
    with receiving(store) as webhooks:
        account = replace(account_for(emulator.base_url, store), webhooks=webhooks)
        keep_prompts(store, "set", prompts(3))
        assert launch(store, account).states == {"in_doubt": 3}
        wait_until(lambda: len(list(store.keys("webhooks/"))) == 3)
        settled = launch(store, account)
    assert settled.states == {"settled": 3}
    assert bought(emulator) == 3


def test_a_webhook_of_ones_own_goes_before_this_projects_and_a_label_follows_the_attempt(
    store: ObjectStore, emulators: Emulators
) -> None:
    emulator = emulators(latency_seconds=(0, 0))
    with receiving(store) as webhooks:
        account = replace(account_for(emulator.base_url, store), webhooks=webhooks)
        own = "http://127.0.0.1:9/mine"
        keep_prompts(
            store, "set", [{"prompt": "a", "webhook": own, "track_id": "mine"}, {"prompt": "b"}]
        )
        assert launch(store, account).states == {"settled": 2}
    groups = admin(emulator, "purchases")["groups"]
    sent = {track_id for group in groups for track_id in group["track_ids"]}
    names = {e.prompt: f"{e.request_key}.{e.attempts[0].nonce}" for e in entries(store)}
    assert sent == {f"{names['a']}.mine", names["b"]}
    assert all(key.startswith(f"webhooks/{names['b']}/") for key in store.keys("webhooks/"))


def polls(until: float, usual: tuple[float, float] | None) -> list[float]:
    """When it is asked for what is done so long after it was sent, in seconds since then."""
    times = [DEFAULT_TIMING.first_poll_seconds]
    while times[-1] < until:
        times.append(times[-1] + _pause(DEFAULT_TIMING, times[-1], usual))
    return times


@pytest.mark.parametrize("usual", [None, (1.1, 2.9), (9.0, 31.0), (0.2, 0.6), (1.0, 1.0)])
@pytest.mark.parametrize("until", [0.5, 2.0, 20.0, 60.0])
def test_what_is_ready_is_noticed_soon_whatever_is_usual(
    until: float, usual: tuple[float, float] | None
) -> None:
    timing, asked = DEFAULT_TIMING, polls(until, usual)
    late = asked[-1] - until
    assert late <= max(timing.first_poll_seconds, timing.poll_share * until) + 1e-9
    if usual is not None and usual[0] <= until <= usual[1]:
        spread = usual[1] - usual[0]
        assert late <= max(timing.min_poll_seconds, spread / timing.usual_polls) + 1e-9
    assert len(asked) <= len(polls(until, None)) + timing.usual_polls + 1
