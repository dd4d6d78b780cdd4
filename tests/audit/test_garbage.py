"""What nothing refers to is listed once it is a week old, and nothing else ever is."""

import hashlib
import json
from datetime import timedelta
from pathlib import Path

import pytest
from PIL import Image

from nanobanana_pipeline.audit import Waste, find_garbage
from nanobanana_pipeline.bucket_keys import (
    image_key,
    image_owner_key,
    ledger_key,
    reference_key,
    run_done_key,
    run_settled_key,
    run_value_key,
    unfinished_key,
)
from nanobanana_pipeline.errors import StorageError
from nanobanana_pipeline.features.table import refresh_features
from nanobanana_pipeline.ledger import Entry
from nanobanana_pipeline.prompts import prompt_set
from nanobanana_pipeline.prompts.references import References
from nanobanana_pipeline.prompts.table import read_prompt_table
from nanobanana_pipeline.prompts.validation import check_prompts
from nanobanana_pipeline.provider.account import Account
from nanobanana_pipeline.provider.modelslab.request import ModelsLabRequest
from nanobanana_pipeline.request import request_key
from nanobanana_pipeline.storage import ObjectStore
from nanobanana_pipeline.webhooks.inbox import Inbox, attempt_id
from tests.conftest import Emulators, account_for
from tests.later import later
from tests.launching import entries, keep_prompts, launch, planned, prompts, tell

WEEK = timedelta(days=7, minutes=10)


@pytest.fixture
def account(store: ObjectStore, emulators: Emulators) -> Account:
    return account_for(emulators().base_url, store)


def waste(store: ObjectStore) -> dict[str, set[str]]:
    """Keys by kind, without the notes of its shards that every launch leaves."""
    found: dict[str, set[str]] = {}
    for each in find_garbage(store):
        assert each.age_seconds > 7 * 24 * 3600
        assert store.get(each.key) is not None
        if "/values/settled/" in each.key:
            continue
        found.setdefault(each.kind.value, set()).add(each.key)
    return found


def test_what_is_in_use_is_no_garbage(store: ObjectStore, emulators: Emulators) -> None:
    emulator = emulators()
    account = account_for(emulator.base_url, store)
    keep_prompts(store, "set", prompts(2))
    launch(store, account)
    tell(emulator, "moods", lost_answer_after=1.0)
    keep_prompts(store, "doubts", prompts(1, "doubt"))
    made = launch(store, account, "doubts").made
    [doubtful] = [entry for entry in entries(store) if not entry.images]
    Inbox(store).put(attempt_id(doubtful.request_key, doubtful.attempts[0].nonce), b"{}")
    store.put(run_value_key(made.run_id, "plan", "made"), b"{}")
    assert waste(later(store, WEEK)) == {}


def test_pictures_that_no_entry_names(store: ObjectStore, account: Account) -> None:
    keep_prompts(store, "set", prompts(1))
    launch(store, account)
    sha256 = hashlib.sha256(b"nobody's").hexdigest()
    nobodys = {image_key(sha256, "png"), image_owner_key(sha256, "ab" * 32), "images/notes.txt"}
    for key in nobodys:
        store.put(key, b"" if ".refs/" in key else b"nobody's")
    assert waste(store) == {}
    assert waste(later(store, WEEK)) == {Waste.IMAGE: nobodys}
    young = later(store, WEEK, young=lambda key: key.endswith(".txt"))
    assert waste(young) == {Waste.IMAGE: nobodys - {"images/notes.txt"}}
    images = [each for each in find_garbage(later(store, WEEK)) if each.kind is Waste.IMAGE]
    assert sum(each.size for each in images) == 2 * len(b"nobody's")


def test_manifests_that_another_took_the_place_of_a_week_ago(
    store: ObjectStore, account: Account
) -> None:
    keep_prompts(store, "set", prompts(1))
    before, now = (launch(store, account).current.manifest for _ in range(2))
    assert before != now
    assert waste(store) == {}
    assert waste(later(store, WEEK)) == {Waste.MANIFEST: {before}}
    assert waste(later(store, WEEK, young=lambda key: key == now)) == {}


def test_snapshots_that_nothing_names(store: ObjectStore, account: Account) -> None:
    def snapshots() -> set[str]:
        return {key for key in store.keys("prompt_sets/set/") if key.endswith(".parquet")}

    keep_prompts(store, "set", prompts(1, "first"))
    first = snapshots()
    keep_prompts(store, "set", prompts(1, "second"))
    second = snapshots() - first
    assert len(first) == len(second) == 2
    assert waste(later(store, WEEK)) == {Waste.PROMPT_SET: first}
    launch(store, account)
    keep_prompts(store, "set", prompts(1, "third"))
    # The manifest in force was made from the second, and the third is the current one.
    assert waste(later(store, WEEK)) == {Waste.PROMPT_SET: first}
    unfinished = planned(store, seed=2)
    keep_prompts(store, "set", prompts(1, "fourth"))
    assert waste(later(store, WEEK)) == {Waste.PROMPT_SET: first}
    store.put(run_done_key(unfinished.run_id), b"{}")
    third = {key for key in snapshots() if unfinished.fingerprint in key}
    assert waste(later(store, WEEK))[Waste.PROMPT_SET] == first | third


def test_webhooks_of_what_has_been_settled_for_a_week(store: ObjectStore, account: Account) -> None:
    keep_prompts(store, "set", prompts(1))
    launch(store, account)
    [entry] = entries(store)
    Inbox(store).put(attempt_id(entry.request_key, entry.attempts[0].nonce), b"{}")
    Inbox(store).put(attempt_id("ab" * 32, "cd" * 8), b"nobody's")
    [mail] = store.keys(f"webhooks/{entry.request_key}")
    assert waste(store) == {}
    assert waste(later(store, WEEK)) == {Waste.WEBHOOK: {mail}}
    assert waste(later(store, WEEK, young=lambda key: key == mail)) == {}


def test_values_of_runs_that_finished_a_week_ago(store: ObjectStore, account: Account) -> None:
    keep_prompts(store, "set", prompts(1))
    made = launch(store, account).made
    value = run_value_key(made.run_id, "plan", "made")
    store.put(value, b"{}")
    assert waste(store) == {}
    assert waste(later(store, WEEK)) == {Waste.RUN_VALUE: {value}}
    [shard] = made.shards
    told = {found.key for found in find_garbage(later(store, WEEK))}
    assert told == {value, run_settled_key(made.run_id, shard)}
    done = run_done_key(made.run_id)
    assert waste(later(store, WEEK, young=lambda key: key == done)) == {}
    store.delete(done)
    assert waste(later(store, WEEK)) == {}


def test_names_of_runs_that_are_no_more_unfinished(store: ObjectStore, account: Account) -> None:
    keep_prompts(store, "set", prompts(2))
    names = {unfinished_key(run_id) for run_id in ("ended", "gone")}
    launch(store, account, run_id="ended")
    planned(store, seed=2, run_id="died")
    for name in names:
        store.put(name, b"")
    assert waste(store) == {}
    assert waste(later(store, WEEK))[Waste.RUN_NAME] == names


def test_references_that_nothing_names(store: ObjectStore) -> None:
    asked, nobodys = "ab" * 32, "cd" * 32
    request = ModelsLabRequest(prompt="x", seed=1, ref_sha256=(asked,))
    key = request_key(request, realm="emulator")
    store.put(ledger_key(key), Entry.new(request, key, realm="emulator").to_json())
    for sha256 in (asked, nobodys):
        store.put(reference_key(sha256), b"a picture")
    assert waste(store) == {}
    assert waste(later(store, WEEK)) == {Waste.REFERENCE: {reference_key(nobodys)}}


def test_references_of_a_snapshot_that_was_never_launched(
    store: ObjectStore, account: Account, tmp_path: Path
) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "start.png")
    table = tmp_path / "table.jsonl"
    table.write_text(json.dumps({"prompt": "a fox", "ref_image": "start.png"}))
    references = References(account.downloader, store, keep=True)
    prompt_set.snapshot(store, "set", check_prompts(read_prompt_table(table), references))
    [kept] = store.keys("references/")
    assert waste(later(store, WEEK)) == {}
    keep_prompts(store, "set", prompts(1))
    assert waste(later(store, WEEK))[Waste.REFERENCE] == {kept}


def test_what_cannot_be_read_may_refer_to_anything(store: ObjectStore) -> None:
    store.put(ledger_key("ab" * 32), b"{")
    store.put(image_key("cd" * 32, "png"), b"")
    with pytest.raises(StorageError, match="run `nanobanana audit`"):
        list(find_garbage(later(store, WEEK)))


def test_tables_of_features_that_another_has_replaced_are_garbage_after_a_week(
    store: ObjectStore, account: Account
) -> None:
    keep_prompts(store, "set", prompts(1))
    launch(store, account)
    first = refresh_features(store, "set", 1).current.table
    keep_prompts(store, "set", prompts(2))
    launch(store, account)
    second = refresh_features(store, "set", 1).current.table
    assert first != second
    assert "features" not in waste(store)
    assert waste(later(store, WEEK))["features"] == {first}
