"""Sensors over a real bucket and a real emulator: each thing is asked for once."""

import json
import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from pydantic import SecretStr

from dagster_nanobanana.assets.generated_images import generated_images
from dagster_nanobanana.assets.prompt_set import prompt_set
from dagster_nanobanana.automation.free_sensors import run_summary
from dagster_nanobanana.definitions import defs
from dagster_nanobanana.partitions import prompt_sets, seeds
from dagster_nanobanana.resources import S3, NanobananaResource
from nanobanana_pipeline.bucket_keys import run_plan_key
from nanobanana_pipeline.generation.manifest.manifest import read_current
from nanobanana_pipeline.generation.planning.run_files import (
    list_unfinished,
    mark_done,
    read_plan,
    write_plan,
)
from nanobanana_pipeline.generation.recovery.doubts import find_doubts, fresh_doubts
from nanobanana_pipeline.ledger import State
from nanobanana_pipeline.prompts import prompt_set as sets
from nanobanana_pipeline.storage import ObjectStore
from nanobanana_pipeline.webhooks.inbox import Inbox, attempt_id
from tests.buying_child import kill_once_accepted
from tests.conftest import account_for
from tests.dagster_nanobanana.conftest import SMALL, Project
from tests.dagster_nanobanana.test_graph import bought
from tests.dagster_nanobanana.ticks import NIGHT, Automation, run_job
from tests.deploy.counting import Calls
from tests.later import later
from tests.launching import admin, keep_prompts, launch, planned, prompts, states, tell

Projects = Callable[..., Project]
SECRET = SecretStr("0123456789abcdef-webhooks")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The prompts folder of an empty working directory."""
    (tmp_path / "here" / "prompts").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here" / "prompts"


@pytest.fixture
def after(monkeypatch: pytest.MonkeyPatch) -> Callable[[timedelta], None]:
    """Puts the bucket's clock forward for what sensors read from now on."""

    def put_forward(by: timedelta) -> None:
        store = NanobananaResource.store

        def shifted(self: NanobananaResource) -> ObjectStore:
            return later(store(self), by)  # the last one's clock counts

        monkeypatch.setattr(
            "dagster_nanobanana.automation.free_sensors.NanobananaResource.store", shifted
        )

    return put_forward


def write(path: Path, text: str = "prompt\na fox\n", age_seconds: float = 60) -> None:
    path.write_text(text)
    then = time.time() - age_seconds
    os.utime(path, (then, then))


def names(requests: list[dg.RunRequest]) -> list[str | None]:
    return [request.partition_key for request in requests]


def materialize(project: Project, requests: list[dg.RunRequest]) -> None:
    for request in requests:
        asset = prompt_set if "prompt_set" in request.run_config["ops"] else generated_images
        assert request.partition_key is not None
        assert project.run(asset, request.partition_key, request.run_config["ops"]).success


def test_a_table_in_either_place_becomes_a_prompt_set_once_until_it_changes(
    project: Projects, folder: Path
) -> None:
    here = project()
    tables = Automation(here, "new_prompt_tables")
    assert tables.tick() == []
    assert "no new table" in tables.skipped
    write(folder / "animals.csv")
    here.store.put("prompts/plants.jsonl", b'{"prompt": "a fern"}\n')
    asked = tables.tick()
    assert names(asked) == ["animals", "plants"]
    assert here.instance.get_dynamic_partitions(str(prompt_sets.name)) == ["animals", "plants"]
    materialize(here, asked)
    found = [sets.current(here.store, name) for name in ("animals", "plants")]
    assert [each.source for each in found if each] == [
        str(folder / "animals.csv"),
        here.store.uri("prompts/plants.jsonl"),
    ]
    assert tables.tick() == []
    write(folder / "animals.csv", "prompt\na whale\n", age_seconds=30)
    assert names(tables.tick()) == ["animals"]
    # Back to what it was: a change like any other.
    write(folder / "animals.csv", age_seconds=20)
    assert names(tables.tick()) == ["animals"]
    here.store.put("prompts/plants.jsonl", b'{"prompt": "a moss"}\n')
    assert names(tables.tick()) == ["plants"]
    assert tables.tick() == []


def test_a_table_whose_run_never_began_is_launched_once_more(
    project: Projects, folder: Path
) -> None:
    here = project()
    tables = Automation(here, "new_prompt_tables")
    write(folder / "animals.csv")
    [asked] = tables.tick()

    def fail(run_key: str | None) -> None:
        tags = {"dagster/sensor_name": "new_prompt_tables", "dagster/run_key": str(run_key)}
        job = defs.resolve_job_def("audit_bucket")
        here.instance.report_run_failed(here.instance.create_run_for_job(job, tags=tags))

    fail(asked.run_key)
    [again] = tables.tick()
    assert (again.partition_key, again.run_config) == (asked.partition_key, asked.run_config)
    fail(again.run_key)
    assert tables.tick() == []


def test_a_table_that_is_being_written_is_left_for_the_next_tick(
    project: Projects, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nanobanana_pipeline.prompts.table_files.UNCHANGED_SECONDS", 60.0)
    tables = Automation(project(), "new_prompt_tables")
    write(folder / "animals.csv", age_seconds=0)
    assert tables.tick() == []
    write(folder / "animals.csv", age_seconds=100)
    assert names(tables.tick()) == ["animals"]


def test_a_bad_name_is_said_once_until_it_changes(
    project: Projects, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tables = Automation(project(), "new_prompt_tables")
    for bad in ("a|b.csv", "notes.txt", "twice.csv", "twice.tsv", ".hidden.csv"):
        write(folder / bad)
    write(folder / "good.csv")
    assert names(tables.tick()) == ["good"]
    said = capfd.readouterr().err
    assert "'a|b' cannot name a prompt set" in said
    assert "notes.txt is of no known format" in said
    assert "twice.csv and" in said
    assert ".hidden" not in said
    assert tables.tick() == []
    assert "notes.txt" not in capfd.readouterr().err
    (folder / "twice.tsv").unlink()
    assert names(tables.tick()) == ["twice"]


def test_ten_thousand_tables_come_in_bounded_ticks(project: Projects, folder: Path) -> None:
    here = project()
    tables = Automation(here, "new_prompt_tables")
    for number in range(10_010):
        write(folder / f"table-{number:05}.csv", "")
    first, second = tables.tick(), tables.tick()
    assert (len(first), len(second)) == (50, 50)
    assert not {*names(first)} & {*names(second)}
    # Even with all of them seen the cursor stays below half a megabyte.
    assert tables.cursor is not None
    assert len(tables.cursor) / 100 * 10_000 < 500_000


# Dagster's own tags for partitions of two dimensions.
@pytest.mark.filterwarnings("ignore:Non-compliant tag keys:DeprecationWarning")
def test_dagster_itself_takes_what_is_asked_for(
    project: Projects, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It resolves partitions that the same tick adds, on an instance that lies on a disk."""
    here = project()
    monkeypatch.setenv("NANOBANANA_MAX_IMAGES_PER_DAY", "4")
    write(folder / "animals.csv")
    account = account_for(here.emulator.base_url, here.store)
    keep_prompts(here.store, "partly", prompts(3))
    launch(here.store, account, "partly", max_images=1)
    repository = defs.get_repository_def()
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        shared: dict[str, Any] = {
            "instance": instance,
            "resources": {"nanobanana": here.resources["nanobanana"]},
        }
        with dg.build_sensor_context(
            definitions=defs, instance_ref=instance.get_ref(), **shared
        ) as context:
            ticked = repository.get_sensor_def("new_prompt_tables").evaluate_tick(context)
        assert [r.partition_key for r in ticked.run_requests or ()] == ["animals"]
        with dg.build_schedule_context(
            scheduled_execution_time=NIGHT, repository_def=repository, **shared
        ) as night:
            found = repository.get_schedule_def("nightly").evaluate_tick(night).run_requests
        assert [r.partition_key for r in found or ()] == ["partly|1"]


def test_missing_settings_are_a_reason_and_no_failure(project: Projects) -> None:
    here = project()
    here.resources["nanobanana"] = NanobananaResource(s3=S3())
    for name in ("new_prompt_tables", "webhook_inbox", "rescue", "buy_new_prompt_sets", "nightly"):
        automation = Automation(here, name)
        assert automation.tick() == []
        assert "NANOBANANA_BUCKET" in automation.skipped


@pytest.mark.parametrize("kills", [1, 2])
def test_a_killed_run_is_rescued_without_buying(
    project: Projects, after: Callable[[timedelta], None], kills: int
) -> None:
    here = project(latency_seconds=(4, 4))
    here.make_prompt_set()
    for seed in range(1, kills + 1):
        made = planned(here.store, "demo", seed=seed)
        kill_once_accepted(here.store, here.emulator.base_url, made, before=3 * (seed - 1))
    sensor = Automation(here, "rescue")
    assert sensor.tick() == []
    after(timedelta(minutes=16))
    asked = sensor.tick()
    assert len(asked) == kills
    assert sensor.tick() == []
    for request in asked:
        assert run_job(here, "rescue_run", request).success
    assert states(here.store) == {State.SETTLED: 3 * kills}
    record = admin(here.emulator, "purchases")
    assert (record["total"], record["bought_twice"]) == (3 * kills, 0)
    for seed in range(1, kills + 1):
        current, _ = read_current(here.store, "demo", seed)
        assert current is not None
        assert current.cells == {"settled": 3}
    assert sensor.tick() == []
    assert json.loads(sensor.cursor or "") == {"after": "", "tried": {}}


def test_what_stays_open_is_tried_every_four_hours_for_a_day(
    project: Projects, after: Callable[[timedelta], None]
) -> None:
    here = project(moods={"lost_answer_after": 1.0})
    here.make_prompt_set()
    assert not here.generate().success
    sensor = Automation(here, "rescue")
    keys = []
    for hours in (1, 2, 5, 9, 13, 17, 21, 25, 49):
        after(timedelta(hours=hours))
        keys += [str(request.run_key).rpartition(":")[2] for request in sensor.tick()]
    assert keys == ["0", "1", "2", "3", "4", "5", "6"]
    assert list(json.loads(sensor.cursor or "")["tried"].values()) == [6]


def test_rescues_are_bounded_and_those_silent_longest_come_first(
    project: Projects, after: Callable[[timedelta], None]
) -> None:
    here = project()
    here.make_prompt_set()
    for number in range(12):
        planned(here.store, "demo", run_id=f"died-{number:02}")
    after(timedelta(hours=1))
    sensor = Automation(here, "rescue")
    assert [len(sensor.tick()), len(sensor.tick()), len(sensor.tick())] == [10, 2, 0]


def test_every_dead_run_has_its_turn(
    project: Projects, after: Callable[[timedelta], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = project()
    here.make_prompt_set()
    for number in range(7):
        planned(here.store, "demo", run_id=f"died-{number}")
    after(timedelta(hours=1))
    monkeypatch.setattr("dagster_nanobanana.automation.free_sensors.RUNS_A_TICK", 3)
    monkeypatch.setattr("dagster_nanobanana.automation.free_sensors.RESCUES_A_TICK", 2)
    sensor = Automation(here, "rescue")
    asked = [[str(each.run_key)[:6] for each in sensor.tick()] for _ in range(5)]
    assert asked == [["died-0", "died-1"], ["died-2"], ["died-3", "died-4"], ["died-5"], ["died-6"]]
    assert sensor.tick() == []


@pytest.mark.parametrize("name", ["rescue", "webhook_inbox"])
def test_a_tick_asks_s3_as_often_however_many_runs_have_ever_been(
    project: Projects,
    after: Callable[[timedelta], None],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    monkeypatch.setenv("NANOBANANA_WEBHOOK_URL", "http://127.0.0.1:9/")
    monkeypatch.setenv("NANOBANANA_WEBHOOK_SECRET", SECRET.get_secret_value())
    here = project(moods={"lost_answer_after": 1.0})
    here.make_prompt_set()
    for seed in (1, 2, 3):
        assert not here.generate(f"demo|{seed}").success
    calls: list[Calls] = []
    after(timedelta(hours=1))
    shifted = NanobananaResource.store

    def counting(self: NanobananaResource) -> ObjectStore:
        store = shifted(self)
        calls.append(Calls(store))
        return store

    monkeypatch.setattr(
        "dagster_nanobanana.automation.free_sensors.NanobananaResource.store", counting
    )

    def tick() -> Counter[tuple[str, str]]:
        Automation(here, name).tick()
        return calls.pop().take()

    few = tick()
    made = read_plan(here.store, list_unfinished(here.store)[0])
    for number in range(40):
        write_plan(here.store, replace(made, run_id=f"ended-{number:03}"))
        mark_done(here.store, f"ended-{number:03}", 3)
    assert tick() == few
    assert few["ListObjectsV2", "unfinished"] == 1
    # A run each, its mail or its signs of life.
    expected = {"rescue": ("runs", 3), "webhook_inbox": ("webhooks", 9)}[name]
    assert few["ListObjectsV2", expected[0]] == expected[1]
    assert sum(few.values()) == {"rescue": 4, "webhook_inbox": 1 + 3 * 3 + 9 + 9}[name]


def test_mail_is_looked_for_in_turn(project: Projects) -> None:
    here = project(moods={"lost_answer_after": 1.0})
    here.make_prompt_set()
    for seed in (1, 2, 3):
        assert not here.generate(f"demo|{seed}").success
    store, at = here.store, ("", "")
    told: list[set[tuple[str, str]]] = []
    for _ in range(8):
        doubts, at = fresh_doubts(store, at, runs=2, most=2)
        told.append({(doubt.run_id, doubt.request_key) for doubt in doubts})
    assert [len(each) for each in told] == [2, 2, 2, 2, 1, 2, 2, 2]
    assert len(set().union(*told[:5])) == 9
    # What cannot be read keeps nobody else waiting.
    store.put(run_plan_key(list_unfinished(store)[0]), b"damaged")
    assert len(fresh_doubts(store, ("", ""), runs=3, most=100)[0]) == 6


def test_mail_settles_a_doubt_and_the_same_mail_is_looked_at_once(
    project: Projects, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = project(moods={"lost_answer_after": 1.0})
    here.make_prompt_set()
    assert not here.generate().success
    inbox = Automation(here, "webhook_inbox")
    assert inbox.tick() == []
    assert "NANOBANANA_WEBHOOK_URL is not set" in inbox.skipped
    monkeypatch.setenv("NANOBANANA_WEBHOOK_URL", "http://127.0.0.1:9/")
    monkeypatch.setenv("NANOBANANA_WEBHOOK_SECRET", SECRET.get_secret_value())
    assert inbox.tick() == []
    assert "no mail for 3 requests" in inbox.skipped
    tell(here.emulator, "moods", lost_answer_after=0)
    doubt = find_doubts(here.store, None)[0]
    Inbox(here.store).put(attempt_id(doubt.request_key, doubt.nonce), b"nonsense")
    [asked] = inbox.tick()
    assert run_job(here, "resolve_doubts", asked).success
    assert states(here.store) == {State.IN_DOUBT: 3}
    assert inbox.tick() == []
    for doubt in find_doubts(here.store, None):
        sold = admin(here.emulator, "purchases")["groups"]
        name = attempt_id(doubt.request_key, doubt.nonce)
        ids = [
            provider_id
            for group in sold
            for provider_id, track_id in zip(group["ids"], group["track_ids"], strict=True)
            if track_id.startswith(name)
        ]
        body = {"status": "success", "id": ids[0], "track_id": name}
        Inbox(here.store).put(name, json.dumps(body).encode())
    [asked] = inbox.tick()
    assert run_job(here, "resolve_doubts", asked).success
    assert states(here.store) == {State.SETTLED: 3}
    assert bought(here)["total"] == 3


def test_a_failed_run_is_summed_up_in_its_tags_and_on_its_partition(
    project: Projects, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NANOBANANA_PRICE_PER_IMAGE", "0.05")
    here = project(moods={"lost_answer_after": 1.0})
    here.make_prompt_set()
    failed = here.generate()
    assert not failed.success
    [logged] = here.instance.all_logs(failed.run_id, of_type=dg.DagsterEventType.RUN_FAILURE)
    failure = logged.get_dagster_event()
    run = here.instance.get_run_by_id(failed.run_id)
    assert run is not None
    with dg.build_run_status_sensor_context(
        "run_summary",
        failure,
        here.instance,
        run,
        resources={"nanobanana": here.resources["nanobanana"]},
    ).for_run_failure() as context:
        run_summary(context)
    told = here.instance.get_run_by_id(failed.run_id)
    assert told is not None
    assert told.tags["nanobanana/settled"] == "0 of 3"
    assert told.tags["nanobanana/in_doubt"] == "3"
    assert told.tags["nanobanana/cost"] == "0.15"
    [observed] = here.instance.fetch_observations(
        dg.AssetRecordsFilter(dg.AssetKey("generated_images"), asset_partitions=["demo|1"]),
        limit=1,
    ).records
    event = observed.event_log_entry.dagster_event
    assert event is not None
    said = str(event.asset_observation_data.asset_observation.description)
    assert "0 of 3 requests are settled; 0 bought and not brought yet; 3 in doubt" in said


def test_new_prompt_sets_are_bought_once_under_each_seed_and_never_without_a_cap(
    project: Projects, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = project()
    here.make_prompt_set("before")
    here.instance.add_dynamic_partitions(str(seeds.name), ["2", "1", "0"])
    sensor = Automation(here, "buy_new_prompt_sets")
    assert sensor.tick() == []
    assert "no cap on a day" in sensor.skipped
    monkeypatch.setenv("NANOBANANA_MAX_IMAGES_PER_DAY", "4")
    assert sensor.tick() == []
    here.make_prompt_set("new")
    asked = sensor.tick()
    assert names(asked) == ["new|1", "new|2"]
    assert sensor.tick() == []
    here.make_prompt_set("new")
    assert sensor.tick() == []
    for request in asked:
        ops = {
            "generated_images": {
                "config": SMALL | request.run_config["ops"]["generated_images"]["config"]
            }
        }
        here.run(generated_images, str(request.partition_key), ops)
    # The cap holds in the engine, whatever was asked for.
    assert bought(here)["total"] == 4
    here.make_prompt_set("new", "id,prompt\na,a heron\n")
    assert names(sensor.tick()) == ["new|1", "new|2"]


def test_seeds_that_only_a_top_up_has_drawn_under_are_not_bought(
    project: Projects, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = project()
    monkeypatch.setenv("NANOBANANA_MAX_IMAGES_PER_DAY", "100")
    account = account_for(here.emulator.base_url, here.store)
    for name, seed in (("demo", 1), ("cats.top-up.demo.0123456789ab", 1)):
        keep_prompts(here.store, name, ["a fox"])
        launch(here.store, account, name, seed=seed)
    keep_prompts(here.store, "cats.top-up.demo.ba9876543210", ["a fox"])
    launch(here.store, account, "cats.top-up.demo.ba9876543210", seed=2)
    # Nothing was drawn under 3 yet: somebody has added it.
    here.instance.add_dynamic_partitions(str(seeds.name), ["1", "2", "3"])
    sensor = Automation(here, "buy_new_prompt_sets")
    assert sensor.tick() == []
    here.make_prompt_set("new")
    assert names(sensor.tick()) == ["new|1", "new|3"]


def test_what_spends_ships_stopped_and_what_saves_ships_running() -> None:
    repository = defs.get_repository_def()
    running = {s.name for s in repository.sensor_defs if s.default_status.value == "RUNNING"}
    running |= {s.name for s in repository.schedule_defs if s.default_status.value == "RUNNING"}
    assert running == {"webhook_inbox", "rescue", "run_summary", "weekly_audit"}
    described = {s.name: s.description or "" for s in repository.sensor_defs}
    described |= {s.name: s.description or "" for s in repository.schedule_defs}
    assert all(described.values())
    paid = {name for name, text in described.items() if "Costs money" in text}
    assert paid == {"nightly", "buy_new_prompt_sets"}
    assert all("NANOBANANA_MAX_IMAGES_PER_DAY" in described[name] for name in paid)
