"""The list of what is still to do."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

from nanobanana_pipeline.generation.engine.work_queue import WorkItem, WorkQueue
from nanobanana_pipeline.generation.planning.run_files import PlannedRequest
from nanobanana_pipeline.ledger import State
from nanobanana_pipeline.provider.modelslab.request import ModelsLabRequest

GO = threading.Event()


def work(count: int) -> list[WorkItem]:
    return [
        WorkItem(
            PlannedRequest(str(number), ModelsLabRequest(prompt="a red panda", seed=number + 1))
        )
        for number in range(count)
    ]


def test_items_come_in_order_and_then_none() -> None:
    items = work(3)
    todo = WorkQueue(items, len(items))
    for item in items:
        assert todo.take(GO) is item
        todo.finish()
    assert todo.take(GO) is None


def test_an_item_that_is_put_back_comes_after_the_others_and_not_before_its_time() -> None:
    first, second = items = work(2)
    todo = WorkQueue(items, len(items))
    assert todo.take(GO) is first
    todo.put_back(first)
    assert todo.take(GO) is second
    todo.put_back(second, 0.3)
    assert todo.take(GO) is first
    todo.finish()
    began = time.monotonic()
    assert todo.take(GO) is second
    assert time.monotonic() - began > 0.2
    todo.finish()
    assert todo.take(GO) is None


def test_whoever_waits_gets_what_is_put_back_and_leaves_when_all_is_finished() -> None:
    todo = WorkQueue(work(1), 1)
    item = todo.take(GO)
    assert item is not None
    with ThreadPoolExecutor(4) as others:
        waiting = [others.submit(todo.take, GO) for _ in range(4)]
        todo.put_back(item)
        while not any(one.done() for one in waiting):
            time.sleep(0.01)
        todo.finish()
        assert [one.result() for one in waiting].count(None) == 3


def test_a_stop_ends_the_waiting() -> None:
    stop = threading.Event()
    todo = WorkQueue(work(1), 1)
    assert todo.take(stop) is not None
    with ThreadPoolExecutor(1) as other:
        waiting = other.submit(todo.take, stop)
        stop.set()
        assert waiting.result() is None
    assert todo.take(stop) is None


def test_work_that_nobody_looked_at_is_open() -> None:
    assert work(1)[0].state is State.OPEN
