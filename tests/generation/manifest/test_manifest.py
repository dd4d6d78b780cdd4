"""Manifests: put together, published, read back."""

import cProfile
import hashlib
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import replace

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from nanobanana_pipeline.errors import StorageError
from nanobanana_pipeline.generation.engine.engine import Report
from nanobanana_pipeline.generation.launch_steps import collect, plan
from nanobanana_pipeline.generation.manifest import rows as manifest_rows
from nanobanana_pipeline.generation.manifest.manifest import (
    MANIFEST_COLUMNS,
    CurrentManifest,
    advice,
    manifest_key,
    publish,
    read_all_current,
    read_current,
    read_manifest,
    read_manifest_arrow,
)
from nanobanana_pipeline.generation.manifest.rows import (
    content_hash,
    count_cells,
    count_images,
    manifest_batches,
    outcomes,
)
from nanobanana_pipeline.generation.planning.cells import Cells, build_cells
from nanobanana_pipeline.generation.planning.planner import Launch
from nanobanana_pipeline.ledger import Entry, StoredImage
from nanobanana_pipeline.prompts import prompt_set
from nanobanana_pipeline.provider.modelslab.request import ModelsLabRequest
from nanobanana_pipeline.storage import ObjectStore, StoredObject
from nanobanana_pipeline.storage.versioned import packed
from tests.launching import PLANNER, keep_prompts, prompts

DEFAULTS = ModelsLabRequest.default_parameters()
MANY = 20_000


def cells(count: int, *, samples: int = 1, limit: int | None = None) -> Cells:
    rows = pd.DataFrame({"prompt_id": [f"row-{n}" for n in range(count)], "prompt": prompts(count)})
    return build_cells(
        rows,
        seed=1,
        parameters={**DEFAULTS, "samples": samples},
        realm="emulator",
        limit=limit,
        model=ModelsLabRequest,
    )


def tried(cells: Cells) -> Iterator[Entry]:
    """Each cell's entry, claimed."""
    everyone = list(range(len(cells.frame)))
    for key, request in zip(cells.frame["request_key"], cells.requests(everyone, {}), strict=True):
        yield Entry.new(request, key, realm="emulator").claim(
            run_id="run", nonce="n1", lease_seconds=60
        )


def image(sample: int, mark: str) -> StoredImage:
    return StoredImage(
        sample=sample, sha256=mark, size=9, format="png", width=1024, height=1024, key=f"x/{mark}"
    )


def table(cells: Cells, entries: list[Entry], *known: pa.Table) -> pa.Table:
    came = outcomes(entries, lambda key: f"s3://bucket/{key}")
    return manifest_batches(cells.frame, "set", cells.seed, [*known, came]).read_all()


def settled_of(rows: pa.Table) -> pa.Table:
    return rows.filter(pc.field("state") == "settled")


def pointer(manifest: str, **more: object) -> CurrentManifest:
    blank = CurrentManifest(
        prompt_set="set",
        seed=1,
        manifest=manifest,
        fingerprint="f",
        parameters=DEFAULTS,
        limit=None,
        cells={},
        images=0,
        size=0,
        content="",
        rows=0,
        run_id="run",
        created="now",
    )
    return replace(blank, **more)  # type: ignore[arg-type]


STEPS: dict[str, Callable[[Entry], Entry]] = {
    "pending": lambda entry: entry,
    "in_doubt": lambda entry: entry.doubt("n1", "no answer"),
    "refused": lambda entry: entry.refuse("n1", "blank"),
    "failed": lambda entry: entry.fail("n1", "no luck"),
    "lost": lambda entry: entry.accept("n1", "7").lose("n1", "broken", [image(1, "b")]),
    "settled": lambda entry: entry.accept("n1", "7", (), 2**60).settle(
        "n1", [image(0, "a"), image(1, "c")]
    ),
}


def test_every_cell_has_its_state_and_a_row_for_each_sample() -> None:
    asked = cells(len(STEPS) + 1, samples=2)
    entries = [step(entry) for step, entry in zip(STEPS.values(), tried(asked), strict=False)]
    made = table(asked, entries)
    assert made.schema.names == list(MANIFEST_COLUMNS)
    rows = made.to_pandas()
    assert len(rows) == 2 * (len(STEPS) + 1)
    assert rows["state"].to_list() == [s for name in [*STEPS, "pending"] for s in (name, name)]
    assert rows["sample"].to_list() == [0, 1] * (len(STEPS) + 1)
    assert count_cells(made.select) == {
        "failed": 1,
        "in_doubt": 1,
        "lost": 1,
        "pending": 2,
        "refused": 1,
        "settled": 1,
    }
    lost = rows[rows["state"] == "lost"]
    assert lost["image_sha256"].fillna("none").to_list() == ["none", "b"]
    assert lost["reason"].to_list() == ["broken", "broken"]
    assert count_images(made.select) == (3, 27)


@pytest.mark.parametrize("batch", [2, 10_000])
def test_rows_of_one_request_share_its_pictures_in_the_order_of_the_set(
    monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    monkeypatch.setattr(manifest_rows, "MANIFEST_ROWS_AT_ONCE", batch)
    texts = ["an owl", "a fox", "an owl", "a newt", "a fox"]
    rows = pd.DataFrame({"prompt_id": [f"row-{n}" for n in range(5)], "prompt": texts})
    parameters = {**DEFAULTS, "samples": 2}
    asked = build_cells(
        rows,
        seed=1,
        parameters=parameters,
        realm="emulator",
        limit=None,
        model=ModelsLabRequest,
    )
    owl, fox, *_ = tried(asked)
    came = [STEPS["settled"](owl), STEPS["lost"](fox)]
    made = table(asked, came, settled_of(table(asked, came[:1])))
    assert made["prompt_id"].to_pylist() == [f"row-{n}" for n in range(5) for _ in range(2)]
    assert made["prompt"].to_pylist() == [text for text in texts for _ in range(2)]
    assert made["sample"].to_pylist() == [0, 1] * 5
    pictures: dict[str, list[str | None]] = {
        "an owl": ["a", "c"],
        "a fox": [None, "b"],
        "a newt": [None, None],
    }
    assert made["image_sha256"].to_pylist() == [each for text in texts for each in pictures[text]]
    assert count_cells(made.select) == {"lost": 2, "pending": 1, "settled": 2}
    assert count_images(made.select) == (3, 27)
    whole = made.select(["prompt_id", "sample", "request_key", "state", "image_sha256"])
    told = json.dumps(whole.to_pydict(), separators=(",", ":")).encode()
    assert content_hash(made.select) == hashlib.sha256(told).hexdigest()


def test_rows_carried_on_from_an_earlier_manifest_are_the_same_to_the_bit(
    store: ObjectStore,
) -> None:
    asked = cells(2, samples=2)
    first, second = tried(asked)
    before = table(asked, [STEPS["settled"](first)])
    key = manifest_key("set", 1, "run")
    assert publish(store, packed(before), pointer(key), None)
    read = read_manifest(store, key)
    assert read["seed_reported"].dropna().to_list() == [2**60, 2**60]
    assert str(read["seed_reported"].dtype) == "Int64"
    after = table(asked, [STEPS["in_doubt"](second)], settled_of(read_manifest_arrow(store, key)))
    assert after.slice(0, 2).equals(before.slice(0, 2))
    assert after.schema.equals(before.schema, check_metadata=True)


def test_marks_of_provenance_are_in_the_manifest_and_null_where_there_are_none() -> None:
    asked = cells(1, samples=2)
    marked = image(0, "a").model_copy(update={"marks": ("c2pa", "xmp")})
    done = [entry.accept("n1", "7").settle("n1", [marked, image(1, "b")]) for entry in tried(asked)]
    assert table(asked, done)["provenance"].to_pylist() == ["c2pa xmp", None]


def test_an_older_manifest_is_read_and_carried_on_without_the_newer_columns(
    store: ObjectStore,
) -> None:
    asked = cells(2)
    first, second = tried(asked)
    settled = first.accept("n1", "7").settle("n1", [image(0, "a")])
    before = table(asked, [settled])
    key = manifest_key("set", 1, "run")
    publish(store, packed(before.drop_columns(["provenance"])), pointer(key), None)
    read = read_manifest(store, key)
    assert list(read.columns) == list(MANIFEST_COLUMNS)
    assert read["provenance"].isna().all()
    after = table(asked, [STEPS["in_doubt"](second)], settled_of(read_manifest_arrow(store, key)))
    assert after.slice(0, 1).equals(before.slice(0, 1))
    some = read_manifest(store, key, ["provenance", "prompt_id"])
    assert list(some.columns) == ["provenance", "prompt_id"]


def test_an_older_entry_is_read_without_marks() -> None:
    done = [STEPS["settled"](entry) for entry in tried(cells(1, samples=2))]
    older = json.loads(done[0].to_json())
    for stored in older["images"]:
        assert stored.pop("marks") == []
    assert Entry.from_json(json.dumps(older).encode(), "x").images == done[0].images


def test_a_partition_of_nothing_tried_is_all_pending_or_not_requested() -> None:
    made = table(cells(4, limit=1), [])
    assert count_cells(made.select) == {"not_requested": 3, "pending": 1}
    assert count_images(made.select) == (0, 0)


def test_all_current_manifests_are_read_and_say_what_is_missing(store: ObjectStore) -> None:
    made = packed(table(cells(1), []))
    one = pointer(manifest_key("set", 1, "run"), cells={"settled": 5, "lost": 3}, abandoned=1)
    other = replace(one, prompt_set="other", seed=2, manifest=manifest_key("other", 2, "run"))
    for current in (one, other):
        assert publish(store, made, current, None)
    assert list(read_all_current(store)) == [other, one]
    assert list(read_all_current(store, "se")) == [one]
    assert one.gaps == 2
    (advised,) = advice(one)
    assert advised.startswith("3 lost: paid for")


def test_of_two_who_publish_at_once_one_is_told_to_start_over(store: ObjectStore) -> None:
    made = packed(table(cells(1), []))
    one, two = (pointer(manifest_key("set", 1, run)) for run in ("one", "two"))
    assert publish(store, made, one, None)
    assert not publish(store, made, two, None)
    current, etag = read_current(store, "set", 1)
    assert current == one
    assert publish(store, made, two, etag)
    assert not publish(store, made, one, etag)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"{", "is damaged"),
        (b"[]", "is damaged"),
        (b'{"schema": 1}', "is damaged"),
        (b'{"schema": 3, "new": true}', "has schema 3.*upgrade"),
    ],
)
def test_a_pointer_that_cannot_be_read_is_named(
    store: ObjectStore, body: bytes, reason: str
) -> None:
    store.put("manifests/set/seed=1/current.json", body)
    with pytest.raises(StorageError, match=f"current.json {reason}"):
        read_current(store, "set", 1)


def test_a_manifest_that_is_missing_or_damaged_is_named(store: ObjectStore) -> None:
    with pytest.raises(StorageError, match=r"x\.parquet is missing"):
        read_manifest(store, "x.parquet")
    store.put("x.parquet", b"PAR1")
    with pytest.raises(StorageError, match=r"x\.parquet is damaged"):
        read_manifest(store, "x.parquet")
    assert publish(store, packed(table(cells(300), [])), pointer("y.parquet"), None)
    whole = store.get("y.parquet")
    assert whole is not None
    store.put("y.parquet", whole.body[:200] + bytes(2000) + whole.body[2200:])
    with pytest.raises(StorageError, match=r"y\.parquet is damaged"):
        read_manifest(store, "y.parquet")


class CountingStore(ObjectStore):
    """Counts what is read."""

    reads = 0

    def get(self, key: str) -> StoredObject | None:  # type: ignore[override]
        self.reads += 1
        return super().get(key)


def settle_on_paper(store: ObjectStore, name: str, count: int) -> None:
    """A prompt set whose manifest says that everything is settled."""
    keep_prompts(store, name, prompts(count))
    snapshot = prompt_set.current(store, name)
    assert snapshot is not None
    asked = build_cells(
        prompt_set.load(store, name, snapshot.fingerprint),
        seed=1,
        parameters=DEFAULTS,
        realm="emulator",
        limit=None,
        model=ModelsLabRequest,
    )
    done = [
        entry.accept("n1", "7").settle("n1", [image(0, entry.request_key)])
        for entry in tried(asked)
    ]
    key = manifest_key(name, 1, "run")
    made = packed(manifest_batches(asked.frame, name, asked.seed, [outcomes(done, store.uri)]))
    current = pointer(key, prompt_set=name, fingerprint=snapshot.fingerprint)
    assert publish(store, made, current, None)


def test_a_large_partition_costs_in_proportion_and_reads_no_settled_entry(
    store: ObjectStore,
) -> None:
    """Work is counted in Python calls, not in time."""
    counting = CountingStore(store.client, store.bucket, store.prefix)
    calls, reads = {}, {}
    for count in (MANY // 10, MANY):
        name = f"set-{count}"
        settle_on_paper(store, name, count)
        counting.reads = 0
        profile = cProfile.Profile(subcalls=False, builtins=False)
        profile.enable()
        made = plan(counting, PLANNER, Launch(name, 1, run_id=name))
        current = collect(counting, PLANNER, made, Report())
        profile.disable()
        assert (made.buy, made.shards, current.cells) == (0, (), {"settled": count})
        calls[count] = sum(entry.callcount for entry in profile.getstats())
        reads[count] = counting.reads
    assert calls[MANY] < 12 * calls[MANY // 10]
    assert reads[MANY] == reads[MANY // 10] < 10


def test_the_pointer_on_s3_is_plain_json(store: ObjectStore) -> None:
    key = manifest_key("set", 1, "run")
    publish(store, packed(table(cells(1), [])), pointer(key), None)
    stored = store.get("manifests/set/seed=1/current.json")
    manifest = store.get(key)
    assert stored is not None
    assert manifest is not None
    assert json.loads(stored.body)["schema"] == 2
    assert pq.read_table(io.BytesIO(manifest.body)).num_rows == 1
