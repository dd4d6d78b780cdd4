"""The index: small steps, bounded reads, and the same answers whatever its segments are."""

import hashlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pytest

from nanobanana_pipeline.bucket_keys import index_key
from nanobanana_pipeline.generation.manifest.manifest import (
    MANIFEST_COLUMNS,
    CurrentManifest,
    manifest_key,
    publish,
    read_current,
)
from nanobanana_pipeline.lineage.trace import index_reader, index_writer
from nanobanana_pipeline.lineage.trace.index_reader import LookupOrder, open_index, read_index
from nanobanana_pipeline.lineage.trace.index_writer import refresh_index
from nanobanana_pipeline.storage import ObjectStore
from nanobanana_pipeline.storage.versioned import packed


def sha(*parts: object) -> str:
    return hashlib.sha256(" ".join(map(str, parts)).encode()).hexdigest()


def put_manifest(store: ObjectStore, name: str, seed: int, rows: int, word: str = "") -> None:
    """A manifest as `collect` publishes it, of pictures that nobody drew."""
    known: dict[str, Callable[[int], Any]] = {
        "prompt_set": lambda _: name,
        "prompt_id": lambda n: f"p{n}",
        "prompt": lambda n: f"prompt {n}",
        "seed": lambda _: seed,
        "seed_asked": lambda _: seed,
        "sample": lambda _: 0,
        "request_key": lambda n: sha("request", name, seed, n, word),
        "state": lambda _: "settled",
        "image_sha256": lambda n: sha("image", name, seed, n, word),
        "provider_id": lambda n: f"{name}-{seed}-{n}{word}",
        "run_id": lambda _: "run",
    }
    columns = {
        column: pa.array([known[column](n) if column in known else None for n in range(rows)], kind)
        for column, (kind, _) in MANIFEST_COLUMNS.items()
    }
    current = CurrentManifest(
        prompt_set=name,
        seed=seed,
        manifest=manifest_key(name, seed, "run"),
        fingerprint=sha(name),
        parameters={},
        limit=None,
        cells={"settled": rows},
        images=rows,
        size=0,
        content="",
        rows=rows,
        run_id="run",
        created="",
    )
    assert publish(store, packed(pa.table(columns)), current, read_current(store, name, seed)[1])


@contextmanager
def calls(store: ObjectStore) -> Iterator[list[tuple[str, str]]]:
    """The S3 calls that are made within: operation and key or prefix."""
    made: list[tuple[str, str]] = []

    def note(params: dict[str, Any], model: Any, **_: object) -> None:
        where = str(params.get("Key", params.get("Prefix", "")))
        made.append((model.name, where.removeprefix(store.prefix)))

    events = store.client.meta.events
    events.register("provide-client-params.s3", note)
    try:
        yield made
    finally:
        events.unregister("provide-client-params.s3", note)


def requests_of(store: ObjectStore, order: LookupOrder, value: str) -> set[str]:
    return {row["request_key"] for row in open_index(store).find(order, [value])}


def test_every_order_finds_every_row_in_many_files_and_groups(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_writer, "FILE_ROWS", 16)
    monkeypatch.setattr(index_writer, "INDEX_GROUP_ROWS", 4)
    for seed in (1, 2):
        put_manifest(store, "set", seed, 50)
    refresh_index(store)
    current, _ = read_index(store)
    assert current is not None
    assert len([f for f in current.segments[0].files if f.order is LookupOrder.IMAGE]) == 8
    index = open_index(store)
    assert index.unindexed == ()
    for n in range(50):
        keys = {seed: sha("request", "set", seed, n, "") for seed in (1, 2)}
        (image,) = index.find(LookupOrder.IMAGE, [sha("image", "set", 1, n, "")])
        assert image["request_key"] == keys[1]
        (row,) = index.find(LookupOrder.REQUEST, [keys[2]])
        assert (row["prompt_id"], row["of"].seed, row["run_id"]) == (f"p{n}", 2, "run")
        assert {r["request_key"] for r in index.find(LookupOrder.PROMPT, [f"p{n}"])} == set(
            keys.values()
        )
        assert index.find(LookupOrder.PROVIDER, [f"set-1-{n}"])[0]["request_key"] == keys[1]
    everything = [sha("image", "set", seed, n, "") for seed in (1, 2) for n in range(50)]
    assert len(index.find(LookupOrder.IMAGE, everything)) == 100
    assert index.find(LookupOrder.IMAGE, [sha("nobody")]) == []
    assert index.find(LookupOrder.IMAGE, []) == []


def test_a_lookup_reads_the_end_of_one_file_and_one_row_group(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_writer, "FILE_ROWS", 2**12)
    monkeypatch.setattr(index_writer, "INDEX_GROUP_ROWS", 2**8)
    put_manifest(store, "set", 1, 20_000)
    refresh_index(store)
    index = open_index(store)
    with calls(store) as made:
        assert index.find(LookupOrder.IMAGE, [sha("image", "set", 1, 7, "")])
    assert [operation for operation, _ in made] == ["GetObject", "GetObject"]
    assert len({key for _, key in made}) == 1


def test_a_refresh_reads_only_what_has_changed(store: ObjectStore) -> None:
    for seed in range(1, 9):
        put_manifest(store, "set", seed, 100)
    assert (refresh_index(store).read, refresh_index(store).read) == (800, 0)
    with calls(store) as made:
        put_manifest(store, "set", 3, 100, word=" again")
        made.clear()
        done = refresh_index(store)
    assert (done.partitions, done.rows, done.read, done.segments) == (8, 800, 100, 2)
    read = [key for operation, key in made if operation == "GetObject"]
    assert sum(key.startswith("manifests/") for key in read) == 2
    assert {prefix for operation, prefix in made if operation == "ListObjectsV2"} == {
        "manifests/",
        "datasets/",
        "index/",
    }
    assert requests_of(store, LookupOrder.IMAGE, sha("image", "set", 3, 5, "")) == set()
    new = sha("request", "set", 3, 5, " again")
    assert requests_of(store, LookupOrder.IMAGE, sha("image", "set", 3, 5, " again")) == {new}
    assert len(requests_of(store, LookupOrder.PROMPT, "p5")) == 8


def test_many_refreshes_leave_few_segments_and_write_each_row_few_times(
    store: ObjectStore,
) -> None:
    read = 0
    for seed in range(1, 33):
        put_manifest(store, "set", seed, 10)
        done = refresh_index(store)
        read += done.read
        assert done.segments <= 5
    assert done.rows == 320
    assert read <= 320 * 5
    assert len(requests_of(store, LookupOrder.PROMPT, "p9")) == 32


def test_a_segment_that_is_mostly_out_of_date_is_made_anew(store: ObjectStore) -> None:
    for seed in range(1, 9):
        put_manifest(store, "set", seed, 100)
    refresh_index(store)
    for seed in range(1, 6):
        store.delete(f"manifests/set/seed={seed}/current.json")
    done = refresh_index(store)
    assert (done.partitions, done.rows, done.read, done.segments) == (3, 300, 300, 1)


def test_an_empty_bucket_has_an_empty_index(store: ObjectStore) -> None:
    done = refresh_index(store)
    assert (done.partitions, done.rows, done.segments) == (0, 0, 0)
    assert open_index(store).find(LookupOrder.PROMPT, ["p1"]) == []


def test_two_refreshes_at_once_lose_nothing(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_manifest(store, "set", 1, 10)
    refresh_index(store)
    put_manifest(store, "set", 2, 10)
    together = threading.Barrier(2)
    first_time = threading.local()
    write = index_writer._write

    def write_together(*args: Any) -> Any:
        segment = write(*args)
        if not getattr(first_time, "over", False):
            first_time.over = True
            together.wait(60)
        return segment

    monkeypatch.setattr(index_writer, "_write", write_together)
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(lambda _: refresh_index(store), range(2)))
    assert [(each.partitions, each.rows) for each in done] == [(2, 20), (2, 20)]
    assert sorted(each.read for each in done) in ([0, 20], [0, 10])
    assert len(requests_of(store, LookupOrder.PROMPT, "p3")) == 2


def test_leftovers_are_deleted_once_nobody_can_read_them(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_manifest(store, "set", 1, 10)
    refresh_index(store)
    before = set(store.keys(index_key("")))
    refresh_index(store, rebuild=True)
    after = set(store.keys(index_key("")))
    assert before < after
    monkeypatch.setattr(index_writer, "LEFTOVER_SECONDS", -1)
    refresh_index(store, rebuild=True)
    assert set(store.keys(index_key(""))).isdisjoint(after - {index_key("current.json")})
    assert len(requests_of(store, LookupOrder.PROMPT, "p3")) == 1


def test_parts_of_an_object_read_like_a_file(store: ObjectStore) -> None:
    body = bytes(range(256)) * 1000
    store.put("file", body)
    with calls(store) as made:
        file = index_reader._ObjectFile(store, "file", len(body))
        file.seek(-100, 2)
        assert (file.tell(), file.read()) == (len(body) - 100, body[-100:])
        file.seek(-50, 1)
        assert file.read(1000) == body[-50:]
        file.seek(1500)
        assert file.read(1500) == body[1500:3000]
        assert len(made) == 3
        assert file.read(0) == b""
    assert len(made) == 3
