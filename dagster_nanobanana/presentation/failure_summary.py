"""What a partition's run says at its end: what is missing, why, and what to do about it."""

import pandas as pd

from nanobanana_pipeline.errors import NanobananaError
from nanobanana_pipeline.generation.engine.engine import Report
from nanobanana_pipeline.generation.manifest.manifest import (
    GAPS,
    CellState,
    CurrentManifest,
    advice,
)
from nanobanana_pipeline.generation.recovery.run_outcome import run_outcome
from nanobanana_pipeline.ledger import State
from nanobanana_pipeline.storage import ObjectStore
from nanobanana_pipeline.wording import counted, shortened

__all__ = ["failure_summary", "termination_summary"]

REASONS = 3
REASON_CHARACTERS = 200
HELD = (
    "What to do about cells in doubt or lost: the job resolve_doubts (nanobanana doubts resolve) "
    "looks for evidence once more, and buys nothing. Its action REBUY, or rebuy in the launchpad "
    "here, buys them again: they may be paid for twice."
)
WHERE = (
    "The pictures that are here, and a table of cells, stand in this failure's metadata (the run's "
    "page) and under Events of the asset, as an observation; a failed partition's own page is empty"
)
LAUNCH_AGAIN = (
    "What was bought is brought by the sensor rescue, or by the next launch. Launch again to go on"
)


def failure_summary(current: CurrentManifest, rows: pd.DataFrame, report: Report) -> str:
    """Why a partition fails, in lines: its cells, the commonest reasons, and the remedy.

    Of the manifest's rows it reads prompt_id, state and reason.
    """
    states = ", ".join(f"{n:,} {state}" for state, n in current.cells.items())
    halted = [f"Stopped early: {report.halted}"] if report.halted else []
    held = [HELD] if {CellState.IN_DOUBT, CellState.LOST} & set(current.cells) else []
    lines = [f"Cells: {states}", *halted, *_reasons(rows), *advice(current), *held, WHERE]
    return "\n".join(lines)


def termination_summary(store: ObjectStore, run_id: str) -> str:
    """The last line of a run that somebody has stopped: where it stands, and how it goes on."""
    try:
        left = run_outcome(store, run_id)
    except NanobananaError as error:
        return f"Stopped as asked; where it stands could not be read: {error}. {LAUNCH_AGAIN}"
    if left is None:
        return "Stopped as asked, before anything was bought"
    unsure = left.states.get(State.IN_DOUBT, 0) + left.states.get(State.SUBMITTING, 0)
    parts = [
        f"{left.states.get(State.SETTLED, 0):,} of {counted(left.counted, 'request')} stored",
        f"{left.states.get(State.ACCEPTED, 0):,} bought and at the provider still",
        f"{unsure:,} in doubt",
    ]
    return f"Stopped as asked: {', '.join(parts)}. {LAUNCH_AGAIN}"


def _reasons(rows: pd.DataFrame) -> list[str]:
    missing = rows[rows["state"].isin(GAPS)].drop_duplicates("prompt_id").dropna(subset="reason")
    found = missing["reason"].astype("str").value_counts()
    told = [
        f"Why: {shortened(str(why), REASON_CHARACTERS)} ({count:,}×)"
        for why, count in found.head(REASONS).items()
    ]
    more = len(found) - len(told)
    return [*told, f"Why: {counted(more, 'other reason')}, in the manifest"] if more else told
