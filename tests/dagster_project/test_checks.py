"""Checks that can be run at any time, on an ephemeral instance and a real bucket."""

from collections.abc import Callable
from typing import Any

import dagster as dg

from dagster_project import checks
from dagster_project.assets.generated_images import generated_images
from dagster_project.assets.prompt_set import prompt_set
from nanobanana_pipeline.ledger import Ledger
from tests.dagster_project.conftest import SMALL, Project
from tests.launching import bought, entries

Projects = Callable[..., Project]
Evaluations = dict[str, dg.AssetCheckEvaluation]


def run_checks(project: Project, key: str = "demo|1") -> Evaluations:
    """Run both checks of a partition, and nothing else."""
    before = bought(project.emulator)
    here = dg.Definitions(
        assets=[prompt_set, generated_images],
        asset_checks=[checks.audit, checks.none_in_doubt],
        jobs=[checks.check_images],
        resources=project.resources,
    )
    job = here.resolve_job_def("check_images")
    result = job.execute_in_process(tags={"dagster/partition": key}, instance=project.instance)
    assert result.success
    assert not result.asset_materializations_for_node("generated_images.collect")
    assert bought(project.emulator) == before
    found = {each.check_name: each for each in result.get_asset_check_evaluations()}
    assert set(found) == {"audit", "none_in_doubt"}
    assert {str(each.partition) for each in found.values()} == {key}
    return found


def rows(check: dg.AssetCheckEvaluation, name: str) -> list[dict[str, Any]]:
    table = check.metadata[name]
    assert isinstance(table, dg.TableMetadataValue)
    return [dict(record.data) for record in table.records]


def test_a_settled_partition_passes(project: Projects) -> None:
    here = project()
    here.make_prompt_set()
    here.generate()
    found = run_checks(here)
    assert found["audit"].passed
    assert rows(found["audit"], "findings") == []
    assert found["audit"].metadata["images read"].value == 3
    assert found["none_in_doubt"].passed
    assert rows(found["none_in_doubt"], "cells") == []


def test_what_disagrees_is_named_with_what_to_do(project: Projects) -> None:
    here = project()
    here.make_prompt_set()
    here.generate()
    here.generate("demo|2")
    [image] = next(e.images for e in entries(here.store) if e.request.seed == 1)
    here.store.put(image.key, b"no picture")
    found = run_checks(here)
    assert not found["audit"].passed
    assert found["audit"].severity == dg.AssetCheckSeverity.ERROR
    [row] = rows(found["audit"], "findings")
    assert (row["kind"], row["key"]) == ("image_damaged", image.key)
    assert "restore it" in row["what is wrong, and what to do"]
    assert found["none_in_doubt"].passed
    assert run_checks(here, "demo|2")["audit"].passed


def test_cells_in_doubt_are_named_until_somebody_gives_them_up(project: Projects) -> None:
    here = project(moods={"lost_answer_after": 1.0})
    here.make_prompt_set()
    assert not here.generate().success
    found = run_checks(here)
    assert found["audit"].passed
    check = found["none_in_doubt"]
    assert not check.passed
    assert check.severity == dg.AssetCheckSeverity.WARN
    assert {row["prompt"] for row in rows(check, "cells")} == {"a fox", "a whale", "a kite"}
    assert all(row["cause"] for row in rows(check, "cells"))
    assert (check.metadata["in_doubt"].value, check.metadata["lost"].value) == (3, 0)
    ledger = Ledger(here.store)
    for entry in entries(here.store)[:2]:
        held = ledger.read(entry.request_key)
        assert held is not None
        nonce = entry.attempts[0].nonce
        ledger.apply(held, lambda e, nonce=nonce: e.abandon(nonce, "enough"))  # type: ignore[misc]
    assert run_checks(here)["none_in_doubt"].metadata["in_doubt"].value == 1


def test_a_partition_that_was_never_launched_has_nothing_to_disagree(project: Projects) -> None:
    here = project()
    here.make_prompt_set()
    here.instance.add_dynamic_partitions("seed", ["9"])
    found = run_checks(here, "demo|9")
    assert all(check.passed for check in found.values())


def test_they_run_beside_the_asset_in_one_run(project: Projects) -> None:
    here = project()
    here.make_prompt_set()
    here.instance.add_dynamic_partitions("seed", ["1"])
    result = dg.materialize(
        [prompt_set, generated_images, checks.audit, checks.none_in_doubt],
        selection=dg.AssetSelection.assets(generated_images),
        partition_key="demo|1",
        instance=here.instance,
        resources=here.resources,
        run_config={"ops": {"generated_images": {"config": SMALL}}},
    )
    assert result.success
    found = {each.check_name: each.passed for each in result.get_asset_check_evaluations()}
    assert found == {"audit": True, "cells": True, "none_in_doubt": True}
