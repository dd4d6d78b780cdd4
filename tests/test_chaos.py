"""`benchmarks.chaos` with a tenth of its table, one restart of S3 and two kills of the worker."""

from pathlib import Path

import pytest

from benchmarks.chaos import run
from nanobanana_pipeline.ledger import State

pytestmark = [pytest.mark.usefixtures("_clean_environment"), pytest.mark.timeout(600)]


def test_every_cell_is_accounted_for_when_everything_goes_wrong(tmp_path: Path) -> None:
    found = run(tmp_path, 100, s3_restarts=1, kills=2, seed=2)
    totals = found["totals"]
    assert found["problems"] == []
    assert (totals["S3 restarted"], totals["worker killed"]) == (1, 2)
    assert totals["bought twice"] == 0
    assert sum(row["cells"] for row in found["cells"]) == totals["requests"] == 100
    assert {row["state"] for row in found["cells"]} <= {
        State.SETTLED,
        State.IN_DOUBT,
        State.LOST,
    }
    assert all(row["reason"] for row in found["cells"] if row["state"] != State.SETTLED)
