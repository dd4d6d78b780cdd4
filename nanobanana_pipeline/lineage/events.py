"""Lineage of each run, as OpenLineage events (docs/lineage.md).

They are written to ``lineage/<UTC day>/<run id>.ndjson``, a line an event, and sent to an endpoint
where OpenLineage's own variables name one. A run is worth more than its lineage: whatever fails
here is a warning, and a slow endpoint is waited for at a run's end only, and not for long.
"""

import json
import logging
import os
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

from nanobanana_pipeline.bucket_keys import lineage_key
from nanobanana_pipeline.errors import NanobananaError
from nanobanana_pipeline.lineage.told import Told
from nanobanana_pipeline.storage.cas import swap

if TYPE_CHECKING:
    from openlineage.client.event_v2 import RunEvent

    from nanobanana_pipeline.storage import ObjectStore

__all__ = ["Parent", "Recording", "RunState", "declare_dead", "recorded", "was_stopped"]

log = logging.getLogger(__name__)

RunState = Literal["START", "RUNNING", "COMPLETE", "FAIL", "ABORT"]
Given = TypeVar("Given")

WRITE_SECONDS: Final = 10.0
"""How long a run waits for the bucket to take an event; a stop must not hang on a silent one."""
STORE_PATIENCE_SECONDS: Final = 5.0
"""How long a run waits at its end for the endpoint to take its events."""
LONGEST_RUN: Final = timedelta(days=7)
"""How far back a later step looks for the file that the run's first step began."""
THREAD: Final = "lineage"
FINAL_STATES: Final = frozenset({"COMPLETE", "FAIL", "ABORT"})
DIED: Final = "the run died: it was killed, or lost its machine"
CONFIGURED_BY: Final = ("OPENLINEAGE_URL", "OPENLINEAGE_CONFIG", "OPENLINEAGE__TRANSPORT")


@dataclass(frozen=True)
class Parent:
    """The run of another engine that a run is a step of.

    Attributes:
        run_id: a UUID.
        job: its name.
        engine: what runs it, such as ``dagster``.
        version: the engine's.
    """

    run_id: str
    job: str
    engine: str
    version: str


@contextmanager
def recorded(
    store: "ObjectStore",
    job: str,
    run_id: str,
    begin: Callable[[], Told],
    *,
    parent: Parent | None = None,
    starts: bool = True,
    ends: bool = True,
    passes: tuple[type[Exception], ...] = (),
) -> Iterator["Recording"]:
    """Record a run, or one step of it.

    START when the block is entered, and when it is left COMPLETE, FAIL (it raised, or what it told
    is a failure) or ABORT (it was interrupted). What is raised goes on.

    Args:
        store: the bucket.
        job: ``prompt_set``, ``generated_images``, …
        run_id: as the bucket knows the run; one run may have several jobs.
        begin: gives what is known before anything is done; called once, where it is needed.
        parent: whose step this is.
        starts: this is the run's first step.
        ends: this is the run's last step.
        passes: errors that do not end the run: a later step tells of them.
    """
    recording = Recording(store, job, run_id, begin, parent)
    try:
        if starts:
            recording.emit("START")
        yield recording
    except BaseException as error:
        if not isinstance(error, passes):
            recording.emit("FAIL" if isinstance(error, Exception) else "ABORT", error)
        raise
    else:
        failure = recording.told.failure if recording.told else None
        if ends:
            recording.emit("FAIL" if failure else "COMPLETE", failure)
    finally:
        recording.close()


def declare_dead(store: "ObjectStore", job: str, run_id: str) -> None:
    """End the record of a run that was killed: ABORT, unless it has come to an end by itself.

    Args:
        store: the bucket.
        job: whose run.
        run_id: it began within the last 7 days, or nothing is written.
    """
    recording = Recording(store, job, run_id, Told, None)
    recording.guarded("whether it ended", lambda: _end(store, recording, job, run_id))
    recording.close()


def was_stopped(store: "ObjectStore", job: str, run_id: str) -> bool:
    """Whether somebody stopped a run: its record ends so, and does not say that it died.

    Args:
        store: the bucket.
        job: whose run.
        run_id: of one that began more than 7 days ago nothing is known.

    Raises:
        StorageError: S3 refuses.
    """
    ends = [event for event in _events(store, job, run_id) if event["eventType"] in FINAL_STATES]
    if not ends or ends[-1]["eventType"] != "ABORT":
        return False
    said = ends[-1]["run"].get("facets", {}).get("errorMessage", {})
    return bool(said.get("message") != DIED)


def _events(store: "ObjectStore", job: str, run_id: str) -> list[dict[str, Any]]:
    found = store.get(_file_of(store, datetime.now(UTC), LONGEST_RUN.days, run_id))
    events = [] if found is None else [json.loads(line) for line in found.body.splitlines()]
    return [event for event in events if event["job"]["name"] == job]


def _end(store: "ObjectStore", recording: "Recording", job: str, run_id: str) -> None:
    states = {event["eventType"] for event in _events(store, job, run_id)}
    if states and not states & FINAL_STATES:
        recording.emit("ABORT", DIED)


class Recording:
    """A run that is being recorded; see `recorded`."""

    def __init__(
        self,
        store: "ObjectStore",
        job: str,
        run_id: str,
        begin: Callable[[], Told],
        parent: Parent | None,
    ) -> None:
        self._store, self._job, self._run_id, self._parent = store, job, run_id, parent
        self._begin = begin
        self._begun: Told | None = None
        self._endpoint = _Endpoint() if _is_configured() else None
        self.told: Told | None = None

    def tell(self, how: Callable[[], Told]) -> None:
        """Keep what the next event is to say.

        Args:
            how: gives it. Where it fails the run goes on, and the event says what it said before.
        """
        told = self.guarded("what it did", how)
        self.told = told or self.told

    def running(self, how: Callable[[], Told]) -> None:
        """Say now what is known in the middle of a run."""
        self.tell(how)
        self.emit("RUNNING")

    def emit(self, state: RunState, error: BaseException | str | None = None) -> None:
        """Write an event, and send it; never fails."""
        writing = threading.Thread(
            target=self.guarded, args=(state, lambda: self._emit(state, error)), daemon=True
        )
        writing.start()
        writing.join(WRITE_SECONDS)
        if writing.is_alive():
            log.warning(
                "the lineage of run %s (%s): the bucket did not take %s within %.0f s, and the run "
                "goes on",
                self._run_id,
                self._job,
                state,
                WRITE_SECONDS,
            )

    def close(self) -> None:
        """Wait for the endpoint, but not for long."""
        if self._endpoint is not None:
            self._endpoint.close()

    def _emit(self, state: RunState, error: BaseException | str | None) -> None:
        # OpenLineage takes 0.2 s to import, which Dagster's definitions would wait for.
        from nanobanana_pipeline.lineage import facets  # noqa: PLC0415

        if self.told is None and self._begun is None:
            self._begun = self.guarded("what it begins with", self._begin) or Told()
        told = self.told or self._begun or Told()
        now = datetime.now(UTC)
        event = facets.run_event(state, now, self._job, self._run_id, told, self._parent, error)
        line = facets.as_line(event)
        if self._endpoint is not None:
            # Written down before: the client adds to the event that it is given.
            self._endpoint.send(event)
        days = LONGEST_RUN.days if state != "START" else 0
        _append(self._store, now, days, self._run_id, line)

    def guarded(self, what: str, act: Callable[[], Given]) -> Given | None:
        """What `act` gives; None, and a warning that names `what`, where it fails."""
        try:
            return act()
        except Exception as fault:  # a bug of ours, too, must not cost a run that has bought
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
    """Sends events in order, in a thread that nobody has to wait for."""

    def __init__(self) -> None:
        self._events: queue.SimpleQueue[RunEvent | None] = queue.SimpleQueue()
        self._has_warned = False
        # Each try that the client makes again is told there, with no word of whose it is.
        logging.getLogger("urllib3.connectionpool").addFilter(_is_of_others)
        self._thread = threading.Thread(target=self._work, name=THREAD, daemon=True)
        self._thread.start()

    def send(self, event: "RunEvent") -> None:
        self._events.put(event)

    def close(self) -> None:
        self._events.put(None)
        self._thread.join(STORE_PATIENCE_SECONDS)
        if self._thread.is_alive():
            self._warn(
                "the OpenLineage endpoint did not take all events within %.0f s, and the run goes "
                "on; the bucket has them",
                STORE_PATIENCE_SECONDS,
            )

    def _work(self) -> None:
        from nanobanana_pipeline.lineage import facets  # noqa: PLC0415 - as above

        while (event := self._events.get()) is not None:
            try:
                facets.send(event, STORE_PATIENCE_SECONDS)
            except Exception as fault:  # noqa: BLE001 - each transport raises errors of its own
                # Its text may quote the address, and with it a password.
                answer = getattr(getattr(fault, "response", None), "status_code", "none")
                self._warn(
                    "the OpenLineage endpoint did not take an event (%s, HTTP status: %s), and the "
                    "run goes on; the bucket has it: check OPENLINEAGE_URL",
                    type(fault).__name__,
                    answer,
                )

    def _warn(self, text: str, *details: object) -> None:
        """Once a run: the next event fares no better."""
        if not self._has_warned:
            self._has_warned = True
            log.warning(text, *details)


def _is_of_others(record: logging.LogRecord) -> bool:
    return record.threadName != THREAD


def _is_configured() -> bool:
    return any(name.startswith(CONFIGURED_BY) and value for name, value in os.environ.items())


def _append(store: "ObjectStore", now: datetime, days: int, run_id: str, line: str) -> None:
    """Add a line, unlike any other, to a run's file, begun at most so many days before `now`."""
    new = line.encode() + b"\n"
    swap(
        store,
        _file_of(store, now, days, run_id),
        lambda found: found.body if found else b"",
        lambda lines: lines if new in lines else lines + new,
        bytes,
        content_type="application/x-ndjson",
    )


def _file_of(store: "ObjectStore", now: datetime, days: int, run_id: str) -> str:
    """The key of a run's file, which lies under the day on which it was begun."""
    keys = [
        lineage_key((now - timedelta(days=ago)).date().isoformat(), run_id)
        for ago in range(days + 1)
    ]
    return next((key for key in keys if store.head(key) is not None), keys[0])
