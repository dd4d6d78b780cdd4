"""Doubts and losses are settled by evidence, and by nothing else."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from nanobanana_pipeline.generation.engine.timing import Timing
from nanobanana_pipeline.ledger import Entry, Ledger
from nanobanana_pipeline.provider.modelslab.client import ModelsLab
from nanobanana_pipeline.provider.modelslab.request import ModelsLabRequest
from nanobanana_pipeline.provider.outcomes import Done, Echo
from nanobanana_pipeline.request import request_key
from nanobanana_pipeline.storage import ObjectStore
from nanobanana_pipeline.webhooks.inbox import Inbox, attempt_id
from tests.conftest import Emulators, account_for
from tests.launching import (
    admin,
    bought,
    check_images,
    entries,
    keep_prompts,
    launch,
    prompts,
    tell,
)


def a_doubt(store: ObjectStore, emulators: Emulators, **config: Any) -> tuple[Any, Any]:
    """One request that was sold, and whose answer got lost on the way."""
    emulator = emulators(moods={"lost_answer_after": 1}, **config)
    account = account_for(emulator.base_url, store)
    keep_prompts(store, "set", prompts(1))
    assert launch(store, account).states == {"in_doubt": 1}
    tell(emulator, "moods", lost_answer_after=0)
    return emulator, account


def mail(store: ObjectStore, **said: object) -> None:
    (entry,) = entries(store)
    name = attempt_id(entry.request_key, entry.attempts[0].nonce)
    assert Inbox(store).put(name, json.dumps({"status": "success", **said}).encode())


def own_track_id(store: ObjectStore) -> str:
    (entry,) = entries(store)
    return attempt_id(entry.request_key, entry.attempts[0].nonce)


def sold_id(emulator: Any) -> str:
    return str(admin(emulator, "purchases")["groups"][0]["ids"][0])


def test_a_webhook_that_names_the_id_settles_a_doubt_without_buying(
    store: ObjectStore, emulators: Emulators
) -> None:
    emulator, account = a_doubt(store, emulators)
    mail(store, id=sold_id(emulator), track_id=own_track_id(store))
    settled = launch(store, account)
    assert (settled.states, bought(emulator)) == ({"settled": 1}, 1)
    check_images(store, settled.rows)
    assert settled.rows["provider_id"].to_list() == [sold_id(emulator)]


@pytest.mark.parametrize(
    "said",
    [
        {"id": "no-such-request"},
        {"id": "no-such-request", "track_id": None},
        {"id": 12345, "track_id": "somebody else's"},
        {},
        {"id": {"a": 1}},
    ],
)
def test_a_payload_that_the_provider_does_not_confirm_settles_nothing(
    store: ObjectStore, emulators: Emulators, said: dict[str, object]
) -> None:
    emulator, account = a_doubt(store, emulators)
    mail(store, **said)
    assert launch(store, account).states == {"in_doubt": 1}
    assert bought(emulator) == 1


def test_a_payload_that_names_another_requests_pictures_settles_nothing(
    store: ObjectStore, emulators: Emulators
) -> None:
    emulator, account = a_doubt(store, emulators)
    keep_prompts(store, "other", ["something quite different"])
    other = launch(store, account, "other").rows["provider_id"][0]
    mail_to = own_track_id_of(store, "animal number 0")
    Inbox(store).put(mail_to, json.dumps({"id": other}).encode())
    Inbox(store).put(mail_to, json.dumps({"id": other, "track_id": "another"}).encode())
    assert launch(store, account).states == {"in_doubt": 1}
    assert bought(emulator) == 2


def own_track_id_of(store: ObjectStore, prompt: str) -> str:
    (entry,) = [entry for entry in entries(store) if entry.prompt == prompt]
    return attempt_id(entry.request_key, entry.attempts[0].nonce)


@pytest.mark.parametrize(
    ("said", "states"), [("animal number 0", {"settled": 1}), ("a lie", {"in_doubt": 1})]
)
def test_a_payload_without_a_track_id_counts_if_the_provider_names_the_prompt(
    store: ObjectStore,
    emulators: Emulators,
    monkeypatch: pytest.MonkeyPatch,
    said: str,
    states: dict[str, int],
) -> None:
    emulator, account = a_doubt(store, emulators)
    mail(store, id=sold_id(emulator))
    fetch = account.provider.fetch

    def telling(provider_id: str) -> object:
        outcome = fetch(provider_id)
        return replace(outcome, echo=Echo(prompt=said)) if isinstance(outcome, Done) else outcome

    monkeypatch.setattr(account.provider, "fetch", telling)
    assert launch(store, account).states == states
    assert bought(emulator) == 1


def test_a_doubt_whose_broken_answer_held_the_id_is_settled_by_it(
    store: ObjectStore, emulators: Emulators
) -> None:
    emulator = emulators()
    account = account_for(emulator.base_url, store)
    keep_prompts(store, "set", prompts(1))
    key, doubted = a_doubted_entry("animal number 0")
    sold = launch(store, account)
    provider_id = sold.rows["provider_id"][0]
    ledger = Ledger(store)
    held = ledger.read(key)
    assert held is not None
    # The same purchase, as a run would have left it whose answer came under HTTP 500.
    store.put(f"ledger/{key[:2]}/{key}.json", doubted(provider_id).to_json())
    for name in list(store.keys("manifests/")):
        store.delete(name)
    assert launch(store, account).states == {"settled": 1}
    assert bought(emulator) == 1


def a_doubted_entry(prompt: str) -> tuple[str, Any]:
    request = ModelsLabRequest(prompt=prompt, seed=1, width=1024, height=1024)
    key = request_key(request, realm="emulator")
    entry = Entry.new(request, key, realm="emulator").claim(
        run_id="dead", nonce="0" * 16, lease_seconds=1
    )
    return key, lambda provider_id: entry.doubt("0" * 16, "HTTP 500", provider_id)


def test_what_the_provider_says_it_failed_is_bought_anew(
    store: ObjectStore, emulators: Emulators
) -> None:
    emulator = emulators(moods={"lost_answer_after": 1, "failed": 1})
    account = account_for(emulator.base_url, store)
    keep_prompts(store, "set", prompts(1))
    assert launch(store, account).states == {"in_doubt": 1}
    tell(emulator, "moods", lost_answer_after=0, failed=0)
    mail(store, id=sold_id(emulator), track_id=own_track_id(store))
    again = launch(store, account)
    assert again.states == {"settled": 1}
    assert admin(emulator, "purchases")["bought_twice"] == 0


def test_a_loss_is_looked_into_for_a_day_only() -> None:
    _, doubted = a_doubted_entry("a cat")
    lost = doubted(None).accept("0" * 16, "id-1").lose("0" * 16, "gone")
    assert lost.can_reconcile(ModelsLab.kept_seconds)
    attempt = lost.attempts[0]
    long_ago = (datetime.now(UTC) - timedelta(hours=25)).isoformat()
    old = lost.model_copy(update={"attempts": (attempt.model_copy(update={"accepted": long_ago}),)})
    assert not old.can_reconcile(ModelsLab.kept_seconds)
    assert doubted(None).can_reconcile(ModelsLab.kept_seconds)
    assert not doubted(None).accept("0" * 16, "id-1").can_reconcile(ModelsLab.kept_seconds)


def test_a_rebuy_waits_until_no_late_answer_can_come(
    store: ObjectStore, emulators: Emulators
) -> None:
    emulator, account = a_doubt(store, emulators)
    early = launch(store, account, rebuy=True)
    assert (early.states, bought(emulator), early.made.buy) == ({"in_doubt": 1}, 1, 1)
    assert any("may be bought again in" in reason for reason in early.report.reasons)
    timing = Timing(rebuy_after_lease_seconds=-1000.0)
    assert launch(store, account, rebuy=False, timing=timing).states == {"in_doubt": 1}
    late = launch(store, account, rebuy=True, timing=timing)
    assert (late.states, bought(emulator)) == ({"settled": 1}, 2)
    (entry,) = entries(store)
    assert [a.rebuy for a in entry.attempts] == [False, True]
