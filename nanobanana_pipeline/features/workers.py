"""Measuring many pictures at once: threads read them, processes decode them.

A process a CPU, each fed by one thread at a time; so it is known whose picture a process was at
when it died, and no more pictures are in memory than there are threads.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from queue import SimpleQueue
from typing import Final, Self

from nanobanana_pipeline.errors import ObjectTooLarge
from nanobanana_pipeline.features.measure import Features, measure
from nanobanana_pipeline.images.inspect import MAX_IMAGE_BYTES
from nanobanana_pipeline.storage import ObjectStore

__all__ = ["measure_all"]

READERS_A_PROCESS: Final = 2


def measure_all(
    store: ObjectStore, keys: Mapping[str, str], on_progress: Callable[[int], None]
) -> list[Features]:
    """Read and measure pictures (SHA-256 → where each lies): a row each, in the order given.

    A picture that is missing or cannot be decoded has an `error`. After each, `on_progress` is
    called with the number of pictures done so far.
    """
    if not keys:
        return []
    processes = min(len(os.sched_getaffinity(0)), len(keys))
    rows = []
    with contextlib.ExitStack() as stack:
        idle = stack.enter_context(_Idle(processes))
        threads = ThreadPoolExecutor(READERS_A_PROCESS * processes)
        # An error or an interrupt ends the waiting here; what nobody has begun is left.
        stack.callback(threads.shutdown, cancel_futures=True)
        for row in threads.map(lambda item: _read_and_measure(store, idle, *item), keys.items()):
            rows.append(row)
            on_progress(len(rows))
    return rows


def _read_and_measure(store: ObjectStore, idle: "_Idle", sha256: str, key: str) -> Features:
    try:
        found = store.read_object(store.bucket, store.prefix + key, MAX_IMAGE_BYTES)
    except ObjectTooLarge as error:
        return Features(sha256, error=str(error))
    if found is None:
        return Features(sha256, error=f"{store.uri(key)} is missing: restore it from a backup")
    return idle.measure(sha256, found.body)


class _Idle:
    """Processes that wait for a picture."""

    def __init__(self, processes: int) -> None:
        self._waiting: SimpleQueue[ProcessPoolExecutor] = SimpleQueue()
        self._count = processes

    def __enter__(self) -> Self:
        for _ in range(self._count):
            self._waiting.put(_process())
        return self

    def __exit__(self, *_error: object) -> None:
        for _ in range(self._count):
            self._waiting.get().shutdown()

    def measure(self, sha256: str, data: bytes) -> Features:
        """Have a process measure a picture; one that dies of it is replaced."""
        process = self._waiting.get()
        try:
            return process.submit(measure, sha256, data).result()
        except BrokenProcessPool:
            process.shutdown()
            process = _process()
            error = "the process that decoded it died: of these bytes, or for want of memory"
            return Features(sha256, error=error)
        finally:
            self._waiting.put(process)


def _process() -> ProcessPoolExecutor:
    # Forking a process with threads may hang it; a spawned one starts anew.
    spawn = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(1, mp_context=spawn, initializer=_serve)


def _serve() -> None:
    """Leave Ctrl-C to the parent, and do not outlive it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
