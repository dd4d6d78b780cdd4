"""The jobs beside the assets, on an ephemeral instance, a real bucket and a real emulator."""

import re
from datetime import UTC, datetime
from typing import Any

import dagster as dg
import pytest

from dagster_nanobanana.jobs.audit_bucket import audit_bucket_job
from dagster_nanobanana.jobs.quote_only import quote_only
from dagster_nanobanana.jobs.reconcile_books import reconcile_books
from dagster_nanobanana.jobs.rescue_run import rescue_run
from dagster_nanobanana.jobs.resolve_doubts import resolve_doubts
from dagster_nanobanana.jobs.retry_failed import retry_failed
from nanobanana_pipeline.generation.launch_steps import plan
from nanobanana_pipeline.generation.manifest.manifest import read_current
from nanobanana_pipeline.generation.planning.planner import Launch
from nanobanana_pipeline.ledger import State
from tests.dagster_nanobanana.conftest import SMALL, Project
from tests.dagster_nanobanana.test_graph import IMAGES, Projects, bought
from tests.launching import PLANNER, states, tell


def run(
    project: Project, job: dg.JobDefinition, op: str, config: dict[str, Any], **more: Any
) -> dg.ExecuteInProcessResult:
    return job.execute_in_process(
        instance=project.instance,
        resources=project.resources,
        run_config={"ops": {op: {"config": config}}},
        raise_on_error=False,
        **more,
    )


def resolved(project: Project, **config: Any) -> dg.ExecuteInProcessResult:
    return run(project, resolve_doubts, "settle_all_doubts", config)


def retried(project: Project, **config: Any) -> dg.ExecuteInProcessResult:
    return run(project, retry_failed, "retry_partitions", config)


def told(result: dg.ExecuteInProcessResult) -> dict[str, Any]:
    """What the one op says in its metadata."""
    [event] = result.filter_events(lambda event: event.is_successful_output)
    metadata = event.step_output_data.metadata
    return {
        name: value.records if isinstance(value, dg.TableMetadataValue) else value.value
        for name, value in metadata.items()
    }


def shown(result: dg.ExecuteInProcessResult) -> list[tuple[str, str | None]]:
    """Kinds and partitions of the asset events of a run."""
    wanted = {"ASSET_MATERIALIZATION", "ASSET_OBSERVATION"}
    return [
        (event.event_type_value, event.partition)
        for event in result.all_events
        if event.event_type_value in wanted
    ]


def keys_in(project: Project) -> set[str]:
    return set(project.store.keys(""))


def test_looking_buys_nothing_and_giving_up_completes_the_partition(project: Projects) -> None:
    here = project(moods={"lost_answer_after": 1.0})
    here.make_prompt_set()
    assert not here.generate().success
    tell(here.emulator, "moods", lost_answer_after=0)
    looked = resolved(here)
    assert looked.success
    assert states(here.store) == {State.IN_DOUBT: 3}
    assert not looked.filter_events(lambda event: event.is_step_materialization)
    for nothing in ({"older_hours": 1.0}, {"min_cost": 0.01}, {"cause": "no such cause"}):
        assert resolved(here, action="ABANDON", **nothing).success
        assert states(here.store) == {State.IN_DOUBT: 3}
    given_up = resolved(here, action="ABANDON")
    assert given_up.success
    (event,) = given_up.filter_events(lambda event: event.is_step_materialization)
    assert event.asset_key == IMAGES
    assert event.partition == "demo|1"
    [check] = given_up.get_asset_check_evaluations()
    assert (check.check_name, check.partition, check.passed) == ("cells", "demo|1", True)
    assert states(here.store) == {State.LOST: 3}
    assert bought(here)["total"] == 3


def test_nothing_in_doubt_is_a_success(project: Projects) -> None:
    here = project()
    assert resolved(here).success


def test_a_retry_buys_what_is_missing_within_its_budget_and_completes_partitions(
    project: Projects,
) -> None:
    here = project()
    here.make_prompt_set()
    here.generate("demo|1", SMALL | {"max_images": 1})
    here.generate("demo|2", SMALL | {"max_images": 2})
    here.generate("demo|3")
    assert bought(here)["total"] == 6
    first = retried(here, max_images=2)
    # The one that lacks least comes first and is whole; the other gets what is left.
    assert shown(first) == [("ASSET_MATERIALIZATION", "demo|2"), ("ASSET_OBSERVATION", "demo|1")]
    assert told(first)["images bought"] == 2
    assert bought(here)["total"] == 8
    second = retried(here, max_images=100)
    assert shown(second) == [("ASSET_MATERIALIZATION", "demo|1")]
    assert told(retried(here, max_images=100))["launched"] == 0
    assert (bought(here)["total"], bought(here)["bought_twice"]) == (9, 0)


def test_a_retry_keeps_to_the_partitions_it_is_told_and_to_their_pilots_limit(
    project: Projects,
) -> None:
    here = project()
    here.make_prompt_set()
    here.generate("demo|1", SMALL | {"max_images": 1, "limit": 2})
    here.generate("demo|2", SMALL | {"max_images": 1})
    assert shown(retried(here, max_images=9, partitions=["demo|1"])) == [
        ("ASSET_MATERIALIZATION", "demo|1")
    ]
    current, _ = read_current(here.store, "demo", 1)
    assert current is not None
    assert current.cells == {"not_requested": 1, "settled": 2}
    assert bought(here)["total"] == 3


def test_a_retry_without_a_budget_is_refused(project: Projects) -> None:
    here = project()
    failed = retried(here, max_images=0)
    failure = next(e for e in failed.all_events if e.is_step_failure)
    assert "max_images 0 is out of range" in str(failure.event_specific_data)


def test_a_quote_says_what_a_launch_would_buy_and_changes_nothing(
    project: Projects, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NANOBANANA_PRICE_PER_IMAGE", "0.05")
    monkeypatch.setenv("NANOBANANA_MAX_IMAGES_PER_DAY", "10")
    here = project()
    here.make_prompt_set()
    here.generate("demo|1")
    before = keys_in(here)
    asked = {"prompt_set": "demo", "seeds": "1-3", "samples": 2}
    result = run(here, quote_only, "quote_launches", asked)
    assert result.success
    assert keys_in(here) == before
    assert bought(here)["total"] == 3
    metadata = told(result)
    assert (metadata["images"], metadata["cost"]) == (18, "0.90")
    assert metadata["room today, in images"] == 7
    assert metadata["bytes"] > 0
    assert metadata["seconds"] >= 0
    lines = [log.user_message for log in here.instance.all_logs(result.run_id)]
    assert any(re.match(r"18 images, cost: 0.90, .+ MB, about .+ s;", line) for line in lines)
    rows = [record.data for record in metadata["seeds"]]
    assert [row["needs change_parameters"] for row in rows] == [True, False, False]
    nobody = run(here, quote_only, "quote_launches", asked | {"prompt_set": "nobody"})
    assert "there is no prompt set 'nobody'" in str(
        next(e for e in nobody.all_events if e.is_step_failure).event_specific_data
    )


def test_a_rescued_run_is_shown_on_its_partition(project: Projects) -> None:
    here = project()
    here.make_prompt_set()
    plan(here.store, PLANNER, Launch("demo", 1, "died", SMALL))
    result = run(here, rescue_run, "rescue_one_run", {"run_id": "died"})
    assert result.success
    assert shown(result) == [("ASSET_OBSERVATION", "demo|1")]
    assert told(result)["cells"] == {"pending": 3}
    assert bought(here)["total"] == 0


def test_an_audit_fails_where_something_disagrees(project: Projects) -> None:
    here = project()
    here.make_prompt_set()
    here.generate()
    assert told(run(here, audit_bucket_job, "audit_whole_bucket", {}))["images read"] == 3
    here.store.delete(next(key for key in here.store.keys("images/")))
    failed = run(here, audit_bucket_job, "audit_whole_bucket", {"sample": 0})
    failure = next(e for e in failed.all_events if e.is_step_failure)
    assert "1 finding:" in str(failure.event_specific_data)


def test_a_day_is_compared_with_the_vendors_books_and_differences_fail_the_job(
    project: Projects, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = project()
    here.make_prompt_set()
    here.generate()
    day = datetime.now(UTC).date().isoformat()

    def compared() -> dg.ExecuteInProcessResult:
        return run(here, reconcile_books, "reconcile_day", {"day": day})

    def said() -> str:
        failure = next(e for e in compared().all_events if e.is_step_failure)
        return str(failure.event_specific_data)

    assert "export NANOBANANA_VENDOR_BOOKS=assets" in said()
    monkeypatch.setenv("NANOBANANA_VENDOR_BOOKS", "assets")
    agreed = told(compared())
    assert (agreed["in both"], agreed["differences"]) == (3, [])
    # Yesterday, which nothing is known of.
    assert told(run(here, reconcile_books, "reconcile_day", {}))["in both"] == 0
    tell(here.emulator, "reset")
    assert "3 differences: see the table" in said()


def test_doubts_are_settled_by_the_vendors_books_and_the_wallet_is_told(
    project: Projects, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NANOBANANA_VENDOR_BOOKS", "assets,balance")
    monkeypatch.setenv("NANOBANANA_PRICE_PER_IMAGE", "0.01")
    here = project(moods={"lost_answer_after": 1})
    here.make_prompt_set()
    launched = here.generate()
    (failure,) = [e for e in launched.all_events if e.is_step_failure]
    assert "0.03 USD left the wallet, as the ledger counts" in str(failure.event_specific_data)
    tell(here.emulator, "moods", lost_answer_after=0, fetch_meta=1)
    looked = told(resolved(here))
    assert (looked["settled"], looked["named by the vendor's books"]) == (3, 3)
    assert looked["sales of no known request"] == "none"
    assert (states(here.store), bought(here)["total"]) == ({State.SETTLED: 3}, 3)
