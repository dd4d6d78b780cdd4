"""Steps that end with their run, also where Dagster's Terminate cannot reach them.

Terminate interrupts a step that runs in its run's own process, or in a child of it. Celery only
takes back the steps that no worker has begun, and a broker may deliver a step again whose run is
over. So a step that buys looks at its run's status now and then.
"""

import logging
import time
from typing import Final

import dagster as dg
from dagster._core.storage.dagster_run import FINISHED_STATUSES

__all__ = ["RunOver", "RunWatch"]

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 2.0
LOOK_PATIENCE_SECONDS: Final = 5.0
"""Dagster's own interrupt comes first where it comes at all: a second one would cut the grace."""
OVER: Final = {dg.DagsterRunStatus.CANCELING, *FINISHED_STATUSES}


class RunOver(BaseException):
    """A step's run is stopped or over.

    As an interrupt, no `Exception`: nothing on its way takes it for an error of the step. The step
    itself must end by a `dagster.Failure`: Celery takes an interrupt for the death of the worker.
    """


class RunWatch:
    """Looks whether a step's run is still wanted.

    Raises:
        RunOver: its run is over already, and nothing is begun.
    """

    def __init__(self, context: dg.OpExecutionContext) -> None:
        self._instance, self._run_id = context.instance, context.run_id
        self._looked = time.monotonic()
        self._over_since: float | None = None
        if self._is_over():
            raise self._interruption()

    def look(self, _progress: object = None) -> None:
        """Ask for the run's status, at most every 2 s; to be called often, as `on_progress`.

        Raises:
            RunOver: somebody stopped the run 5 s ago or earlier.
        """
        now = time.monotonic()
        if now < self._looked + LOOK_SECONDS:
            return
        self._looked = now
        if not self._is_over():
            self._over_since = None
        elif self._over_since is None:
            self._over_since = now
        elif now >= self._over_since + LOOK_PATIENCE_SECONDS:
            raise self._interruption()

    def _is_over(self) -> bool:
        try:
            run = self._instance.get_run_by_id(self._run_id)
        except Exception as error:  # noqa: BLE001 - whatever a storage raises: silence is no order
            log.warning("run %s: its status could not be read, going on: %s", self._run_id, error)
            return False
        # A run that was deleted wants nothing more.
        return run is None or run.status in OVER

    def _interruption(self) -> RunOver:
        return RunOver(f"run {self._run_id} is stopped or over: this step buys no more")
