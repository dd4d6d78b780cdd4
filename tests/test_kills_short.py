"""`benchmarks.kills` with 20 of its 200 kills, always at the same shares of a launch's life."""

from pathlib import Path

import pytest

from benchmarks.kills import run
from nanobanana_pipeline.ledger import State

pytestmark = [pytest.mark.usefixtures("_clean_environment"), pytest.mark.timeout(600)]


def test_twenty_kills_lose_nothing_and_buy_nothing_twice(tmp_path: Path) -> None:
    found = run(tmp_path, 20, seconds=400, seed=7)
    totals = found["totals"]
    assert found["problems"] == []
    assert totals["kills"] == 20
    assert totals["bought twice"] == totals["lost"] == 0
    held = totals["in doubt, never sold: held"]
    assert totals["bought"] == totals["settled"] == totals["requests"] - held
    assert totals["images read again"] == totals["settled"]
    # The kills met what they are there to meet.
    assert totals["in doubt, sold: settled by webhook"] > 0
    left = {state for row in found["partitions"] for state in row["found"]}
    assert {State.SUBMITTING, State.ACCEPTED, State.SETTLED} <= left


def test_a_plain_script_buys_twice_under_the_same_kills(tmp_path: Path) -> None:
    """What is counted as 0 above is not 0 for everybody."""
    found = run(tmp_path, 3, seconds=400, seed=7, plain=True)
    totals = found["totals"]
    assert totals["kills"] == 3
    assert totals["stored"] == totals["requests"]
    assert totals["bought twice"] > 0
    assert totals["paid for and never stored"] == totals["bought"] - totals["stored"] > 0
