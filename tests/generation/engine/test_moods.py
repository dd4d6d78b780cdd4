"""What each quirk of the provider makes of a cell, and of the same cell at the next launch."""

from dataclasses import replace

import pytest

from nanobanana_pipeline.emulator.moods import MOODS
from nanobanana_pipeline.storage import ObjectStore
from tests.conftest import Emulators, account_for
from tests.launching import (
    QUICK,
    admin,
    bought,
    check_images,
    keep_prompts,
    launch,
    prompts,
    tell,
)

SOMETIMES = 0.7
"""For what would last for ever if it always happened."""

SETTLED = ("settled", 1, "settled")
DOUBTED = ("in_doubt", 1, "in_doubt")
REFUSED = ("refused", 0, "refused")
FOUND_LATER = ("lost", 1, "settled")
HALTED = ("pending", 0, "settled")
EXPECTED = {
    # Each cell after a launch, how often it was bought, and the cell after another launch with the
    # mood gone.
    "bad_gateway": ("in_doubt", 0, "in_doubt"),
    "unread_close": SETTLED,
    "own_failure": ("failed", 0, "failed"),
    "empty_object": DOUBTED,
    "queued_true": DOUBTED,
    "http_500_before": ("in_doubt", 0, "in_doubt"),
    "http_500_after": DOUBTED,
    "lost_answer_after": DOUBTED,
    "html_answer": DOUBTED,
    "cut_json": DOUBTED,
    "empty_body": DOUBTED,
    "json_list": DOUBTED,
    "slow_answer": SETTLED,
    "error_200": REFUSED,
    "error_list": REFUSED,
    "error_map": REFUSED,
    "rate_limited": SETTLED,
    "rate_limited_503": SETTLED,
    "rate_limited_header": SETTLED,
    "unauthorized": HALTED,
    "no_credit": HALTED,
    "plan_too_small": HALTED,
    "processing_400": SETTLED,
    "messege": SETTLED,
    "output_string": SETTLED,
    "output_blank": SETTLED,
    "output_null": SETTLED,
    "proxy_links_list": SETTLED,
    "proxy_links_map": SETTLED,
    "extras": SETTLED,
    "id_string": SETTLED,
    "request_id": SETTLED,
    "no_meta": SETTLED,
    "eta_float": SETTLED,
    "escaped_slashes": SETTLED,
    "fetch_500": SETTLED,
    "fetch_html": SETTLED,
    "fetch_cut": SETTLED,
    "fetch_meta": SETTLED,
    "fetch_seed": SETTLED,
    "fetch_trimmed": SETTLED,
    "fetch_translated": SETTLED,
    "both_ids": SETTLED,
    "found_late": SETTLED,
    "failed": ("failed", 3, "failed"),
    "forget": FOUND_LATER,
    "seed_ignored": SETTLED,
    "webp": SETTLED,
    "index_first": SETTLED,
    "base64_inline": SETTLED,
    "base64_data_uri": SETTLED,
    "wrong_size": FOUND_LATER,
    "smaller_size": FOUND_LATER,
    "avif": FOUND_LATER,
    "picture_html": FOUND_LATER,
    "picture_cut": FOUND_LATER,
    "lying_extension": SETTLED,
    "corrupt_chunk": FOUND_LATER,
    "image_bomb": FOUND_LATER,
    "provenance": SETTLED,
    "image_404": SETTLED,
    "image_html": SETTLED,
    "image_empty": SETTLED,
    "truncated_image": SETTLED,
    "expired_link": FOUND_LATER,
    "image_redirect": SETTLED,
    "image_redirect_private": FOUND_LATER,
    "oversized": FOUND_LATER,
    "text_plain": SETTLED,
}
ELSEWHERE = {
    "double_slash",  # one's own bucket: tests/cli/test_provider.py
    "details_flat",  # no picture: tests/provider/modelslab/test_operations.py
    "webhook_never",  # webhooks: tests/generation/engine/test_poll.py
    "webhook_late",
    "webhook_lies",
    "webhook_request_id",
    "webhook_twice",
    "webhook_other_id",
    "fetch_other",  # two requests, and whose answer it is
    "shared_id",
    "firewall",  # a prompt that holds its text
    "never_ready",  # lasts as long as a launch waits
}
SHAPES = (
    *("processing_400", "messege", "output_string", "proxy_links_list", "proxy_links_map"),
    *("extras", "id_string", "request_id", "no_meta", "escaped_slashes"),
)
NOT_ALWAYS = {
    **dict.fromkeys(("rate_limited", "rate_limited_503", "rate_limited_header"), "text2img"),
    **dict.fromkeys(("fetch_500", "fetch_html", "fetch_cut"), "fetch"),
}
"""Moods at `SOMETIMES`, and the call that they make us repeat."""


def test_every_quirk_has_its_place() -> None:
    assert set(EXPECTED) | ELSEWHERE == set(MOODS)
    assert not set(EXPECTED) & ELSEWHERE


@pytest.mark.parametrize("mood", EXPECTED)
def test_a_quirk_and_what_the_next_launch_makes_of_it(
    store: ObjectStore, emulators: Emulators, mood: str
) -> None:
    state, purchases, later = EXPECTED[mood]
    # What is given up in the end is given up soon.
    timing = replace(QUICK, download_seconds=0.2) if state == "lost" else QUICK
    emulator = emulators(
        moods={mood: SOMETIMES if mood in NOT_ALWAYS else 1},
        retry_after_seconds=0.1,
        slow_answer_seconds=0.3,
        found_late_seconds=0.3,
        seed=1,
    )
    account = account_for(emulator.base_url, store)
    texts = "yes" if mood.startswith("base64") else "no"
    count = 4 if mood in NOT_ALWAYS else 1
    keep_prompts(store, "set", [{"prompt": each, "base64": texts} for each in prompts(count)])
    first = launch(store, account, timing=timing)
    assert first.states == {state: count}
    assert bought(emulator) == purchases * count
    assert first.rows["reason"].notna().all() == (state != "settled")
    check_images(store, first.rows)
    if mood in NOT_ALWAYS:
        assert sum(admin(emulator, "stats")["calls"][NOT_ALWAYS[mood]].values()) > count
    tell(emulator, "moods", **{mood: 0})
    again = launch(store, account, timing=timing)
    assert again.states == {later: count}
    assert bought(emulator) == (1 if state == "pending" else purchases * count)
    assert admin(emulator, "purchases")["bought_twice"] == 0
    check_images(store, again.rows)


@pytest.mark.parametrize("mood", SHAPES)
def test_a_shape_of_an_answer_that_comes_when_all_is_done(
    store: ObjectStore, emulators: Emulators, mood: str
) -> None:
    emulator = emulators(mode="sync", moods={mood: 1})
    keep_prompts(store, "set", [*prompts(1), {"prompt": "a pair", "samples": 2}])
    made = launch(store, account_for(emulator.base_url, store))
    assert (made.states, bought(emulator)) == ({"settled": 2}, 2)
    assert made.rows["provider_id"].notna().all()
    seeds = made.rows["seed_reported"]
    assert seeds.isna().all() if mood == "no_meta" else (seeds == 1).all()
    check_images(store, made.rows)


@pytest.mark.parametrize(
    ("mood", "column", "value"),
    [("webp", "format", "webp"), ("lying_extension", "format", "jpg"),
     ("provenance", "provenance", "c2pa")],
)  # fmt: skip
def test_the_manifest_says_what_the_bytes_say(
    store: ObjectStore, emulators: Emulators, mood: str, column: str, value: str
) -> None:
    keep_prompts(store, "set", prompts(1))
    account = account_for(emulators(moods={mood: 1}).base_url, store)
    assert launch(store, account).rows[column].to_list() == [value]


@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("mood", ["unauthorized", "no_credit", "plan_too_small"])
def test_a_refused_account_is_asked_no_more_than_there_are_slots(
    store: ObjectStore, emulators: Emulators, mood: str, slots: int
) -> None:
    emulator = emulators(moods={mood: 1})
    account = account_for(emulator.base_url, store, slots=slots)
    keep_prompts(store, "set", prompts(20))
    halted = launch(store, account)
    assert (halted.states, bought(emulator)) == ({"pending": 20}, 0)
    assert halted.report.halted
    calls = admin(emulator, "stats")["calls"]["text2img"]
    assert sum(calls.values()) <= slots
