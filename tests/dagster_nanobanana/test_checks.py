"""Checks that can be run at any time, on an ephemeral instance and a real bucket."""

import io
import json
from collections.abc import Callable, Sequence
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dagster_nanobanana.assets.generated_images import generated_images
from dagster_nanobanana.assets.image_features import image_features
from dagster_nanobanana.assets.prompt_set import prompt_set
from dagster_nanobanana.checks import asset_checks
from dagster_nanobanana.jobs.check_partition import check_images
from nanobanana_pipeline.features.table import FEATURE_COLUMNS, read_current_features, read_features
from nanobanana_pipeline.generation.manifest.manifest import read_current
from nanobanana_pipeline.ledger import Ledger
from nanobanana_pipeline.storage import ObjectStore
from nanobanana_pipeline.storage.versioned import packed, write_table
from tests.dagster_nanobanana.conftest import SMALL, Project
from tests.launching import bought, entries

Projects = Callable[..., Project]
Evaluations = dict[str, dg.AssetCheckEvaluation]

NAMES = {
    "audit",
    "none_in_doubt",
    "within_budget",
    "sizes_as_asked",
    "no_blank_pictures",
    "seed_honesty",
}
IMAGES_NAMES = {"cells", "audit", "none_in_doubt", "within_budget"}


def run_checks(project: Project, key: str = "demo|1") -> Evaluations:
    """Run the checks of a partition, and nothing else."""
    before = bought(project.emulator)
    here = dg.Definitions(
        assets=[prompt_set, generated_images, image_features],
        asset_checks=asset_checks.checks,
        jobs=[check_images],
        resources=project.resources,
    )
    job = here.resolve_job_def("check_images")
    result = job.execute_in_process(partition_key=key, instance=project.instance)
    assert result.success
    assert not [event for event in result.all_events if event.is_step_materialization]
    assert bought(project.emulator) == before
    found = {each.check_name: each for each in result.get_asset_check_evaluations()}
    assert set(found) == NAMES
    assert {str(each.partition) for each in found.values()} == {key}
    return found


def make(project: Project, key: str = "demo|1", **config: Any) -> None:
    """Buy and measure a partition."""
    assert project.generate(key, config={**SMALL, **config}).success
    assert project.run(image_features, key, {}).success


def rows(check: dg.AssetCheckEvaluation, name: str) -> list[dict[str, Any]]:
    table = check.metadata[name]
    assert isinstance(table, dg.TableMetadataValue)
    return [dict(record.data) for record in table.records]


def addresses(check: dg.AssetCheckEvaluation) -> dict[str, str]:
    told = value(check, "addresses")
    assert isinstance(told, dict)
    return told


def value(check: dg.AssetCheckEvaluation, name: str) -> Any:
    return check.metadata[name].value


def failed(found: Evaluations) -> set[str]:
    return {name for name, check in found.items() if not check.passed}


def test_good_partitions_pass_and_every_check_has_looked(project: Projects) -> None:
    here = project()
    here.make_prompt_set()
    make(here, "demo|1", samples=2)
    make(here, "demo|2", samples=2)
    found = run_checks(here)
    assert failed(found) == set()
    assert {name: check.description for name, check in found.items() if check.description} == {}
    # A table of nothing says nothing.
    tables = {dg.TableMetadataValue, type(None)}
    assert not [c for c in found.values() for v in c.metadata.values() if type(v) in tables]
    assert value(found["audit"], "images read") == 6
    assert value(found["within_budget"], "images counted") == 6
    assert value(found["within_budget"], "cap of the partition") == "no cap"
    assert value(found["sizes_as_asked"], "looked at") == 6
    assert value(found["no_blank_pictures"], "looked at") == 6
    honesty = found["seed_honesty"]
    assert (value(honesty, "prompts compared"), value(honesty, "other seeds")) == (3, "2")


def test_what_was_never_made_says_so(project: Projects) -> None:
    here = project()
    here.make_prompt_set()
    here.instance.add_dynamic_partitions("seed", ["9"])
    found = run_checks(here, "demo|9")
    assert failed(found) == set()
    for name, check in found.items():
        assert "Nothing was looked at" in str(check.description), name
    here.generate()
    found = run_checks(here)
    unmeasured = {name for name, check in found.items() if check.description}
    assert unmeasured == {"sizes_as_asked", "no_blank_pictures", "seed_honesty"}


def test_what_disagrees_is_named_with_what_to_do(project: Projects) -> None:
    here = project()
    here.make_prompt_set()
    here.generate()
    here.generate("demo|2")
    [image] = next(e.images for e in entries(here.store) if e.request["seed"] == 1)
    here.store.put(image.key, b"no picture")
    found = run_checks(here)
    assert failed(found) == {"audit"}
    assert found["audit"].severity == dg.AssetCheckSeverity.ERROR
    [row] = rows(found["audit"], "findings")
    assert (row["kind"], row["key"]) == ("image_damaged", image.key)
    assert "restore it" in row["what is wrong, and what to do"]
    assert run_checks(here, "demo|2")["audit"].passed


def test_cells_in_doubt_are_named_until_somebody_gives_them_up(project: Projects) -> None:
    here = project(moods={"lost_answer_after": 1.0})
    here.make_prompt_set()
    assert not here.generate().success
    found = run_checks(here)
    assert failed(found) == {"none_in_doubt"}
    check = found["none_in_doubt"]
    assert check.severity == dg.AssetCheckSeverity.WARN
    assert {row["prompt"] for row in rows(check, "cells")} == {"a fox", "a whale", "a kite"}
    assert all(row["cause"] for row in rows(check, "cells"))
    assert (value(check, "in_doubt"), value(check, "lost")) == (3, 0)
    ledger = Ledger(here.store)
    for entry in entries(here.store)[:2]:
        held = ledger.read(entry.request_key)
        assert held is not None
        nonce = entry.attempts[0].nonce
        ledger.apply(held, lambda e, nonce=nonce: e.abandon(nonce, "enough"))  # type: ignore[misc]
    assert value(run_checks(here)["none_in_doubt"], "in_doubt") == 1


def test_cells_that_a_cap_holds_back_are_named_and_overspending_fails(
    project: Projects, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = project()
    here.make_prompt_set()
    assert not here.generate(config={**SMALL, "max_images": 2}).success
    check = run_checks(here)["within_budget"]
    assert (check.passed, check.severity) == (False, dg.AssetCheckSeverity.WARN)
    [row] = rows(check, "cells")
    assert row["state"] == "over_budget"
    assert here.generate(config={}).success
    assert run_checks(here)["within_budget"].passed
    monkeypatch.setenv("NANOBANANA_MAX_IMAGES_PER_PARTITION", "2")
    check = run_checks(here)["within_budget"]
    assert (check.passed, check.severity) == (False, dg.AssetCheckSeverity.ERROR)
    assert (value(check, "images counted"), value(check, "cap of the partition")) == (3, "2 images")


def test_pictures_of_another_size_are_named(project: Projects) -> None:
    """A picture that comes in another size is refused: so it is the manifest that is changed."""
    here = project()
    here.make_prompt_set(csv="id,prompt,width\na,a fox,\nb,a whale,1024\n")
    make(here)
    key = "manifests/demo/seed=1/current.json"
    current = here.store.get(key)
    assert current is not None
    said = json.loads(current.body)
    said["parameters"]["width"] = 1056
    here.store.put(key, json.dumps(said).encode())
    found = run_checks(here)
    assert failed(found) == {"sizes_as_asked"}
    # The other row asks for its own width.
    [row] = rows(found["sizes_as_asked"], "pictures")
    assert (row["prompt"], row["asked"], row["width"]) == ("a fox", "1056×1024", 1024)
    assert addresses(found["sizes_as_asked"])[row["image"]].startswith(here.store.uri("images/"))


def test_a_stored_picture_of_another_size_is_named(project: Projects) -> None:
    """Had one slipped in, its manifest would name it and its features would tell its size."""
    here = project()
    here.make_prompt_set()
    make(here, "demo|1")
    make(here, "demo|2", width=1056)
    assert failed(run_checks(here)) == set()
    small, large = (read_current(here.store, "demo", seed)[0] for seed in (1, 2))
    assert small is not None
    assert large is not None
    table, other = (stored_table(here.store, each.manifest) for each in (small, large))
    names = [other["image_sha256"][0].as_py(), *table["image_sha256"].to_pylist()[1:]]
    column = table.schema.get_field_index("image_sha256")
    changed = table.set_column(column, table.schema.field(column), pa.array(names))
    write_table(here.store, small.manifest, packed(changed))
    assert here.run(image_features, "demo|1", {}).success
    check = run_checks(here)["sizes_as_asked"]
    assert not check.passed
    [row] = rows(check, "pictures")
    told = (row["prompt"], row["asked"], row["width"], row["height"])
    assert told == (table["prompt"][0].as_py(), "1024×1024", 1056, 1024)
    assert value(check, "looked at") == 3


def test_blank_and_broken_pictures_are_named(project: Projects) -> None:
    here = project()
    here.make_prompt_set()
    make(here)
    change_features(here.store, blank=[True, False, False], error=[None, "cut off", None])
    found = run_checks(here)
    assert failed(found) == {"no_blank_pictures"}
    named = rows(found["no_blank_pictures"], "pictures")
    assert {row["why"] for row in named} == {"blank", "cut off"}
    told = addresses(found["no_blank_pictures"])
    assert all(told[row["image"]].startswith(here.store.uri("images/")) for row in named)


def test_a_provider_that_ignores_seeds_is_found_out(project: Projects) -> None:
    here = project(moods={"seed_ignored": 1.0})
    here.make_prompt_set()
    make(here, "demo|1")
    lonely = run_checks(here)["seed_honesty"]
    assert lonely.passed
    assert "no prompt has two pictures" in str(lonely.description)
    make(here, "demo|2")
    for key, other in (("demo|1", 2), ("demo|2", 1)):
        found = run_checks(here, key)
        assert failed(found) == {"seed_honesty"}
        check = found["seed_honesty"]
        assert (value(check, "share"), value(check, "prompts with twins")) == (1.0, 3)
        twins = rows(check, "twins")
        assert {row["prompt"] for row in twins} == {"a fox", "a whale", "a kite"}
        assert {row["other_seed"] for row in twins} == {other}
        told = addresses(check)
        for row in twins:
            assert told[row["image"]].startswith(here.store.uri("images/"))
            assert told[row["other"]].startswith(here.store.uri("images/"))


def test_a_row_with_a_seed_of_its_own_is_rightly_the_same_everywhere(project: Projects) -> None:
    here = project()
    here.make_prompt_set(csv="id,prompt,seed\na,a fox,5\nb,a whale,\n")
    make(here, "demo|1")
    make(here, "demo|2")
    check = run_checks(here)["seed_honesty"]
    assert check.passed
    assert value(check, "prompts compared") == 1


def test_samples_of_one_request_that_look_alike_are_found_out(project: Projects) -> None:
    here = project()
    here.make_prompt_set()
    make(here, samples=2)
    assert run_checks(here)["seed_honesty"].passed
    change_features(here.store, phash=["00ff00ff00ff00ff"] * 6)
    check = run_checks(here)["seed_honesty"]
    assert not check.passed
    assert {(row["sample"], row["other_sample"]) for row in rows(check, "twins")} == {(0, 1)}
    assert value(check, "other seeds") == "none"


def test_rows_in_quarantine_are_named(project: Projects) -> None:
    here = project()

    only = dg.AssetSelection.checks(asset_checks.quarantine_empty)
    definitions = dg.Definitions(
        assets=[prompt_set],
        asset_checks=[asset_checks.quarantine_empty],
        jobs=[dg.define_asset_job("look", only)],
        resources=here.resources,
    )

    def checked() -> dg.AssetCheckEvaluation:
        result = definitions.resolve_job_def("look").execute_in_process(
            tags={"dagster/partition": "demo"}, instance=here.instance
        )
        [found] = result.get_asset_check_evaluations()
        assert found.partition == "demo"
        return found

    here.instance.add_dynamic_partitions("prompt_set", ["demo"])
    assert "never made" in str(checked().description)
    here.make_prompt_set(csv="id,prompt,width\na,a fox,1024\nb,,1024\nc,a kite,999\n")
    found = checked()
    assert (found.passed, found.severity) == (False, dg.AssetCheckSeverity.WARN)
    named = rows(found, "quarantine")
    assert [(row["row"], row["column"]) for row in named] == [(2, "prompt"), (3, "width")]
    assert all(row["reason"] for row in named)
    here.make_prompt_set()
    assert checked().passed


def test_they_run_beside_the_asset_in_one_run(project: Projects) -> None:
    here = project()
    here.make_prompt_set()
    here.instance.add_dynamic_partitions("seed", ["1"])
    result = dg.materialize(
        [prompt_set, generated_images, image_features, *asset_checks.checks],
        selection=dg.AssetSelection.assets(generated_images, image_features),
        partition_key="demo|1",
        instance=here.instance,
        resources=here.resources,
        run_config={"ops": {"generated_images": {"config": SMALL}}},
    )
    assert result.success
    found = {each.check_name: each.passed for each in result.get_asset_check_evaluations()}
    assert found == dict.fromkeys({*NAMES, "cells"}, True)


def test_a_partition_that_fails_has_been_checked(project: Projects) -> None:
    """Dagster skips the checks' own steps, and would show them as failed themselves."""
    here = project(moods={"wrong_size": 1.0})
    here.make_prompt_set()
    here.instance.add_dynamic_partitions("seed", ["1"])
    result = dg.materialize(
        [prompt_set, generated_images, image_features, *asset_checks.checks],
        selection=dg.AssetSelection.assets(generated_images, image_features),
        partition_key="demo|1",
        instance=here.instance,
        resources=here.resources,
        run_config={"ops": {"generated_images": {"config": SMALL}}},
        raise_on_error=False,
    )
    assert not result.success
    assert not [event for event in result.all_events if event.is_step_materialization]
    found = {each.check_name: each for each in result.get_asset_check_evaluations()}
    assert set(found) == {*NAMES, "cells"}
    assert {str(each.partition) for each in found.values()} == {"demo|1"}
    assert failed(found) == {"cells", "none_in_doubt"}
    assert value(found["none_in_doubt"], "lost") == 3
    assert {row["state"] for row in rows(found["none_in_doubt"], "cells")} == {"lost"}
    # What Dagster keeps, and its pages show.
    for name in found:
        asset = "generated_images" if name in IMAGES_NAMES else "image_features"
        [record, *_] = here.instance.event_log_storage.get_asset_check_execution_history(
            dg.AssetCheckKey(dg.AssetKey(asset), name), limit=10
        )
        assert record.status.value in {"SUCCEEDED", "FAILED"}, name


def test_checks_without_a_partition_ask_for_one(project: Projects) -> None:
    here = project()
    job = dg.Definitions(
        assets=[prompt_set, generated_images, image_features],
        asset_checks=asset_checks.checks,
        jobs=[dg.define_asset_job("look", dg.AssetSelection.checks(asset_checks.audit_partition))],
        resources=here.resources,
    ).resolve_job_def("look")
    result = job.execute_in_process(instance=here.instance, raise_on_error=False)
    failure = next(e for e in result.all_events if e.is_step_failure)
    assert "Launch the job check_images" in str(failure.event_specific_data)


def stored_table(store: ObjectStore, key: str) -> pa.Table:
    found = store.get(key)
    assert found is not None
    return pq.read_table(io.BytesIO(found.body))


def change_features(store: ObjectStore, **columns: Sequence[Any]) -> None:
    """Have the table of features say something else."""
    current, _ = read_current_features(store, "demo", 1)
    table = read_features(store, "demo", 1)
    assert current is not None
    assert table is not None
    fields = [(name, kind) for name, (kind, _) in FEATURE_COLUMNS.items()]
    changed = pa.Table.from_pandas(table.assign(**columns), pa.schema(fields), preserve_index=False)
    write_table(store, current.table, packed(changed))
