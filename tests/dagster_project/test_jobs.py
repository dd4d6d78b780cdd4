"""The job that settles doubts, on an ephemeral instance, a real bucket and a real emulator."""

from typing import Any

import dagster as dg

from dagster_project.jobs import resolve_doubts
from nanobanana_pipeline.ledger import State
from tests.dagster_project.conftest import Project
from tests.dagster_project.test_graph import IMAGES, Projects, bought
from tests.launching import states, tell


def resolved(project: Project, **config: Any) -> dg.ExecuteInProcessResult:
    return resolve_doubts.execute_in_process(
        instance=project.instance,
        resources=project.resources,
        run_config={"ops": {"settle_all_doubts": {"config": config}}},
        raise_on_error=False,
    )


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
    assert states(here.store) == {State.LOST: 3}
    assert bought(here)["total"] == 3


def test_nothing_in_doubt_is_a_success(project: Projects) -> None:
    here = project()
    assert resolved(here).success
