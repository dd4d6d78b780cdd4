"""`nanobanana doubts`: what may be paid for is shown, and settled by evidence or a person."""

import json
from pathlib import Path

import pytest

from nanobanana_pipeline.bucket_keys import ledger_key
from nanobanana_pipeline.emulator import EmulatorThread
from nanobanana_pipeline.ledger import State
from nanobanana_pipeline.provider.modelslab.own_bucket import Place, change_places
from nanobanana_pipeline.storage import ObjectStore
from tests.cli.conftest import Command
from tests.launching import admin, bought, entries, states, tell


@pytest.fixture
def doubted(nanobanana: Command, table: Path, emulator: EmulatorThread) -> Command:
    """Two requests that were sold, and whose answers got lost on the way."""
    tell(emulator, "moods", lost_answer_after=1)
    assert nanobanana("generate", table, "--seeds", "1").exit_code == 1
    tell(emulator, "moods", lost_answer_after=0)
    return nanobanana


def sold(emulator: EmulatorThread) -> dict[str, str]:
    """Provider ids by request key."""
    groups = admin(emulator, "purchases")["groups"]
    return {g["track_ids"][0].partition(".")[0]: str(g["ids"][0]) for g in groups}


def test_doubts_are_listed_with_cause_age_and_cost(
    doubted: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NANOBANANA_PRICE_PER_IMAGE", "0.04")
    listed = doubted("doubts", "list")
    assert listed.exit_code == 1
    assert "2 requests in doubt or lost" in listed.output
    assert "0.04" in listed.output
    found = json.loads(doubted("doubts", "list", "--json").output)
    assert {d["prompt"] for d in found} == {"a fox", "a whale"}
    assert {(d["prompt_set"], d["seed"], d["state"], d["images"], d["cost"]) for d in found} == {
        ("animals", 1, "in_doubt", 1, "0.04")
    }
    one = found[0]["request_key"]
    assert len(json.loads(doubted("doubts", "list", one[:10], "--json").output)) == 1
    for nothing in (
        ("--cause", "no such cause"),
        ("--older", "3h"),
        ("--run", "another"),
        ("--min-cost", "5"),
        ("--state", "lost"),
    ):
        assert doubted("doubts", "list", *nothing).exit_code == 0
    assert doubted("doubts", "list", "--cause", found[0]["cause"][:10].upper()).exit_code == 1


def test_nothing_in_doubt_is_said_and_fine(nanobanana: Command, table: Path) -> None:
    assert nanobanana("generate", table, "--seeds", "1").exit_code == 0
    for command in ("list", "resolve"):
        result = nanobanana("doubts", command)
        assert (result.exit_code, "nothing is in doubt" in result.output) == (0, True)


def test_without_an_option_nothing_is_bought_or_given_up(
    doubted: Command, store: ObjectStore, emulator: EmulatorThread
) -> None:
    result = doubted("doubts", "resolve")
    assert (result.exit_code, "settled 0 of 2 requests" in result.output) == (1, True)
    assert states(store) == {State.IN_DOUBT: 2}
    assert bought(emulator) == 2


def test_an_id_that_somebody_knows_is_confirmed_and_its_pictures_are_brought(
    doubted: Command, store: ObjectStore, emulator: EmulatorThread
) -> None:
    ids = sold(emulator)
    key = entries(store)[0].request_key
    wrong = doubted("doubts", "resolve", key, "--provider-id", "no-such-id")
    assert wrong.exit_code == 2
    assert "nothing was changed" in wrong.output
    many = doubted("doubts", "resolve", "--provider-id", ids[key])
    assert (many.exit_code, bought(emulator), states(store)) == (2, 2, {State.IN_DOUBT: 2})
    right = doubted("doubts", "resolve", key, "--provider-id", ids[key])
    assert (right.exit_code, "settled 1 of 1 request" in right.output) == (0, True)
    assert states(store) == {State.SETTLED: 1, State.IN_DOUBT: 1}
    assert json.loads(doubted("status", "--json").output)["partitions"][0]["cells"] == {
        "in_doubt": 1,
        "settled": 1,
    }
    assert bought(emulator) == 2


def test_a_rebuy_is_asked_for_and_buys_only_what_is_chosen(
    doubted: Command,
    store: ObjectStore,
    emulator: EmulatorThread,
) -> None:
    entry = entries(store)[0]
    key = entry.request_key
    unasked = doubted("doubts", "resolve", key, "--rebuy")
    assert (unasked.exit_code, "--yes" in unasked.output) == (2, True)
    early = doubted("doubts", "resolve", key, "--rebuy", "--yes")
    assert (early.exit_code, bought(emulator)) == (1, 2)
    # As if its claim had expired a quarter of an hour ago.
    (attempt,) = entry.attempts
    older = attempt.model_copy(update={"lease_seconds": -1000.0})
    store.put(ledger_key(key), entry.model_copy(update={"attempts": (older,)}).to_json())
    done = doubted("doubts", "resolve", key, "--rebuy", "--yes")
    assert (done.exit_code, bought(emulator)) == (0, 3)
    assert states(store) == {State.SETTLED: 1, State.IN_DOUBT: 1}


def test_what_is_abandoned_is_missed_no_more_and_never_bought(
    doubted: Command, store: ObjectStore, table: Path, emulator: EmulatorThread
) -> None:
    assert doubted("doubts", "resolve", "--abandon", "--yes").exit_code == 0
    assert states(store) == {State.LOST: 2}
    assert doubted("doubts", "list").exit_code == 0
    (current,) = json.loads(doubted("status", "--json").output)["partitions"]
    assert (current["cells"], current["abandoned"]) == ({"lost": 2}, 2)
    assert doubted("generate", table, "--seeds", "1", "--rebuy").exit_code == 1
    assert bought(emulator) == 2
    assert all("abandoned by hand" in str(entry.reason) for entry in entries(store))


def test_options_that_exclude_each_other_and_values_that_mean_nothing_are_refused(
    nanobanana: Command,
) -> None:
    for wrong in (
        ("resolve", "--rebuy", "--abandon"),
        ("list", "--older", "yesterday"),
        ("list", "--state", "bad"),
        ("list", "--min-cost", "-1"),
    ):
        assert nanobanana("doubts", *wrong).exit_code == 2


def test_objects_that_may_be_a_doubts_pictures_are_shown_as_hints(
    doubted: Command, store: ObjectStore
) -> None:
    assert all(d["hints"] == [] for d in json.loads(doubted("doubts", "list", "--json").output))
    place = Place(
        public_url="https://pictures.example.org/from-provider",
        uri=f"s3://{store.bucket}/{store.prefix}from-provider",
        since="2026-01-01T00:00:00+00:00",
    )
    change_places(store, lambda places: places.add(place))
    store.put("from-provider/some-uuid-0.png", b"a picture, perhaps")
    found = json.loads(doubted("doubts", "list", "--json").output)
    assert [d["hints"] for d in found] == [[store.uri("from-provider/some-uuid-0.png")]] * 2
    assert "some-uuid-0.png" in doubted("doubts", "list").output
    assert doubted("doubts", "resolve").exit_code == 1
    assert states(store) == {State.IN_DOUBT: 2}
