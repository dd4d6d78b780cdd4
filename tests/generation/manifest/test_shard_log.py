"""What a shard notes of its settled entries, and what the manifest makes of it."""

import gzip

import pytest

from nanobanana_pipeline.bucket_keys import run_settled_key
from nanobanana_pipeline.generation.launch_steps import collect, settle_shard
from nanobanana_pipeline.generation.manifest.manifest import read_manifest
from nanobanana_pipeline.generation.manifest.shard_log import ShardLog, read_shard_log
from nanobanana_pipeline.ledger import Entry
from nanobanana_pipeline.storage import ObjectStore, StoredObject
from tests.conftest import Emulators, account_for
from tests.launching import PLANNER, entries, keep_prompts, planned, prompts


class LedgerReads(ObjectStore):
    """Counts how many entries are read."""

    count = 0

    def get(self, key: str) -> StoredObject | None:  # type: ignore[override]
        self.count += key.startswith("ledger/")
        return super().get(key)


@pytest.mark.parametrize("damage", ["none", "cut short", "no gzip", "missing"])
def test_a_manifest_reads_no_entry_that_was_noted_and_needs_no_notes(
    store: ObjectStore, emulators: Emulators, damage: str
) -> None:
    account = account_for(emulators(mode="sync").base_url, store)
    keep_prompts(store, "set", prompts(6))
    made = planned(store, shard_size=4)
    reports = [settle_shard(store, account, made.run_id, shard) for shard in made.shards]
    assert len(reports) == 2
    key = run_settled_key(made.run_id, made.shards[0])
    stored = store.get(key)
    assert stored is not None
    if damage == "missing":
        store.delete(key)
    elif damage != "none":
        store.put(key, stored.body[:-20] if damage == "cut short" else b"{}")
    counting = LedgerReads(store.client, store.bucket, store.prefix)
    current = collect(counting, PLANNER, made, reports[0])
    assert current.cells == {"settled": 6}
    assert (counting.count == 0) == (damage == "none")
    rows = read_manifest(store, current.manifest).set_index("request_key")
    images = {entry.request_key: entry.images[0] for entry in entries(store)}
    assert rows["image_sha256"].to_dict() == {k: image.sha256 for k, image in images.items()}


def test_what_nobody_settled_leaves_no_notes(store: ObjectStore) -> None:
    ShardLog().write(store, "run", "shard-0000")
    assert store.get(run_settled_key("run", "shard-0000")) is None
    assert list(read_shard_log(store, "run", "shard-0000")) == []


def test_notes_are_entries_a_line(store: ObjectStore, emulators: Emulators) -> None:
    account = account_for(emulators(mode="sync").base_url, store)
    keep_prompts(store, "set", prompts(2))
    made = planned(store)
    settle_shard(store, account, made.run_id, made.shards[0])
    stored = store.get(run_settled_key(made.run_id, made.shards[0]))
    assert stored is not None
    lines = gzip.decompress(stored.body).splitlines()
    known = {entry.request_key: entry for entry in entries(store)}
    assert {(e := Entry.from_json(line, "notes")).request_key: e for line in lines} == known
