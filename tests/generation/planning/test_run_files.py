"""Run files: what is written is what is read, in shares of equal length, and never all at once."""

import threading
from collections.abc import Iterator

import pytest

from nanobanana_pipeline.generation.engine.work_queue import WorkItem, WorkQueue
from nanobanana_pipeline.generation.planning import run_files
from nanobanana_pipeline.generation.planning.run_files import (
    PlannedRequest,
    read_shard,
    write_shards,
)
from nanobanana_pipeline.provider.modelslab.request import ModelsLabRequest
from nanobanana_pipeline.storage import ObjectStore


def asked(count: int) -> list[PlannedRequest]:
    return [
        PlannedRequest(f"{n:064x}", ModelsLabRequest(prompt=f"a paper fox {n}", seed=1), n % 3 > 0)
        for n in range(count)
    ]


@pytest.mark.parametrize(
    ("count", "shard_size", "lengths"),
    [(7, None, [7]), (7, 3, [3, 2, 2]), (6, 3, [3, 3]), (2, 9, [2]), (0, None, []), (0, 4, [])],
)
def test_requests_are_dealt_out_evenly_and_in_order(
    store: ObjectStore,
    monkeypatch: pytest.MonkeyPatch,
    count: int,
    shard_size: int | None,
    lengths: list[int],
) -> None:
    monkeypatch.setattr(run_files, "REQUESTS_AT_ONCE", 2)
    names = write_shards(store, "run", iter(asked(count)), count, shard_size)
    files = [read_shard(store, "run", name, ModelsLabRequest) for name in names]
    assert [len(file) for file in files] == lengths
    assert [planned for file in files for planned in file] == asked(count)
    assert [planned for file in files for planned in file] == asked(count), "each time anew"


def test_the_list_of_work_takes_no_more_than_it_is_asked_for() -> None:
    taken = 0

    def counting() -> Iterator[WorkItem]:
        nonlocal taken
        for planned in asked(5):
            taken += 1
            yield WorkItem(planned)

    todo = WorkQueue(counting(), 5)
    assert taken == 0
    assert todo.take(threading.Event()) is not None
    assert taken == 1
