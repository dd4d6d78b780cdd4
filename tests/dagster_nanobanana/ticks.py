"""One tick of a sensor or a schedule, and the runs that it asks for, in this process."""

from datetime import UTC, datetime
from typing import Any

import dagster as dg

from dagster_nanobanana.definitions import defs
from dagster_nanobanana.partitions import prompt_sets, seeds
from tests.dagster_nanobanana.conftest import Project

NIGHT = datetime(2026, 11, 22, 22, tzinfo=UTC)


class Automation:
    """A sensor or schedule over a project, with its cursor and the run keys it has used.

    Dagster's daemon launches a run key once; so does this.
    """

    def __init__(self, project: Project, name: str) -> None:
        self._project = project
        self._name = name
        self._keys: set[str] = set()
        self.cursor: str | None = None
        self.skipped = ""

    def tick(self, when: datetime = NIGHT) -> list[dg.RunRequest]:
        """The runs that are asked for now and were not asked for before.

        Args:
            when: what a schedule takes for now.
        """
        repository = defs.get_repository_def()
        shared: dict[str, Any] = {
            "instance": self._project.instance,
            "resources": {"nanobanana": self._project.resources["nanobanana"]},
        }
        told: Any
        if repository.has_sensor_def(self._name):
            with dg.build_sensor_context(cursor=self.cursor, definitions=defs, **shared) as context:
                told = repository.get_sensor_def(self._name)(context)
        else:
            schedule = repository.get_schedule_def(self._name)
            with dg.build_schedule_context(scheduled_execution_time=when, **shared) as context:
                # An ephemeral instance has no reference by which Dagster would find it.
                context._instance = context._instance_ref = self._project.instance  # type: ignore[assignment]
                told = schedule(context)
        return self._taken(told)

    def _taken(self, told: Any) -> list[dg.RunRequest]:
        """What the daemon does with a tick's result."""
        instance, requests = self._project.instance, told
        if isinstance(told, dg.SensorResult):
            self.cursor, requests = told.cursor, told.run_requests or []
            for added in told.dynamic_partitions_requests or ():
                keys = list(added.partition_keys)
                instance.add_dynamic_partitions(added.partitions_def_name, keys)
            told = told.skip_reason
        skipped = isinstance(told, dg.SkipReason)
        self.skipped = str(told.skip_message) if skipped else ""
        if skipped:
            return []
        fresh = [request for request in requests if request.run_key not in self._keys]
        self._keys |= {str(request.run_key) for request in fresh}
        # A key that is no partition fails the whole tick.
        for request in fresh:
            name, _, seed = str(request.partition_key or "|").partition("|")
            for dimension, key in ((prompt_sets, name), (seeds, seed)):
                assert not key or instance.has_dynamic_partition(str(dimension.name), key)
        return fresh


def run_job(project: Project, job: str, request: dg.RunRequest) -> dg.ExecuteInProcessResult:
    """Run what was asked for, of a job of the definitions."""
    return defs.resolve_job_def(job).execute_in_process(
        instance=project.instance,
        resources=project.resources,
        run_config=request.run_config,
        raise_on_error=False,
    )
