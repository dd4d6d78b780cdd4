"""Partitions from prompts to manifest, over the emulator and real S3."""

import io
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import pandas as pd
import pyarrow.parquet as pq
import pytest

from nanobanana_pipeline.bucket_keys import (
    image_owner_key,
    ledger_key,
    run_done_key,
    run_plan_key,
    run_shard_key,
)
from nanobanana_pipeline.errors import PlanError
from nanobanana_pipeline.generation.engine.engine import Report
from nanobanana_pipeline.generation.launch_steps import collect, settle_shard
from nanobanana_pipeline.generation.manifest.manifest import read_current, read_manifest
from nanobanana_pipeline.generation.planning.run_files import RunPlan
from nanobanana_pipeline.ledger import Entry, State
from nanobanana_pipeline.provider.modelslab.request import ModelsLabRequest
from nanobanana_pipeline.storage import ObjectStore, s3_client
from tests.conftest import Emulators, account_for
from tests.launching import (
    PLANNER,
    admin,
    bought,
    check_images,
    entries,
    keep_prompts,
    launch,
    planned,
    prompts,
    states,
    tell,
)


@pytest.mark.parametrize("mode", ["queued", "sync"])
@pytest.mark.parametrize("image_format", ["png", "jpg"])
def test_a_partition_is_settled_and_a_second_launch_buys_nothing(
    store: ObjectStore, emulators: Emulators, mode: str, image_format: Literal["png", "jpg"]
) -> None:
    emulator = emulators(mode=mode, image_format=image_format, latency_seconds=(0.05, 0.1))
    account = account_for(emulator.base_url, store)
    keep_prompts(store, "set", [*prompts(3), {"prompt": "four of a kind", "samples": 4}])
    first = launch(store, account, seed=7)
    assert (first.made.buy, first.made.buy_images, first.made.resume) == (4, 7, 0)
    assert first.made.states == {"open": 4}
    assert first.states == {"settled": 4}
    assert (first.current.images, first.current.rows, len(first.rows)) == (7, 7, 7)
    assert (first.report.bought, first.report.images) == (4, 7)
    assert first.report.states == {State.SETTLED: 4}
    assert first.report.size == first.current.size == first.rows["bytes"].sum()
    assert not first.report.reasons

    rows = first.rows
    four = rows[rows["prompt"] == "four of a kind"]
    assert four["sample"].to_list() == [0, 1, 2, 3]
    assert four["image_sha256"].nunique() == 4
    assert len(set(four["request_key"])) == 1
    assert set(rows["format"]) == {image_format}
    assert set(rows["seed"]) == set(rows["seed_asked"]) == set(rows["seed_reported"]) == {7}
    assert set(rows["run_id"]) == {first.made.run_id}
    assert set(rows["attempts"]) == {1}
    assert rows[["width", "height", "provider_id", "accepted"]].notna().all(axis=None)
    assert rows["reason"].isna().all()
    check_images(store, rows)
    assert states(store) == {State.SETTLED: 4}
    record = admin(emulator, "purchases")
    assert (record["total"], record["bought_twice"]) == (4, 0)
    sold = {track_id for group in record["groups"] for track_id in group["track_ids"]}
    assert sold == {f"{e.request_key}.{e.attempts[0].nonce}" for e in entries(store)}
    assert store.get(run_done_key(first.made.run_id))

    calls = admin(emulator, "stats")["calls"]
    second = launch(store, account, seed=7)
    assert (second.made.shards, second.made.buy, second.made.resume) == ((), 0, 0)
    assert second.made.states == {"settled": 4}
    assert second.current.content == first.current.content
    assert admin(emulator, "stats")["calls"] == calls


def test_what_a_run_sets_out_to_do_is_written_before_anything_is_bought(
    store: ObjectStore, emulators: Emulators
) -> None:
    emulator = emulators()
    keep_prompts(store, "set", prompts(5))
    made = planned(store, shard_size=2)
    assert len(made.shards) == 3
    assert bought(emulator) == 0
    listed = []
    for shard in made.shards:
        stored = store.get(run_shard_key(made.run_id, shard))
        assert stored is not None
        table = pd.read_parquet(io.BytesIO(stored.body))
        assert len(table) <= 2
        listed += table["request_key"].to_list()
    assert len(set(listed)) == 5
    stored = store.get(run_plan_key(made.run_id))
    assert stored is not None
    assert json.loads(stored.body)["buy"] == 5
    assert store.get(run_done_key(made.run_id)) is None


def test_pilots_are_nested_and_the_rest_is_not_requested(
    store: ObjectStore, emulators: Emulators
) -> None:
    emulator = emulators()
    account = account_for(emulator.base_url, store)
    keep_prompts(store, "set", prompts(6))
    two = launch(store, account, limit=2)
    assert two.states == {"not_requested": 4, "settled": 2}
    four = launch(store, account, limit=4)
    assert (four.states, four.made.buy) == ({"not_requested": 2, "settled": 4}, 2)
    again = launch(store, account, limit=2)
    assert (again.states, again.made.buy) == ({"not_requested": 2, "settled": 4}, 0)
    whole = launch(store, account)
    assert (whole.states, whole.made.buy) == ({"settled": 6}, 2)
    assert bought(emulator) == 6
    assert whole.rows["prompt_id"].is_unique


def test_a_smaller_limit_does_not_hide_a_doubt(store: ObjectStore, emulators: Emulators) -> None:
    emulator = emulators(moods={"http_500_after": 1})
    account = account_for(emulator.base_url, store)
    keep_prompts(store, "set", prompts(3))
    assert launch(store, account).states == {"in_doubt": 3}
    assert launch(store, account, limit=1).states == {"in_doubt": 3}
    assert bought(emulator) == 3


def test_other_parameters_are_refused_with_the_cost_and_bought_when_told_so(
    store: ObjectStore, emulators: Emulators
) -> None:
    emulator = emulators()
    account = account_for(emulator.base_url, store)
    keep_prompts(store, "set", prompts(3))
    launch(store, account)
    other = {"width": 1056, "samples": 2}
    with pytest.raises(PlanError) as refusal:
        planned(store, parameters=other)
    for word in (
        "width 1024 → 1056",
        "samples 1 → 2",
        "3 requests for 6 new images",
        "set, seed 1",
    ):
        assert word in str(refusal.value)
    assert bought(emulator) == 3
    changed = launch(store, account, parameters=other, change_parameters=True)
    assert (changed.states, changed.current.rows) == ({"settled": 3}, 6)
    assert changed.current.parameters["width"] == 1056
    assert changed.current.parameters["height"] == 1024
    kept = launch(store, account, parameters={})
    assert (kept.made.buy, kept.current.content) == (0, changed.current.content)
    with pytest.raises(PlanError, match="would buy 0 requests"):
        # Back to what is bought already is a change all the same.
        planned(store, parameters={"width": 1024, "samples": 1})
    assert bought(emulator) == 6


@pytest.mark.parametrize("seed", [0, -1, 2**32])
def test_seeds_that_cannot_be_bought_are_refused(store: ObjectStore, seed: int) -> None:
    keep_prompts(store, "set", prompts(1))
    with pytest.raises(PlanError, match=f"seed {seed}"):
        planned(store, seed=seed)


@pytest.mark.parametrize("wrong", [{"limit": 0}, {"limit": -1}, {"shard_size": 0}])
def test_limits_below_one_are_refused(store: ObjectStore, wrong: dict[str, Any]) -> None:
    keep_prompts(store, "set", prompts(1))
    with pytest.raises(PlanError, match="use 1 or more"):
        planned(store, **wrong)


def test_a_prompt_set_that_is_not_there_is_named(store: ObjectStore) -> None:
    with pytest.raises(PlanError, match="no prompt set 'set'"):
        planned(store)


def test_a_rows_own_columns_beat_the_launch(store: ObjectStore, emulators: Emulators) -> None:
    emulator = emulators()
    account = account_for(emulator.base_url, store)
    own = {"prompt": "own", "width": 1056, "seed": 99, "negative_prompt": "text"}
    keep_prompts(store, "set", [own, "plain"])
    rows = launch(store, account, seed=5).rows.sort_values("prompt")
    assert rows["prompt"].to_list() == ["own", "plain"]
    assert rows["seed"].to_list() == [5, 5]
    assert rows["seed_asked"].to_list() == [99, 5]
    assert rows["width"].to_list() == [1056, 1024]
    assert rows["height"].to_list() == [1024, 1024]
    asked = {entry.prompt: entry.request for entry in entries(store)}
    assert (asked["own"]["negative_prompt"], asked["plain"]["negative_prompt"]) == ("text", "")


def test_two_sets_with_common_prompts_buy_those_once(
    store: ObjectStore, emulators: Emulators
) -> None:
    emulator = emulators()
    account = account_for(emulator.base_url, store)
    keep_prompts(store, "one", [*prompts(3), *prompts(2, "shared")])
    keep_prompts(store, "two", [*prompts(2, "shared"), *prompts(1, "other")])
    one, two = launch(store, account, "one"), launch(store, account, "two")
    assert (one.states, two.states) == ({"settled": 5}, {"settled": 3})
    assert (two.made.states, two.made.buy) == ({"open": 1, "settled": 2}, 1)
    record = admin(emulator, "purchases")
    assert (record["total"], record["bought_twice"]) == (6, 0)
    check_images(store, two.rows)


def test_rows_that_ask_for_the_same_picture_share_one_purchase(
    store: ObjectStore, emulators: Emulators
) -> None:
    emulator = emulators()
    account = account_for(emulator.base_url, store)
    keep_prompts(
        store, "set", [{"id": name, "prompt": "a twin", "samples": 2} for name in ("left", "right")]
    )
    made = launch(store, account)
    assert (made.made.buy, made.made.cells, made.states) == (1, 2, {"settled": 2})
    assert made.rows[["prompt_id", "sample"]].to_numpy().tolist() == [
        ["left", 0],
        ["left", 1],
        ["right", 0],
        ["right", 1],
    ]
    assert made.rows["image_sha256"].nunique() == made.current.images == 2
    assert bought(emulator) == 1


def test_two_launches_at_once_buy_each_request_once(
    store: ObjectStore, emulators: Emulators
) -> None:
    emulator = emulators(latency_seconds=(0.1, 0.4), cap=4, retry_after_seconds=0.2)
    keep_prompts(store, "set", prompts(12))
    start = threading.Barrier(2)

    def run(number: int) -> dict[str, int]:
        mine = ObjectStore(s3_client(), store.bucket, store.prefix)
        account = account_for(emulator.base_url, mine)
        start.wait()
        made = launch(mine, account, run_id=f"run-{number}")
        assert len(made.rows) == 12
        return made.states

    with ThreadPoolExecutor(2) as both:
        assert list(both.map(run, range(2))) == [{"settled": 12}] * 2
    record = admin(emulator, "purchases")
    assert (record["total"], record["bought_twice"]) == (12, 0)
    check_images(store, current_rows(store))


def current_rows(store: ObjectStore) -> pd.DataFrame:
    current, _ = read_current(store, "set", 1)
    assert current is not None
    return read_manifest(store, current.manifest)


def test_manifests_that_are_collected_at_once_are_all_complete(
    store: ObjectStore, emulators: Emulators
) -> None:
    emulator = emulators()
    account = account_for(emulator.base_url, store)
    keep_prompts(store, "set", prompts(4))
    plans = [planned(store, limit=limit, run_id=f"run-{limit}") for limit in (1, 2, 3, 4)]
    for made in plans:
        for shard in made.shards:
            settle_shard(store, account, made.run_id, shard)
    with ThreadPoolExecutor(len(plans)) as collectors:
        list(collectors.map(lambda made: collect(store, PLANNER, made, Report()), plans))
    # Whoever came last has all that the others had shown: the one with limit 4 at least.
    assert collect(store, PLANNER, plans[0], Report()).cells == {"settled": 4}
    assert bought(emulator) == 4
    assert len([key for key in store.keys("manifests/") if key.endswith(".parquet")]) >= 5


def accept(store: ObjectStore, made: RunPlan, output: tuple[str, ...]) -> None:
    """Write down what another worker would have: its one request is accepted, and done."""
    stored = store.get(run_shard_key(made.run_id, made.shards[0]))
    assert stored is not None
    row = pq.read_table(io.BytesIO(stored.body)).to_pylist()[0]
    entry = Entry.new(
        ModelsLabRequest.model_validate_json(row["request"]), row["request_key"], realm="emulator"
    )
    entry = entry.claim(run_id="dead", nonce="n1", lease_seconds=60).accept("n1", "1", output)
    assert store.create(ledger_key(entry.request_key), entry.to_json())


def test_equal_bytes_of_two_requests_lie_once_and_have_two_owners(
    store: ObjectStore, emulators: Emulators
) -> None:
    """The provider names one URL for both: all that matters here is that the bytes are equal."""
    emulator = emulators(mode="sync")
    account = account_for(emulator.base_url, store)
    keep_prompts(store, "set", ["first"])
    launch(store, account)
    (first,) = entries(store)
    keep_prompts(store, "set", ["second"])
    made = planned(store, run_id="the-second")
    accept(store, made, first.attempts[0].output)
    report = settle_shard(store, account, made.run_id, made.shards[0])
    assert report.states == {State.SETTLED: 1}
    collect(store, PLANNER, made, report)
    second = next(entry for entry in entries(store) if entry.prompt == "second")
    (image,) = second.images
    assert image == first.images[0]
    assert store.head(image.key) == {
        "request-key": first.request_key,
        "run-id": first.attempts[0].run_id,
    }
    assert store.get(image_owner_key(image.sha256, second.request_key)) is not None
    assert bought(emulator) == 1


def test_a_run_that_leaves_something_to_rescue_is_not_marked_as_done(
    store: ObjectStore, emulators: Emulators
) -> None:
    emulator = emulators(moods={"lost_answer_after": 1})
    account = account_for(emulator.base_url, store)
    keep_prompts(store, "set", prompts(2))
    doubtful = launch(store, account, limit=1)
    assert store.get(run_done_key(doubtful.made.run_id)) is None
    tell(emulator, "moods", lost_answer_after=0)
    rest = launch(store, account)
    assert rest.states == {"in_doubt": 1, "settled": 1}
    assert store.get(run_done_key(rest.made.run_id)) is not None, "the doubt is another run's"


def test_whole_numbers_stay_whole_in_the_manifest_and_in_its_successors(
    store: ObjectStore, emulators: Emulators
) -> None:
    emulator = emulators()
    account = account_for(emulator.base_url, store)
    seed = 2**53 - 1
    keep_prompts(store, "set", [{"prompt": "big", "seed": seed}, *prompts(3)])
    for limit in (1, 2, 4):
        made = launch(store, account, limit=limit)
        stored = store.get(made.current.manifest)
        assert stored is not None
        table = pq.read_table(io.BytesIO(stored.body))
        types = {field.name: str(field.type) for field in table.schema}
        assert {types[name] for name in ("seed", "seed_asked", "seed_reported", "bytes")} == {
            "int64"
        }
        assert {types[name] for name in ("sample", "width", "height", "attempts")} == {"int32"}
        assert table.schema.metadata == {b"nanobanana.schema": b"1"}
    big = made.rows[made.rows["prompt"] == "big"]
    assert big["seed_asked"].to_list() == big["seed_reported"].to_list() == [seed]
