"""Threads that are waited for by one that may be interrupted."""

import os
import signal
import threading

import pytest

from nanobanana_pipeline.generation.engine.thread_group import ThreadGroup


def test_a_crew_is_waited_for_until_each_of_its_threads_has_ended() -> None:
    go = threading.Semaphore(0)

    def job() -> None:
        go.acquire()

    crew = ThreadGroup("worker", job)
    crew.start(2)
    assert not crew.wait(0)
    go.release()
    assert not crew.wait(0.05)
    go.release()
    assert crew.wait(20)
    assert crew.wait(-1)


def test_an_interrupted_wait_takes_nobody_for_ended() -> None:
    # With Thread.join it does: what was accepted then stayed behind when a launch was stopped.
    go = threading.Event()

    def job() -> None:
        go.wait()

    crew = ThreadGroup("worker", job)
    crew.start(1)
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        crew.wait(60)
    assert not crew.wait(0.05)
    go.set()
    assert crew.wait(20)


def test_a_thread_whose_job_fails_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda _: None)

    def job() -> None:
        raise RuntimeError

    crew = ThreadGroup("worker", job)
    crew.start(1)
    assert crew.wait(20)
