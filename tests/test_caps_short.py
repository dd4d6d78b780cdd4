"""`benchmarks.caps` with one of its 50 rounds."""

from pathlib import Path

import pytest

from benchmarks.caps import run, summed_up

pytestmark = [pytest.mark.usefixtures("_clean_environment"), pytest.mark.timeout(600)]


def test_no_cap_is_overrun_by_workers_that_are_killed_frozen_and_started_twice(
    tmp_path: Path,
) -> None:
    (row,) = run(tmp_path / "lane", [7])
    found = summed_up([row])
    totals = found["totals"]
    assert found["problems"] == []
    assert totals["overrun"] == totals["bought twice"] == 0
    assert all(
        scope["counted"] == scope["sold"] + scope["in doubt"] <= scope["cap"]
        for scope in row["scopes"]
    )
    # The round met what it is there to meet.
    assert totals["caps that were reached"] > 0
    assert totals["killed"] > 0
    assert totals["started again while it ran"] > 0
    assert totals["frozen for longer than lease and heartbeat last"] > 0
