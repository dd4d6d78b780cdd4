"""Steps end with their run where nothing interrupts them, as on another machine."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pytest

from dagster_nanobanana import run_watch
from dagster_nanobanana.assets import generated_images
from dagster_nanobanana.run_watch import RunOver, RunWatch
from nanobanana_pipeline.ledger import State
from nanobanana_pipeline.lineage.openlineage.recorder import was_stopped
from tests.dagster_nanobanana.conftest import SMALL, Project
from tests.launching import admin, bought, states

Projects = Callable[..., Project]
MANY = "prompt\n" + "".join(f"animal {number}\n" for number in range(40))


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generated_images, "PROGRESS_SECONDS", 0.1)
    monkeypatch.setattr(run_watch, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(run_watch, "LOOK_PATIENCE_SECONDS", 0.3)


def stop_once_it_buys(project: Project) -> str:
    """As Terminate does before it interrupts anybody; gives the run's id."""
    while bought(project.emulator) < 4:
        time.sleep(0.05)
    [run] = project.instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED]))
    project.instance.report_run_canceling(run)
    return run.run_id


def test_a_step_that_nobody_interrupts_stops_with_its_run(project: Projects) -> None:
    here = project(latency_seconds=(0.3, 0.5), cap=4)
    here.make_prompt_set("many", MANY)
    with ThreadPoolExecutor(1) as aside:
        stopped = aside.submit(stop_once_it_buys, here)
        assert not here.generate("many|1", {**SMALL, "slots": 4}).success
    sold = bought(here.emulator)
    assert 4 <= sold < 40
    assert states(here.store)[State.SETTLED] == sold
    [failed] = [
        event.dagster_event
        for event in here.instance.all_logs(stopped.result())
        if event.dagster_event and event.dagster_event.is_step_failure
    ]
    assert failed.step_key == "generated_images.generate[shard_0000]"
    said = str(failed.event_specific_data)
    assert f"Stopped as asked: {sold} of 40 requests stored" in said
    assert "Launch again to go on" in said
    assert was_stopped(here.store, "generated_images", stopped.result())
    assert here.generate("many|1").success
    record = admin(here.emulator, "purchases")
    assert (record["total"], record["bought_twice"]) == (40, 0)


def test_a_step_that_is_interrupted_says_at_last_how_it_stands(
    project: Projects, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Terminate interrupts it: in its own process, wherever it is."""
    here = project(latency_seconds=(0.3, 0.5), cap=4)
    here.make_prompt_set("many", MANY)

    def interrupt(_seconds: float, _text: str) -> None:
        raise dg.DagsterExecutionInterruptedError

    monkeypatch.setattr(generated_images, "progress_log", lambda *_: interrupt)
    assert not here.generate("many|1", {**SMALL, "slots": 4}).success
    sold = bought(here.emulator)
    [run] = here.instance.get_runs(dg.RunsFilter(tags={"dagster/partition": "many|1"}))
    told = [log.user_message for log in here.instance.all_logs(run.run_id)]
    assert any(f"Stopped as asked: {sold} of 40 requests stored" in line for line in told)
    assert was_stopped(here.store, "generated_images", run.run_id)


@dg.job
def any_job() -> None:
    """A run of it is only looked at."""


ENDINGS: list[Callable[[dg.DagsterInstance, dg.DagsterRun], object]] = [
    lambda instance, run: instance.report_run_canceling(run),
    lambda instance, run: instance.report_run_canceled(run),
    lambda instance, run: instance.report_run_failed(run),
    lambda instance, run: instance.delete_run(run.run_id),
]


@pytest.mark.parametrize("end", ENDINGS, ids=["canceling", "canceled", "failed", "deleted"])
def test_a_step_of_a_run_that_is_over_does_not_begin(
    end: Callable[[dg.DagsterInstance, dg.DagsterRun], object],
) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        run = instance.create_run_for_job(any_job)
        context: Any = SimpleNamespace(instance=instance, run_id=run.run_id)
        RunWatch(context).look()
        end(instance, run)
        with pytest.raises(RunOver, match=run.run_id):
            RunWatch(context)


def test_a_storage_that_does_not_answer_stops_nobody(caplog: pytest.LogCaptureFixture) -> None:
    def refuse(_run_id: str) -> None:
        raise ConnectionError("no Postgres")

    context: Any = SimpleNamespace(instance=SimpleNamespace(get_run_by_id=refuse), run_id="run-1")
    watch = RunWatch(context)
    time.sleep(0.2)
    watch.look()
    assert caplog.text.count("no Postgres") == 2
