"""What runs tell of themselves: in the bucket, as OpenLineage's own schemas want it."""

import io
import json
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import requests
import yaml

from nanobanana_pipeline.bucket_keys import run_alive_key, run_plan_key, unfinished_key
from nanobanana_pipeline.cli import generate as generating
from nanobanana_pipeline.emulator import EmulatorThread
from nanobanana_pipeline.errors import PlanError, StorageUnavailable
from nanobanana_pipeline.features.table import refresh_features
from nanobanana_pipeline.generation.manifest.manifest import read_current
from nanobanana_pipeline.lineage.openlineage import facets, recorder
from nanobanana_pipeline.lineage.openlineage.facts import Dataset, EventType, RunFacts, dataset
from nanobanana_pipeline.lineage.openlineage.recorder import record_run
from nanobanana_pipeline.storage import ObjectStore, s3_client
from tests.cli.conftest import Command, emulator, nanobanana, table
from tests.later import later
from tests.lineage.openlineage.schemas import Event, check_event, events_of, ours, states_of

__all__ = ["emulator", "nanobanana", "table"]

SECRET = "hunter2-must-stay-secret"


def facets_of(dataset: Event) -> set[str]:
    more = dataset.get("inputFacets", {}) | dataset.get("outputFacets", {})
    return {*dataset["facets"], *more}


def test_a_bought_partition_tells_where_everything_came_from(
    nanobanana: Command, table: Path, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NANOBANANA_PRICE_PER_IMAGE", "0.04")
    assert nanobanana("generate", table, "--seeds", "7").exit_code == 0
    current, _ = read_current(store, "animals", 7)
    assert current is not None

    start, complete = events_of(store, job="prompt_set")
    assert states_of([start, complete]) == ["START", "COMPLETE"]
    assert start["run"]["runId"] == complete["run"]["runId"]
    assert [(d["namespace"], d["name"]) for d in start["inputs"]] == [("file", str(table))]
    [prompts] = complete["outputs"]
    assert (prompts["namespace"], prompts["name"]) == (
        f"s3://{store.bucket}",
        f"{store.prefix}prompt_sets/animals",
    )
    assert prompts["facets"]["version"]["datasetVersion"] == current.fingerprint
    assert "width" in {field["name"] for field in prompts["facets"]["schema"]["fields"]}
    assert ours(complete)["rows"] == {"good": 2, "quarantined": 0}

    start, running, complete = events_of(store, current.run_id, "generated_images")
    assert states_of([start, running, complete]) == ["START", "RUNNING", "COMPLETE"]
    for event in (start, running, complete):
        [read] = event["inputs"]
        assert (read["name"], read["facets"]["version"]["datasetVersion"]) == (
            prompts["name"],
            current.fingerprint,
        )
        assert ours(event)["partition"] == "animals|7"
    assert ours(running)["requests"]["toBuy"] == 2
    assert ours(running)["cost"] == {"expected": "0.08", "perImage": "0.04"}
    assert ours(complete)["requests"]["byState"] == {"settled": 2}
    assert ours(complete)["cells"] == {"settled": 2}
    assert ours(complete)["images"] == {"bought": 2, "stored": 2, "inManifest": 2}
    assert ours(complete)["cost"] == {"spent": "0.08", "perImage": "0.04"}
    manifest, pictures = complete["outputs"]
    assert manifest["name"] == f"{store.prefix}manifests/animals/seed=7"
    assert manifest["facets"]["version"]["datasetVersion"] in current.manifest
    assert facets_of(manifest) == {
        "version",
        "schema",
        "columnLineage",
        "dataQualityMetrics",
        "dataQualityAssertions",
        "outputStatistics",
    }
    [check] = manifest["facets"]["dataQualityAssertions"]["assertions"]
    assert (check["assertion"], check["success"]) == ("all_cells_accounted_for", True)
    lineage = manifest["facets"]["columnLineage"]["fields"]
    assert [f["field"] for f in lineage["prompt"]["inputFields"]] == ["prompt"]
    assert {f["field"] for f in lineage["image_sha256"]["inputFields"]} == {
        "prompt",
        "width",
        "height",
    }
    assert {f["name"] for f in lineage["image_uri"]["inputFields"]} == {prompts["name"]}
    assert pictures["name"] == f"{store.prefix}images"
    assert pictures["outputFacets"]["outputStatistics"]["size"] == current.size


def test_columns_that_decide_no_picture_are_no_origin_of_it(
    nanobanana: Command, tmp_path: Path, store: ObjectStore
) -> None:
    table = tmp_path / "animals.csv"
    table.write_text(
        "prompt,seed,width,height,samples,temp,base64,track_id,mood\n"
        "a fox,3,1024,1024,1,yes,no,mine,calm\n"
    )
    assert nanobanana("generate", table, "--seeds", "1").exit_code == 0
    [*_, complete] = events_of(store, job="generated_images")
    fields = complete["outputs"][0]["facets"]["columnLineage"]["fields"]
    for name in ("request_key", "image_sha256", "state"):
        origins = {f["field"] for f in fields[name]["inputFields"]}
        assert origins == {"prompt", "seed", "width", "height", "samples"}


def test_every_column_that_lineage_names_is_there(
    nanobanana: Command, table: Path, store: ObjectStore
) -> None:
    nanobanana("generate", table, "--seeds", "1")
    [*_, complete] = events_of(store, job="generated_images")
    [prompts], [manifest, _] = complete["inputs"], complete["outputs"]
    columns = {field["name"] for field in manifest["facets"]["schema"]["fields"]}
    asked = {field["name"] for field in prompts["facets"]["schema"]["fields"]}
    fields = manifest["facets"]["columnLineage"]["fields"]
    current, _ = read_current(store, "animals", 1)
    assert current is not None
    stored = store.get(current.manifest)
    assert stored is not None
    assert columns == set(pq.read_schema(io.BytesIO(stored.body)).names)
    assert set(fields) <= columns
    assert {f["field"] for origin in fields.values() for f in origin["inputFields"]} <= asked


def test_missing_cells_are_a_failure_that_says_what_to_do(
    nanobanana: Command, table: Path, store: ObjectStore, emulator: EmulatorThread
) -> None:
    moods = f"{emulator.root_url}/admin/moods"
    requests.post(moods, json={"http_500_after": 1.0}, timeout=10)
    assert nanobanana("generate", table, "--seeds", "7").exit_code == 1
    *_, fail = events_of(store, job="generated_images")
    assert fail["eventType"] == "FAIL"
    assert "2 in doubt" in fail["run"]["facets"]["errorMessage"]["message"]
    assert ours(fail)["cells"] == {"in_doubt": 2}
    assert "cost" not in ours(fail) or "spent" not in ours(fail)["cost"], "unknown is not 0"
    [check] = fail["outputs"][0]["facets"]["dataQualityAssertions"]["assertions"]
    assert (check["success"], check["actual"]) == (False, "2")

    assert nanobanana("doubts", "resolve").exit_code == 1
    start, complete = events_of(store, job="resolve_doubts")
    assert states_of([start, complete]) == ["START", "COMPLETE"]
    assert ours(complete)["action"] == "look"
    assert ours(complete)["requests"] == {"chosen": 2, "left": 2, "bought": 0}
    assert complete["outputs"][0]["name"] == f"{store.prefix}manifests/animals/seed=7"


def test_a_launch_that_is_refused_fails_with_its_own_words(
    nanobanana: Command, table: Path, store: ObjectStore
) -> None:
    nanobanana("generate", table, "--seeds", "1")
    result = nanobanana("generate", table, "--seeds", "1", "--param", "noise_clip_std=1")
    assert result.exit_code == 2
    *_, start, fail = events_of(store, job="generated_images")
    assert sorted(states_of([start, fail])) == ["FAIL", "START"] or start["run"] != fail["run"]
    [told] = [e for e in events_of(store) if e["eventType"] == "FAIL"]
    assert "change_parameters" in told["run"]["facets"]["errorMessage"]["message"]
    assert told["outputs"] == []


def test_a_table_without_a_good_row_fails_and_names_the_table(
    nanobanana: Command, tmp_path: Path, store: ObjectStore
) -> None:
    bad = tmp_path / "bad.csv"
    bad.write_text("id,prompt\n1,\n")
    assert nanobanana("generate", bad, "--seeds", "1").exit_code == 2
    start, fail = events_of(store)
    assert states_of([start, fail]) == ["START", "FAIL"]
    assert fail["inputs"][0]["name"] == str(bad)


@pytest.mark.parametrize(
    ("raised", "state", "said"),
    [
        (PlanError("no room"), "FAIL", "no room"),
        (RuntimeError(SECRET), "FAIL", "RuntimeError"),
        (KeyboardInterrupt(), "ABORT", "KeyboardInterrupt"),
    ],
)
def test_what_is_raised_is_told_and_goes_on(
    store: ObjectStore, raised: BaseException, state: str, said: str
) -> None:
    with (
        pytest.raises(type(raised)),
        record_run(store, "generated_images", "r", lambda: RunFacts(facet={"seed": 3})),
    ):
        raise raised
    start, end = events_of(store, "r")
    assert states_of([start, end]) == ["START", state]
    assert end["run"]["facets"]["errorMessage"]["message"] == said
    assert ours(end)["seed"] == 3
    assert SECRET not in json.dumps(end)
    assert recorder.was_stopped(store, "generated_images", "r") is (state == "ABORT")


def test_steps_of_one_run_at_once_lose_no_event(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    # SeaweedFS lets those who lose a race for one key wait for seconds.
    monkeypatch.setattr(recorder, "WRITE_SECONDS", 120.0)

    def step(number: int) -> None:
        with record_run(store, f"datasets.{number}", "shared", RunFacts):
            pass

    steps = [threading.Thread(target=step, args=(n,)) for n in range(8)]
    for thread in steps:
        thread.start()
    for thread in steps:
        thread.join()
    found = events_of(store, "shared")
    assert len(found) == 16
    for number in range(8):
        mine = [e for e in found if e["job"]["name"] == f"datasets.{number}"]
        assert states_of(mine) == ["START", "COMPLETE"]
        assert len({e["run"]["runId"] for e in mine}) == 1
    assert len({e["run"]["runId"] for e in found}) == 8
    assert len(list(store.keys("lineage/"))) == 1


def test_a_step_after_midnight_goes_on_with_its_runs_file(store: ObjectStore) -> None:
    now = datetime.now(UTC)
    for days, line in enumerate(['{"a":1}', '{"b":2}', '{"c":3}']):
        key = recorder._file_key(store, now + timedelta(days=days), "long")
        recorder._append(store, key, line)
    [key] = store.keys("lineage/")
    assert key == f"lineage/{now.date().isoformat()}/long.ndjson"
    stored = store.get(key)
    assert stored is not None
    assert stored.body == b'{"a":1}\n{"b":2}\n{"c":3}\n'


def test_the_step_that_starts_a_run_looks_for_no_file_and_a_later_step_looks_once(
    store: ObjectStore,
) -> None:
    looked: list[str] = []

    def note(params: dict[str, str], **_: object) -> None:
        looked.append(params["Key"])

    events = store.client.meta.events
    events.register("provide-client-params.s3.HeadObject", note)
    try:
        with record_run(store, "prompt_set", "r", RunFacts, ends=False) as recording:
            recording.emit_running(RunFacts)
        assert looked == []
        with record_run(store, "prompt_set", "r", RunFacts, starts=False) as recording:
            recording.emit_running(RunFacts)
        assert len(looked) == 1
    finally:
        events.unregister("provide-client-params.s3.HeadObject", note)
    assert states_of(events_of(store)) == ["START", "RUNNING", "RUNNING", "COMPLETE"]


def test_an_answer_that_is_lost_writes_no_line_twice(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = {"create", "update"}

    for verb in tuple(lost):
        real = getattr(store, verb)

        def silent(*given: object, real: object = real, verb: str = verb, **more: object) -> object:
            assert callable(real)
            answer = real(*given, **more)
            if verb in lost:
                lost.remove(verb)
                raise StorageUnavailable("no answer")
            return answer

        monkeypatch.setattr(store, verb, silent)
    with record_run(store, "generated_images", "r", RunFacts):
        pass
    assert lost == set()
    assert states_of(events_of(store, "r")) == ["START", "COMPLETE"]


def test_a_run_goes_on_where_its_lineage_cannot(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> RunFacts:
        raise ZeroDivisionError

    missing = ObjectStore(s3_client(), "no-such-bucket")
    with record_run(missing, "generated_images", "r", broken) as recording:
        recording.set_facts(broken)
        done = True
    assert done
    said = [record.message for record in caplog.records if record.name == recorder.__name__]
    assert any("NANOBANANA_BUCKET" in text for text in said), said
    assert any("ZeroDivisionError" in text for text in said)

    monkeypatch.setattr(recorder, "WRITE_SECONDS", 0.05)
    stuck = threading.Event()
    monkeypatch.setattr(store, "create", lambda *_given, **_more: stuck.wait(20))
    with record_run(store, "generated_images", "r", RunFacts):
        pass
    assert "did not take START" in caplog.text
    stuck.set()


@pytest.mark.parametrize(
    ("origin", "url"),
    [
        (f"https://me:{SECRET}@example.org/team/code.git", "https://example.org/team/code.git"),
        ("git@example.org:team/code.git", "ssh://example.org/team/code.git"),
    ],
)
def test_the_code_is_named_by_its_commit_and_no_token(
    tmp_path: Path, origin: str, url: str
) -> None:
    git = tmp_path / ".git"
    (git / "refs" / "heads").mkdir(parents=True)
    (git / "HEAD").write_text("ref: refs/heads/main\n")
    (git / "refs" / "heads" / "main").write_text("0" * 40)
    (git / "config").write_text(f'[remote "origin"]\n\turl = {origin}\n')
    found = facets._source_location(tmp_path)
    assert found is not None
    assert (found.url, found.repoUrl, found.version) == (url, url, "0" * 40)
    event = facets.run_event(EventType.START, datetime.now(UTC), "prompt_set", "r", RunFacts())
    assert event.job.facets is not None
    event.job.facets["sourceCodeLocation"] = found
    check_event(json.loads(facets.as_line(event)))


@pytest.mark.parametrize("origin", ["/work/code", "../code", "./a:b"])
def test_an_origin_that_is_a_folder_names_no_code(tmp_path: Path, origin: str) -> None:
    git = tmp_path / ".git"
    git.mkdir()
    (git / "HEAD").write_text("0" * 40)
    (git / "config").write_text(f'[remote "origin"]\n\turl = {origin}\n')
    assert facets._source_location(tmp_path) is None


def test_a_url_with_a_password_gives_a_dataset_without() -> None:
    told = RunFacts(inputs=(Dataset(f"https://me:{SECRET}@example.org/t.csv?token={SECRET}"),))
    line = facets.as_line(
        facets.run_event(EventType.START, datetime.now(UTC), "prompt_set", "r", told)
    )
    assert SECRET not in line
    check_event(json.loads(line))


def test_columns_of_any_kind_are_described() -> None:
    kinds = pa.schema([("a", pa.list_(pa.int8())), ("b", pa.decimal128(5, 2))])
    columns = {column.name: (str(column.type), "") for column in kinds}
    told = RunFacts(outputs=(dataset("s3://b/t", version="1", columns=columns),))
    event = facets.run_event(EventType.COMPLETE, datetime.now(UTC), "prompt_set", "r", told)
    check_event(json.loads(facets.as_line(event)))


def test_a_release_names_what_it_was_built_from(
    nanobanana: Command, table: Path, tmp_path: Path, store: ObjectStore
) -> None:
    nanobanana("generate", table, "--seeds", "1-2")
    for seed in (1, 2):
        refresh_features(store, "animals", seed)
    recipe = tmp_path / "animals.yaml"
    said = {"name": "animals", "description": "Two.", "prompt_sets": ["animals"], "seeds": [1, 2]}
    recipe.write_text(yaml.safe_dump({**said, "licence": "CC0-1.0"}))
    for _ in range(2):
        result = nanobanana("release", "build", recipe)
        assert result.exit_code == 0, result.output
        start, complete = events_of(store, job="datasets.animals")[-2:]
        assert sorted(states_of([start, complete])) == ["COMPLETE", "START"]
    told = [e for e in events_of(store, job="datasets.animals") if e["eventType"] == "COMPLETE"]
    assert len(told) == 2
    for complete in told:
        names = {d["name"].removeprefix(store.prefix) for d in complete["inputs"]}
        assert names == {
            f"{kind}/animals/seed={seed}" for kind in ("manifests", "features") for seed in (1, 2)
        }
        [made] = complete["outputs"]
        assert made["name"] == f"{store.prefix}datasets/animals"
        assert made["facets"]["version"]["datasetVersion"] == "v1"
        lineage = made["facets"]["columnLineage"]["fields"]
        assert {f["name"].split("/")[-3] for f in lineage["phash"]["inputFields"]} == {"features"}
        assert {f["field"] for f in lineage["prompt"]["inputFields"]} == {"prompt"}
        assert json.loads(complete["job"]["facets"]["sourceCode"]["sourceCode"])["seeds"] == [1, 2]
        assert ours(complete)["images"] == {"inRelease": 4}


def test_a_run_that_was_killed_is_declared_dead_once(store: ObjectStore) -> None:
    """Nothing is written for a run that ended by itself, or that nobody knows."""
    killed = recorder.Recording(store, "generated_images", "killed", RunFacts, None)
    killed.emit(EventType.START)
    with record_run(store, "generated_images", "ended", RunFacts):
        pass
    for run_id in ("killed", "ended", "unknown", "killed"):
        recorder.record_expired_run(store, "generated_images", run_id)
    assert states_of(events_of(store, "killed")) == ["START", "ABORT"]
    assert "died" in events_of(store, "killed")[-1]["run"]["facets"]["errorMessage"]["message"]
    assert states_of(events_of(store, "ended")) == ["START", "COMPLETE"]
    assert not any(recorder.was_stopped(store, "generated_images", r) for r in ("killed", "ended"))
    assert events_of(store, "unknown") == []


def test_the_next_command_ends_the_record_of_one_that_was_killed(
    nanobanana: Command, table: Path, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once it is sure that nothing of it lives."""
    for run_id in ("killed", "alive"):
        recorder.Recording(store, "generated_images", run_id, RunFacts, None).emit(EventType.START)
        for key in (run_plan_key(run_id), run_alive_key(run_id, "0"), unfinished_key(run_id)):
            store.put(key, b"{}")
    after = later(store, timedelta(minutes=16), young=lambda key: key.startswith("runs/alive/"))
    monkeypatch.setattr(generating, "open_bucket", lambda _settings: after)
    assert nanobanana("generate", table, "--seeds", "7").exit_code == 0
    assert states_of(events_of(store, "killed")) == ["START", "ABORT"]
    assert states_of(events_of(store, "alive")) == ["START"]
