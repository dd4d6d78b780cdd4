"""Records each run as OpenLineage events (docs/lineage.md): `record_run`, with its `Recording`.

Events are written to ``lineage/<UTC day>/<run id>.ndjson``, one a line, and sent to an endpoint if
OpenLineage's own variables name one. A run must not fail or wait for its lineage: every fault here
is only a warning, and a run waits for a slow endpoint at its end only, for a few seconds.
"""

import json
import logging
import os
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, TypeVar

from nanobanana_pipeline.bucket_keys import lineage_key
from nanobanana_pipeline.errors import NanobananaError
from nanobanana_pipeline.lineage.openlineage.facts import EventType, Parent, RunFacts
from nanobanana_pipeline.storage import ObjectStore
from nanobanana_pipeline.storage.cas import swap

if TYPE_CHECKING:
    from openlineage.client.event_v2 import RunEvent

__all__ = ["Recording", "record_expired_run", "record_run", "was_stopped"]

log = logging.getLogger(__name__)

Result = TypeVar("Result")

WRITE_SECONDS: Final = 10.0
"""How long a run waits for the bucket to take an event; a stop must not hang on a silent one."""
ENDPOINT_SECONDS: Final = 5.0
"""How long a run waits at its end for the endpoint to take its events."""
LONGEST_RUN_DAYS: Final = 7
"""How far back a later step looks for the file that the run's first step created."""
THREAD_NAME: Final = "lineage"
END_TYPES: Final = frozenset({EventType.COMPLETE, EventType.FAIL, EventType.ABORT})
DIED_MESSAGE: Final = "the run died: it was killed, or lost its machine"
ENDPOINT_VARIABLES: Final = ("OPENLINEAGE_URL", "OPENLINEAGE_CONFIG", "OPENLINEAGE__TRANSPORT")


@contextmanager
def record_run(
    store: ObjectStore,
    job: str,
    run_id: str,
    begin: Callable[[], RunFacts],
    *,
    parent: Parent | None = None,
    starts: bool = True,
    ends: bool = True,
    passes: tuple[type[Exception], ...] = (),
) -> Iterator["Recording"]:
    """Record a run, or one step of it.

    Writes START on entry, and on exit COMPLETE, FAIL (an exception, or the facts name a failure) or
    ABORT (an interruption). Exceptions pass through.

    Args:
        store: the bucket.
        job: ``prompt_set``, ``generated_images``, …
        run_id: this project's id; one run may have several jobs.
        begin: returns the facts at START; called at most once.
        parent: the orchestrator's run.
        starts: this is the run's first step.
        ends: this is the run's last step.
        passes: exceptions that do not end the run: a later step records its end.
    """
    recording = Recording(store, job, run_id, begin, parent)
    try:
        if starts:
            recording.emit(EventType.START)
        yield recording
    except BaseException as error:
        if not isinstance(error, passes):
            is_failure = isinstance(error, Exception)
            recording.emit(EventType.FAIL if is_failure else EventType.ABORT, error)
        raise
    else:
        failure = recording.facts.failure if recording.facts else None
        if ends:
            recording.emit(EventType.FAIL if failure else EventType.COMPLETE, failure)
    finally:
        recording.close()


def record_expired_run(store: ObjectStore, job: str, run_id: str) -> None:
    """Write ABORT for a run that was killed, unless its record has an end or is over 7 days old."""
    recording = Recording(store, job, run_id, RunFacts, None)
    recording.guarded("whether it ended", lambda: _end(store, recording, job, run_id))
    recording.close()


def was_stopped(store: ObjectStore, job: str, run_id: str) -> bool:
    """Whether a run was stopped: its record ends with ABORT, and not because the run died.

    False for a run that started more than 7 days ago.
    """
    ends = [event for event in _events(store, job, run_id) if event["eventType"] in END_TYPES]
    if not ends or ends[-1]["eventType"] != EventType.ABORT:
        return False
    error = ends[-1]["run"].get("facets", {}).get("errorMessage", {})
    return bool(error.get("message") != DIED_MESSAGE)


def _events(store: ObjectStore, job: str, run_id: str) -> list[dict[str, Any]]:
    stored = store.get(_file_key(store, datetime.now(UTC), run_id))
    events = [] if stored is None else [json.loads(line) for line in stored.body.splitlines()]
    return [event for event in events if event["job"]["name"] == job]


def _end(store: ObjectStore, recording: "Recording", job: str, run_id: str) -> None:
    states = {event["eventType"] for event in _events(store, job, run_id)}
    if states and not states & END_TYPES:
        recording.emit(EventType.ABORT, DIED_MESSAGE)


class Recording:
    """The record of one run; see `record_run`."""

    def __init__(
        self,
        store: ObjectStore,
        job: str,
        run_id: str,
        begin: Callable[[], RunFacts],
        parent: Parent | None,
    ) -> None:
        self._store, self._job, self._run_id, self._parent = store, job, run_id, parent
        self._begin = begin
        variables = os.environ.items()
        configured = any(name.startswith(ENDPOINT_VARIABLES) and value for name, value in variables)
        self._start_facts: RunFacts | None = None
        self._key: str | None = None
        self._endpoint = _Endpoint() if configured else None
        self.facts: RunFacts | None = None

    def set_facts(self, get_facts: Callable[[], RunFacts]) -> None:
        """Set the facts of the next event; if `get_facts` fails, it has the earlier facts."""
        self.facts = self.guarded("what it did", get_facts) or self.facts

    def emit_running(self, get_facts: Callable[[], RunFacts]) -> None:
        """Write RUNNING with these facts."""
        self.set_facts(get_facts)
        self.emit(EventType.RUNNING)

    def emit(self, event_type: EventType, error: BaseException | str | None = None) -> None:
        """Write an event, and send it; never fails."""
        writer = threading.Thread(
            target=self.guarded,
            args=(event_type, lambda: self._emit(event_type, error)),
            daemon=True,
        )
        writer.start()
        writer.join(WRITE_SECONDS)
        if writer.is_alive():
            log.warning(
                "the lineage of run %s (%s): the bucket did not take %s within %.0f s, and the run "
                "goes on",
                self._run_id,
                self._job,
                event_type,
                WRITE_SECONDS,
            )

    def close(self) -> None:
        """Wait for the endpoint, for at most `ENDPOINT_SECONDS`."""
        if self._endpoint is not None:
            self._endpoint.close()

    def _emit(self, event_type: EventType, error: BaseException | str | None) -> None:
        # Its import of OpenLineage takes 0.2 s, which would delay Dagster's definitions.
        from nanobanana_pipeline.lineage.openlineage import facets  # noqa: PLC0415

        if self.facts is None and self._start_facts is None:
            self._start_facts = self.guarded("what it begins with", self._begin) or RunFacts()
        facts = self.facts or self._start_facts or RunFacts()
        now = datetime.now(UTC)
        event = facets.run_event(
            event_type, now, self._job, self._run_id, facts, self._parent, error
        )
        line = facets.as_line(event)
        if self._endpoint is not None:
            # Serialized before: the client adds fields to the event.
            self._endpoint.send(event)
        if self._key is None:
            # START creates the file; a later step looks for it.
            is_start = event_type is EventType.START
            self._key = (
                lineage_key(now.date().isoformat(), self._run_id)
                if is_start
                else _file_key(self._store, now, self._run_id)
            )
        _append(self._store, self._key, line)

    def guarded(self, what: str, act: Callable[[], Result]) -> Result | None:
        """Return `act()`; on any exception warn that `what` is missing and return None."""
        try:
            return act()
        except Exception as fault:  # our own bugs must not fail a run that bought images either
            known = isinstance(fault, NanobananaError)
            log.warning(
                "the lineage of run %s (%s) lacks %s, and the run goes on: %s",
                self._run_id,
                self._job,
                what,
                fault if known else type(fault).__name__,
                exc_info=not known,
            )
            return None


class _Endpoint:
    """Sends events in order from a daemon thread."""

    def __init__(self) -> None:
        self._events: queue.SimpleQueue[RunEvent | None] = queue.SimpleQueue()
        self._has_warned = False
        # The client's retries are logged there without saying what they belong to.
        logging.getLogger("urllib3.connectionpool").addFilter(
            lambda record: record.threadName != THREAD_NAME
        )
        self._thread = threading.Thread(target=self._work, name=THREAD_NAME, daemon=True)
        self._thread.start()

    def send(self, event: "RunEvent") -> None:
        self._events.put(event)

    def close(self) -> None:
        self._events.put(None)
        self._thread.join(ENDPOINT_SECONDS)
        if self._thread.is_alive():
            self._warn(
                "the OpenLineage endpoint did not take all events within %.0f s, and the run goes "
                "on; the bucket has them",
                ENDPOINT_SECONDS,
            )

    def _work(self) -> None:
        from nanobanana_pipeline.lineage.openlineage import facets  # noqa: PLC0415 - as above

        while (event := self._events.get()) is not None:
            try:
                facets.send(event, ENDPOINT_SECONDS)
            except Exception as fault:  # noqa: BLE001 - each transport raises errors of its own
                # The text may quote the endpoint's address and password.
                answer = getattr(getattr(fault, "response", None), "status_code", "none")
                self._warn(
                    "the OpenLineage endpoint did not take an event (%s, HTTP status: %s), and the "
                    "run goes on; the bucket has it: check OPENLINEAGE_URL",
                    type(fault).__name__,
                    answer,
                )

    def _warn(self, text: str, *details: object) -> None:
        """Warn once a run: later events will probably fail likewise."""
        if not self._has_warned:
            self._has_warned = True
            log.warning(text, *details)


def _append(store: ObjectStore, key: str, line: str) -> None:
    """Append a line, unlike any other, to a run's file."""
    new = line.encode() + b"\n"
    swap(
        store,
        key,
        lambda stored: stored.body if stored else b"",
        lambda lines: lines if new in lines else lines + new,
        bytes,
        content_type="application/x-ndjson",
    )


def _file_key(store: ObjectStore, now: datetime, run_id: str) -> str:
    """The key of a run's file, which lies under the UTC day of its start; today's if it is new."""
    keys = [
        lineage_key((now - timedelta(days=ago)).date().isoformat(), run_id)
        for ago in range(LONGEST_RUN_DAYS + 1)
    ]
    return next((key for key in keys if store.head(key) is not None), keys[0])
