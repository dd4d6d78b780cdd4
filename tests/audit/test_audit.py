"""Each kind of fault, planted in a real bucket, is found, and nothing beside it."""

import hashlib
import io
import json
import tracemalloc
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanobanana_pipeline.audit import AuditReport, Finding, FindingKind, audit
from nanobanana_pipeline.audit.report import LISTED
from nanobanana_pipeline.bucket_keys import (
    image_key,
    image_owner_key,
    ledger_key,
    manifest_prefix,
    run_alive_key,
    run_done_key,
    run_plan_key,
    run_shard_key,
)
from nanobanana_pipeline.features.table import (
    FEATURE_COLUMNS,
    read_current_features,
    refresh_features,
)
from nanobanana_pipeline.generation.budget.counters import partition_scope
from nanobanana_pipeline.ledger import Entry, Ledger, State
from nanobanana_pipeline.money import Budget
from nanobanana_pipeline.provider.account import Account
from nanobanana_pipeline.provider.modelslab.request import ModelsLabRequest
from nanobanana_pipeline.request import request_key
from nanobanana_pipeline.storage import ObjectStore, s3_client
from tests.conftest import Emulators, account_for
from tests.later import later
from tests.launching import Launched, entries, keep_prompts, launch, planned, prompts, reserve, tell
from tests.s3_proxy import S3Proxy

HOUR = timedelta(hours=1)
DAY = timedelta(days=1)


@pytest.fixture
def account(store: ObjectStore, emulators: Emulators) -> Account:
    return account_for(emulators().base_url, store)


@pytest.fixture
def launched(store: ObjectStore, account: Account) -> Launched:
    """A partition of three settled cells."""
    keep_prompts(store, "set", prompts(3))
    made = launch(store, account)
    assert made.states == {"settled": 3}
    return made


def only(report: AuditReport, kind: FindingKind) -> Finding:
    """The one finding, of this kind."""
    assert report.counts == {kind: 1}, report.findings
    [finding] = report.findings
    assert finding.kind is kind
    assert not report.agrees
    return finding


def note(report: AuditReport) -> Finding:
    """The one finding, a manifest that is behind, which is no disagreement."""
    assert report.counts == {FindingKind.MANIFEST_BEHIND: 1}, report.findings
    assert report.agrees
    [finding] = report.findings
    return finding


def is_clean(report: AuditReport) -> bool:
    assert report.agrees == (not report.findings)
    assert not report.findings
    return report.agrees


def body_of(store: ObjectStore, key: str) -> bytes:
    found = store.get(key)
    assert found is not None
    return found.body


def first(store: ObjectStore) -> Entry:
    return entries(store)[0]


def change_entry(store: ObjectStore, entry: Entry, change: Callable[[Any], object]) -> None:
    """Change a stored entry behind everybody's back."""
    key = ledger_key(entry.request_key)
    stored = json.loads(body_of(store, key))
    change(stored)
    store.put(key, json.dumps(stored).encode())


def plant(
    store: ObjectStore, steps: Iterable[Callable[[Entry], Entry]], prompt: str = "x"
) -> Entry:
    """Put an entry into the ledger."""
    request = ModelsLabRequest(prompt=prompt, seed=1)
    entry = Entry.new(request, request_key(request, realm="emulator"), realm="emulator")
    for step in steps:
        entry = step(entry)
    store.put(ledger_key(entry.request_key), entry.to_json())
    return entry


def claimed(entry: Entry) -> Entry:
    return entry.claim(run_id="run-1", nonce="ab" * 8, lease_seconds=60)


def accepted(entry: Entry) -> Entry:
    return claimed(entry).accept("ab" * 8, "provider-7")


# --- what agrees ---------------------------------------------------------------------------------


def test_a_bucket_with_doubts_losses_and_refusals_agrees_now_and_later(
    store: ObjectStore, emulators: Emulators
) -> None:
    emulator = emulators()
    account = account_for(emulator.base_url, store)
    keep_prompts(store, "set", [*prompts(3), {"prompt": "four of a kind", "samples": 4}])
    launch(store, account)
    tell(emulator, "moods", lost_answer_after=1.0)
    keep_prompts(store, "doubts", prompts(3, "doubt"))
    doubts = launch(store, account, "doubts", max_images=2)
    # It has no end of its own, and what it did not buy is no debt: its manifest says so.
    assert doubts.states == {"in_doubt": 2, "over_budget": 1}
    tell(emulator, "moods", lost_answer_after=0, error_200=1.0)
    keep_prompts(store, "refusals", prompts(2, "refusal"))
    launch(store, account, "refusals")
    plant(store, [accepted, lambda entry: entry.lose("ab" * 8, "gone for good")])
    for seen in (store, later(store, DAY)):
        report = audit(seen, sample=None)
        assert is_clean(report)
        assert report.states == {
            State.SETTLED: 4, State.IN_DOUBT: 2, State.REFUSED: 2, State.LOST: 1
        }  # fmt: skip
        assert (report.images, report.images_read, report.manifests) == (7, 7, 3)
        assert report.runs == 3
        assert {found.state for found in report.unsettled} == set(report.states) - {State.SETTLED}
        assert all(found.reason for found in report.unsettled)
        [lost] = [found for found in report.unsettled if found.state is State.LOST]
        assert (lost.reason, lost.run_id) == ("gone for good", "run-1")
    assert all(found.age_seconds > DAY.total_seconds() - 5 for found in report.unsettled)


def test_an_audit_writes_nothing(store: ObjectStore, launched: Launched, s3_url: str) -> None:
    assert launched
    with S3Proxy(s3_url) as proxy:
        client = s3_client(endpoint_url=proxy.url)
        assert is_clean(audit(ObjectStore(client, store.bucket, store.prefix), sample=None))
        assert {method for method, _ in proxy.calls} <= {"GET", "HEAD"}
        assert len(proxy.calls) > 6


def test_an_empty_bucket_agrees(store: ObjectStore) -> None:
    report = audit(store)
    assert is_clean(report)
    assert not report.states


# --- pictures ------------------------------------------------------------------------------------


def test_a_picture_that_no_entry_names(store: ObjectStore, launched: Launched) -> None:
    assert launched
    sha256 = hashlib.sha256(b"nobody's").hexdigest()
    key = image_key(sha256, "png")
    store.create(key, b"nobody's", metadata={"request-key": "ab" * 32})
    assert only(audit(store), FindingKind.IMAGE_ORPHAN).key == key


def test_a_file_of_strangers_among_the_pictures(store: ObjectStore, launched: Launched) -> None:
    assert launched
    store.put("images/notes.txt", b"buy milk")
    assert only(audit(store), FindingKind.IMAGE_ORPHAN).key == "images/notes.txt"


def test_the_mark_of_an_owner_whose_entry_names_another_picture(
    store: ObjectStore, launched: Launched
) -> None:
    assert launched
    one, two = entries(store)[:2]
    key = image_owner_key(one.images[0].sha256, two.request_key)
    store.put(key, b"")
    assert only(audit(store), FindingKind.IMAGE_ORPHAN).key == key


def test_a_picture_on_its_way_into_the_ledger_is_no_orphan(store: ObjectStore) -> None:
    for number, outcome in enumerate((accepted, claimed)):
        entry = plant(store, [outcome], prompt=f"prompt {number}")
        body = f"picture {number}".encode()
        key = image_key(hashlib.sha256(body).hexdigest(), "png")
        store.create(key, body, metadata={"request-key": entry.request_key})
    # Only what was accepted can have pictures.
    assert only(audit(store), FindingKind.IMAGE_ORPHAN).key == key


@pytest.mark.parametrize("sample", [0, 100, None])
def test_a_picture_that_is_not_there(
    store: ObjectStore, launched: Launched, sample: int | None
) -> None:
    assert launched
    [image] = first(store).images
    store.delete(image.key)
    finding = only(audit(store, sample=sample), FindingKind.IMAGE_MISSING)
    assert finding.key == image.key
    assert first(store).request_key in finding.text


def test_a_lost_request_whose_good_picture_is_not_there(
    store: ObjectStore, launched: Launched
) -> None:
    assert launched
    [image] = first(store).images
    sha256 = "cd" * 32
    gone = image.model_copy(update={"sha256": sha256, "key": image_key(sha256, image.format)})
    plant(store, [accepted, lambda entry: entry.lose("ab" * 8, "half of it", [gone])])
    assert only(audit(store), FindingKind.IMAGE_MISSING).key == gone.key


@pytest.mark.parametrize("more", [b"", b"longer"])
def test_a_picture_whose_bytes_are_not_its_name(
    store: ObjectStore, launched: Launched, more: bytes
) -> None:
    assert launched
    [image] = first(store).images
    body = bytearray(body_of(store, image.key))
    body[1000] ^= 1
    store.put(image.key, bytes(body) + more)
    assert only(audit(store, sample=None), FindingKind.IMAGE_DAMAGED).key == image.key
    # Sizes are listed for all; bytes are not read where nobody asked for it.
    assert audit(store, sample=0).counts == ({FindingKind.IMAGE_DIFFERS: 1} if more else {})


@pytest.mark.parametrize("field", ["size", "width"])
def test_a_picture_that_is_not_as_its_entry_says(
    store: ObjectStore, launched: Launched, field: str
) -> None:
    assert launched
    [image] = first(store).images
    change_entry(store, first(store), lambda stored: stored["images"][0].update({field: 7}))
    assert only(audit(store), FindingKind.IMAGE_DIFFERS).key == image.key
    assert audit(store, sample=0).counts == (
        {FindingKind.IMAGE_DIFFERS: 1} if field == "size" else {}
    )


def test_a_picture_under_a_key_that_is_not_its_own(store: ObjectStore, launched: Launched) -> None:
    """As a move of objects by hand might leave it."""
    assert launched
    [image] = first(store).images
    elsewhere = image_key(image.sha256, "webp")
    metadata = {"request-key": first(store).request_key}
    store.create(elsewhere, body_of(store, image.key), metadata=metadata)
    store.delete(image.key)
    change_entry(store, first(store), lambda stored: stored["images"][0].update(key=elsewhere))
    assert only(audit(store), FindingKind.IMAGE_DIFFERS).key == elsewhere


def test_a_picture_that_would_go_with_its_other_owner(
    store: ObjectStore, launched: Launched
) -> None:
    assert launched
    [image] = first(store).images
    body = body_of(store, image.key)
    store.delete(image.key)
    store.create(image.key, body, metadata={"request-key": entries(store)[1].request_key})
    finding = only(audit(store), FindingKind.IMAGE_UNOWNED)
    mark = image_owner_key(image.sha256, first(store).request_key)
    assert mark in finding.text
    store.put(mark, b"")
    assert is_clean(audit(store))


def test_a_sample_is_the_same_each_time_and_as_large_as_asked_for(
    store: ObjectStore, launched: Launched
) -> None:
    assert launched
    for entry in entries(store)[:2]:
        body = body_of(store, entry.images[0].key)
        store.put(entry.images[0].key, body[:-1] + b"?")
    reports = [audit(store, sample=2) for _ in range(2)]
    assert [report.images_read for report in reports] == [2, 2]
    assert reports[0].findings == reports[1].findings
    assert reports[0].findings


# --- entries -------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [b"{", b'{"schema": 99, "images": "?"}', b"", b"[]"])
def test_an_entry_that_cannot_be_read(store: ObjectStore, launched: Launched, body: bytes) -> None:
    assert launched
    key = ledger_key(first(store).request_key)
    store.put(key, body)
    assert only(audit(store), FindingKind.UNREADABLE).key == key


def test_an_entry_under_anothers_name(store: ObjectStore, launched: Launched) -> None:
    assert launched
    one, two = entries(store)[:2]
    store.put(ledger_key(one.request_key), two.to_json())
    assert only(audit(store), FindingKind.UNREADABLE).key == ledger_key(one.request_key)


def test_a_file_of_strangers_in_the_ledger(store: ObjectStore) -> None:
    store.put("ledger/ab/notes.txt", b"buy milk")
    assert only(audit(store), FindingKind.UNREADABLE).key == "ledger/ab/notes.txt"


@pytest.mark.parametrize(
    ("hours", "words"), [(17, None), (19, "end in 4 h 59 min"), (30, "ended 6 h 0 min ago")]
)
def test_an_acceptance_near_the_end_of_the_providers_24_hours(
    store: ObjectStore, hours: int, words: str | None
) -> None:
    entry = plant(store, [accepted])
    since = (datetime.now(UTC) - hours * HOUR).isoformat()
    change_entry(store, entry, lambda stored: stored["attempts"][0].update(accepted=since))
    report = audit(store)
    if words is None:
        assert is_clean(report)
        return
    finding = only(report, FindingKind.ACCEPTANCE_EXPIRING)
    assert finding.key == ledger_key(entry.request_key)
    for word in (words, "run-1", "provider-7"):
        assert word in finding.text


def test_a_claim_whose_lease_ran_out_long_ago(store: ObjectStore) -> None:
    entry = plant(store, [claimed])
    assert is_clean(audit(store))
    assert is_clean(audit(later(store, timedelta(minutes=10))))
    finding = only(audit(later(store, HOUR)), FindingKind.CLAIM_ABANDONED)
    assert finding.key == ledger_key(entry.request_key)
    assert "run-1" in finding.text


# --- manifests -----------------------------------------------------------------------------------


def rewrite(store: ObjectStore, made: Launched, change: Callable[[pd.DataFrame], object]) -> None:
    """Change a manifest behind everybody's back."""
    table = pq.read_table(io.BytesIO(body_of(store, made.current.manifest)))
    frame = table.to_pandas()
    change(frame)
    body = io.BytesIO()
    pq.write_table(pa.Table.from_pandas(frame, schema=table.schema, preserve_index=False), body)
    store.put(made.current.manifest, body.getvalue())


def test_a_manifest_of_requests_that_the_ledger_has_lost(
    store: ObjectStore, launched: Launched
) -> None:
    store.delete(ledger_key(first(store).request_key))
    report = audit(store)
    assert report.counts == {FindingKind.MANIFEST_WRONG: 1, FindingKind.IMAGE_ORPHAN: 1}
    [finding] = [f for f in report.findings if f.kind is FindingKind.MANIFEST_WRONG]
    assert finding.key == launched.current.manifest
    assert "no entry in the ledger" in finding.text


def test_a_manifest_with_another_picture(store: ObjectStore, launched: Launched) -> None:
    def swap(frame: pd.DataFrame) -> None:
        frame["image_sha256"] = [*frame["image_sha256"].to_list()[1:], "ab" * 32]

    rewrite(store, launched, swap)
    finding = only(audit(store), FindingKind.MANIFEST_WRONG)
    assert finding.key == launched.current.manifest
    assert "with another picture" in finding.text


def test_a_manifest_with_a_state_that_was_never_so(store: ObjectStore, launched: Launched) -> None:
    change_entry(
        store, first(store), lambda stored: stored["attempts"][0].update(outcome="refused")
    )
    change_entry(store, first(store), lambda stored: stored.pop("images"))
    report = audit(store)
    assert report.counts == {FindingKind.MANIFEST_WRONG: 1, FindingKind.IMAGE_ORPHAN: 1}
    assert launched.current.manifest in {finding.key for finding in report.findings}


def test_a_manifest_that_the_ledger_has_left_behind(
    store: ObjectStore, emulators: Emulators
) -> None:
    account = account_for(emulators(moods={"lost_answer_after": 1.0}).base_url, store)
    keep_prompts(store, "set", prompts(2))
    made = launch(store, account)
    assert made.states == {"in_doubt": 2}
    ledger = Ledger(store)
    held = ledger.read(first(store).request_key)
    assert held is not None
    [attempt] = held.entry.attempts
    ledger.apply(held, lambda entry: entry.not_sent(attempt.nonce, "never came"))
    finding = note(audit(store))
    assert finding.key == made.current.manifest
    assert "in_doubt in the manifest, open in the ledger; rows in all: 1 of 2" in finding.text
    # Somebody who is at it will account for it.
    store.put(run_alive_key(made.made.run_id, "shard-0000"), b"")
    assert is_clean(audit(store))


def test_a_manifest_that_is_gone(store: ObjectStore, launched: Launched) -> None:
    store.delete(launched.current.manifest)
    assert only(audit(store), FindingKind.UNREADABLE).key == launched.current.manifest


def test_a_manifest_that_is_damaged(store: ObjectStore, launched: Launched) -> None:
    store.put(launched.current.manifest, b"PAR1 no more")
    assert only(audit(store), FindingKind.UNREADABLE).key == launched.current.manifest


@pytest.mark.parametrize("body", [b"{", b'{"schema": 99}', b"[1]"])
def test_a_pointer_that_cannot_be_read(store: ObjectStore, launched: Launched, body: bytes) -> None:
    assert launched
    key = f"{manifest_prefix('set', 1)}current.json"
    store.put(key, body)
    assert only(audit(store), FindingKind.UNREADABLE).key == key


def test_cells_that_nobody_asked_for_or_could_pay_for_agree(
    store: ObjectStore, account: Account
) -> None:
    keep_prompts(store, "set", prompts(4))
    made = launch(store, account, limit=3, max_images=1)
    assert made.states == {"not_requested": 1, "over_budget": 2, "settled": 1}
    assert is_clean(audit(store))
    keep_prompts(store, "other", prompts(4))
    launch(store, account, "other")
    # The same requests, bought for another set; what was not requested is nobody's concern.
    finding = note(audit(store))
    assert finding.key == made.current.manifest
    assert "over_budget in the manifest, settled in the ledger; rows in all: 2 of 4" in finding.text
    # As it says itself, it can be accounted for without buying.
    accounted = launch(store, account, limit=3, max_images=0)
    assert accounted.states == {"not_requested": 1, "settled": 3}
    assert is_clean(audit(store))


def test_one_partition_alone(store: ObjectStore, launched: Launched, account: Account) -> None:
    assert launched
    keep_prompts(store, "other", prompts(2, "other"))
    other = launch(store, account, "other")
    key = other.rows["image_uri"].iloc[0].removeprefix(store.uri(""))
    store.put(key, b"no picture")
    store.put("images/notes.txt", b"")
    assert only(audit(store, partition=("other", 1)), FindingKind.IMAGE_DAMAGED).key == key
    report = audit(store, partition=("set", 1))
    assert is_clean(report)
    assert (report.states, report.manifests) == ({State.SETTLED: 3}, 1)
    assert (report.images, report.images_read) == (3, 3)
    store.delete(key)
    assert only(audit(store, partition=("other", 1)), FindingKind.IMAGE_MISSING).key == key
    assert audit(store, partition=("none", 1)).manifests == 0


def test_a_few_requests_of_a_partition(store: ObjectStore, launched: Launched) -> None:
    first, second, third = sorted(launched.rows["request_key"].drop_duplicates())
    assert audit(store, partition=("set", 1), requests=2).states == {State.SETTLED: 2}
    store.put(ledger_key(third), b"no entry")
    assert is_clean(audit(store, partition=("set", 1), requests=2))
    assert audit(store, partition=("set", 1), requests=3).findings
    store.delete(ledger_key(second))
    found = only(audit(store, partition=("set", 1), requests=2), FindingKind.MANIFEST_WRONG)
    assert second in found.text
    assert "rows in all: 1 of 2" in found.text
    assert first not in found.text


# --- runs and budgets ----------------------------------------------------------------------------


def test_a_run_that_died_before_it_bought(store: ObjectStore, account: Account) -> None:
    keep_prompts(store, "set", prompts(3))
    made = planned(store)
    assert is_clean(audit(store))
    finding = only(audit(later(store, HOUR)), FindingKind.RUN_UNFINISHED)
    assert finding.key == run_plan_key(made.run_id)
    assert "owes 3 to buy, its manifest" in finding.text
    launch(store, account)
    assert is_clean(audit(later(store, HOUR)))


def test_a_run_that_left_what_it_bought(store: ObjectStore, launched: Launched) -> None:
    def forget(stored: dict[str, Any]) -> None:
        del stored["images"]
        stored["attempts"][0]["outcome"] = "accepted"

    [image] = first(store).images
    store.delete(image.key)
    change_entry(store, first(store), forget)
    rewrite(store, launched, lambda frame: frame.update(_pending(frame, first(store).request_key)))
    store.delete(run_done_key(launched.made.run_id))
    finding = only(audit(store), FindingKind.RUN_UNFINISHED)
    assert "owes 1 bought and not brought:" in finding.text


def _pending(frame: pd.DataFrame, key: str) -> pd.DataFrame:
    mine = frame["request_key"] == key
    frame.loc[mine, "image_sha256"] = None
    frame.loc[mine, "state"] = "pending"
    return frame


def test_a_run_whose_plan_or_file_cannot_be_read(store: ObjectStore) -> None:
    keep_prompts(store, "set", prompts(1))
    made = planned(store)
    store.put(run_shard_key(made.run_id, "shard-0000"), b"no table")
    assert only(audit(later(store, HOUR)), FindingKind.UNREADABLE).key == run_plan_key(made.run_id)
    store.put(run_plan_key(made.run_id), b"{")
    assert only(audit(store), FindingKind.UNREADABLE).key == run_plan_key(made.run_id)


def test_what_a_dead_shard_holds_back(store: ObjectStore) -> None:
    scope = partition_scope(store, Budget(), "set", 1)
    name = "run-1/shard-0000/0123abcd"
    reserve(scope, name, 5, opened=datetime.now(UTC) - timedelta(hours=1))
    finding = only(audit(store), FindingKind.RESERVATION_DEAD)
    assert finding.key == "budget/partitions/set/seed=1.json"
    assert name in finding.text
    store.put(run_alive_key("run-1", "shard-0000.0123abcd"), b"")
    assert is_clean(audit(store))
    assert only(audit(later(store, HOUR)), FindingKind.RESERVATION_DEAD)


def test_a_counter_that_cannot_be_read(store: ObjectStore) -> None:
    store.put("budget/days/2026-01-01.json", b"{")
    store.put("runs/run-1/budget.json", b"{")
    report = audit(store)
    assert report.counts == {FindingKind.UNREADABLE: 2}
    assert {finding.key for finding in report.findings} == {
        "budget/days/2026-01-01.json",
        "runs/run-1/budget.json",
    }


# --- size ----------------------------------------------------------------------------------------


def test_a_large_ledger_is_never_held_at_once(store: ObjectStore) -> None:
    """2,000 entries of 10 kB; half of them are listed, all are counted."""
    words = "x" * 10_000

    def doubtful(number: int) -> None:
        steps = [claimed, lambda entry: entry.doubt("ab" * 8, "no answer")]
        plant(store, steps, prompt=f"{number} {words}")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(doubtful, range(2 * LISTED)))
    tracemalloc.start()
    try:
        report = audit(store)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert is_clean(report)
    assert report.states == {State.IN_DOUBT: 2 * LISTED}
    assert len(report.unsettled) == LISTED
    assert peak < 8_000_000


def measured(store: ObjectStore) -> tuple[str, pd.DataFrame]:
    """Features of the partition, and where their table lies."""
    refresh_features(store, "set", 1)
    current, _ = read_current_features(store, "set", 1)
    assert current is not None
    found = store.get(current.table)
    assert found is not None
    return current.table, pq.read_table(io.BytesIO(found.body)).to_pandas()


def put_features(store: ObjectStore, key: str, rows: pd.DataFrame) -> None:
    body = io.BytesIO()
    schema = pa.schema([pa.field(name, kind) for name, (kind, _) in FEATURE_COLUMNS.items()])
    pq.write_table(pa.Table.from_pandas(rows, schema=schema, preserve_index=False), body)
    store.put(key, body.getvalue())


@pytest.mark.usefixtures("launched")
def test_features_that_speak_of_other_pictures_are_found(store: ObjectStore) -> None:
    key, rows = measured(store)
    assert is_clean(audit(store))
    put_features(store, key, rows.iloc[1:])
    assert "1 picture without a row" in only(audit(store), FindingKind.FEATURES_WRONG).text
    put_features(store, key, rows.assign(width=512))
    finding = only(audit(store), FindingKind.FEATURES_WRONG)
    assert finding.key == key
    assert "3 rows have another format or size" in finding.text
    put_features(store, key, rows)
    assert is_clean(audit(store))


@pytest.mark.usefixtures("launched")
@pytest.mark.parametrize("body", [None, b"no Parquet"])
def test_features_that_cannot_be_read_are_found(store: ObjectStore, body: bytes | None) -> None:
    key, _ = measured(store)
    if body is None:
        store.delete(key)
    else:
        store.put(key, body)
    finding = only(audit(store), FindingKind.UNREADABLE)
    assert finding.key == "features/set/seed=1/current.json"
    assert "costs nothing" in finding.text
