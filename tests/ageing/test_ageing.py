"""Years of bad luck in a minute: the real ledger and the real buying against an adversary.

Two to four workers (`Submitter.advance` and `Transfer.settle`, as `Engine` runs them) share one to
three requests, a bucket in memory and a provider with honest books. At each call to S3, each call
to the provider and each sleep an adversary chooses who goes on and what goes wrong: crashes, frozen
processes, clocks that jump, answers that are lost or late, writes that land long after their sender
gave up, pictures that are forgotten, webhooks out of order. `witness.py` says what must hold at
every write and every POST, and `World.age` what must have become of it in the end.

Each run explores 600 new schedules of up to 240 decisions, in about half a minute, and as many as
it takes to catch each of the mistakes in `mutants.py`. The long form, of ten minutes and more (and
1.5 GB, for what hypothesis remembers), goes other ways each time::

    AGEING_SCHEDULES=10000 nice .venv/bin/python -m pytest -q tests/ageing/test_ageing.py

A failure is shrunk to a short schedule and told as a story; the blob printed with it repeats it.
"""

import functools
import os
from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st

from tests.ageing.mutants import BUDGET_MUTANTS, MUTANTS
from tests.ageing.witness import Violation
from tests.ageing.world import World

SCHEDULES = int(os.environ.get("AGEING_SCHEDULES", "600"))
LONGEST = 240
"""Decisions of a schedule."""
FAULTS_OF_BUDGETS = ("freeze", "budget", "crash", "jump", "redelivery")

profile = settings(
    max_examples=SCHEDULES,
    deadline=None,
    print_blob=True,
    # Shrinking is worth its time; explaining would trace every line of every thread.
    phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
hunt = settings(profile, max_examples=2000, database=None, phases=(Phase.generate,))

numbers = functools.lru_cache(lambda count: st.integers(0, count - 1))


def grow_old(data: st.DataObject, faults: Sequence[str] | None = None) -> None:
    """Play one schedule that hypothesis chooses."""

    def choose(count: int) -> int:
        return data.conjecture_data.draw(numbers(count)) if count > 1 else 0

    world = World(choose, steps=choose(LONGEST), faults=faults)
    try:
        world.age()
    except BaseException:
        note("\n".join(world.scheduler.story))
        raise


@pytest.mark.timeout(0)  # shrinking takes its own time, which hypothesis bounds
@profile
@given(st.data())
def test_nothing_is_bought_twice_or_lost_whatever_happens(data: st.DataObject) -> None:
    grow_old(data)


@pytest.mark.timeout(0)  # as above
@pytest.mark.parametrize("mistake", MUTANTS)
def test_a_mistake_in_the_product_is_caught(mistake: str) -> None:
    @hunt
    @given(st.data())
    def grow_old_with_it(data: st.DataObject) -> None:
        grow_old(data, FAULTS_OF_BUDGETS if mistake in BUDGET_MUTANTS else None)

    with MUTANTS[mistake](), pytest.raises(Violation):
        grow_old_with_it()


def test_without_faults_everything_is_settled_at_once() -> None:
    world = World(lambda _: 0, steps=200, faults=())
    world.age()
    assert len(world.provider.orders) == 1
    assert world.witness.entry(world.provider.orders[0].key)["state"] == "settled"
