"""What a run that has ended leaves behind: what is here, what it cost, what is in doubt."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from nanobanana_pipeline.bucket_keys import run_plan_key
from nanobanana_pipeline.errors import EntryDamaged
from nanobanana_pipeline.generation.planning.run_files import RunPlan, read_plan, read_request_keys
from nanobanana_pipeline.ledger import COSTING, Ledger, State
from nanobanana_pipeline.money import cost_of, cost_text
from nanobanana_pipeline.storage import ObjectStore
from nanobanana_pipeline.wording import counted

__all__ = ["run_outcome"]

MOST: Final = 10_000
"""Entries that are read: some 20 s. A larger run is accounted for by its manifest."""


@dataclass(frozen=True)
class RunOutcome:
    """What became of the requests that a run set out to settle.

    Attributes:
        made: its plan.
        states: how many stand in which ledger state; `open` were never tried. One whose entry
            cannot be read counts as in doubt.
        counted: how many were looked at: all, or the first 10,000.
        planned: how many there are.
        spent: images that this run's own attempts bought or may have bought, as far as the
            entries can be read.
    """

    made: RunPlan
    states: Mapping[State, int]
    counted: int
    planned: int
    spent: int

    @property
    def cost(self) -> Decimal | None:
        """What `spent` cost; None if the price is unknown."""
        return cost_of(self.spent, self.made.price)

    def __str__(self) -> str:
        states = self.states
        unsure = states.get(State.IN_DOUBT, 0) + states.get(State.SUBMITTING, 0)
        parts = [
            f"{states.get(State.SETTLED, 0):,} of {counted(self.counted, 'request', 'is')} settled",
            f"{states.get(State.ACCEPTED, 0):,} bought and not brought yet",
            f"{unsure:,} in doubt",
            f"{states.get(State.LOST, 0):,} lost",
            f"{counted(self.spent, 'image')} bought at a cost of {cost_text(self.cost)}",
        ]
        more = self.planned - self.counted
        return "; ".join(
            parts + ([f"{counted(more, 'request', 'was')} not looked at"] if more else [])
        )


def run_outcome(store: ObjectStore, run_id: str) -> RunOutcome | None:
    """Look at what a run set out to do, in the ledger; None if it has written no plan.

    Raises:
        StorageError: S3 refuses or holds damaged objects.
    """
    if store.head(run_plan_key(run_id)) is None:
        return None
    made = read_plan(store, run_id)
    keys = list(read_request_keys(store, made))
    chosen = keys[:MOST]
    states: Counter[State] = Counter()
    spent = 0
    for held in Ledger(store).read_many(chosen):
        if isinstance(held, EntryDamaged):
            states[State.IN_DOUBT] += 1
            continue
        states[held.entry.state] += 1
        own = (a for a in held.entry.attempts if a.run_id == run_id)
        spent += held.entry.samples * sum(a.outcome in COSTING for a in own)
    states[State.OPEN] += len(chosen) - states.total()
    return RunOutcome(made, +states, len(chosen), len(keys), spent)
