"""A provider that is not ModelsLab: nothing bought of it is lost, and nothing bought twice."""

from pathlib import Path

import pytest

from benchmarks import chaos, kills
from benchmarks.launches import SLOTS
from nanobanana_pipeline.errors import PlanError
from nanobanana_pipeline.generation.launch_steps import settle_launch
from nanobanana_pipeline.generation.planning.planner import Launch
from nanobanana_pipeline.ledger import State
from nanobanana_pipeline.storage import ObjectStore
from tests.launching import entries, keep_prompts, prompts
from tests.second_provider import adapter
from tests.second_provider.site import SecondSite
from tests.test_extending_page import example

OPTIONS = ("--latency", "0.2:0.6", "--cap", str(SLOTS), "--slow-answer", "0.2")
FAULTS = {
    "rate_limited": 0.2,
    "http_500_before": 0.1,
    "http_500_after": 0.1,
    "cut_off_after": 0.05,
    "broken_image": 0.05,
}
WRONG = (*OPTIONS[:4], *(f"--fault={name}={rate}" for name, rate in FAULTS.items()))

pytestmark = [pytest.mark.usefixtures("_clean_environment"), pytest.mark.timeout(600)]


def test_an_adapter_is_short() -> None:
    assert len(Path(adapter.__file__).read_text().splitlines()) <= 100


def test_twenty_kills_lose_nothing_and_buy_nothing_twice(tmp_path: Path) -> None:
    found = kills.run(tmp_path, 20, seconds=400, seed=7, site_type=SecondSite, options=OPTIONS)
    totals = found["totals"]
    assert found["problems"] == []
    assert totals["kills"] == 20
    assert totals["bought twice"] == totals["lost"] == 0
    held = totals["in doubt, never sold: held"]
    assert totals["bought"] == totals["settled"] == totals["requests"] - held
    assert totals["images read again"] == totals["settled"]
    assert {State.SUBMITTING, State.ACCEPTED} <= {
        state for row in found["partitions"] for state in row["found"]
    }


def test_every_cell_is_accounted_for_when_everything_goes_wrong(tmp_path: Path) -> None:
    found = chaos.run(
        tmp_path, 60, s3_restarts=1, kills=2, seed=2, site_type=SecondSite, options=WRONG
    )
    totals = found["totals"]
    assert found["problems"] == []
    assert (totals["S3 restarted"], totals["worker killed"]) == (1, 2)
    assert totals["bought twice"] == 0
    assert totals["of them answered with an error or not at all"] > 0
    assert sum(row["cells"] for row in found["cells"]) == totals["requests"] == 60
    assert {row["state"] for row in found["cells"]} <= {State.SETTLED, State.IN_DOUBT, State.LOST}


def test_a_provider_as_the_page_writes_one(store: ObjectStore) -> None:
    account = example("A provider")["account"]
    keep_prompts(store, "set", prompts(3))
    for run_id, sold in (("first", 3), ("again", 3)):
        settled = settle_launch(store, account, Launch("set", 1, run_id, {"label": "a"}))
        assert settled.current.cells == {"settled": 3}
        assert account.provider.health() == {"orders": str(sold)}
    assert {entry.request["label"] for entry in entries(store)} == {"a"}
    with pytest.raises(PlanError, match="label 'a' → 'b'"):
        settle_launch(store, account, Launch("set", 1, "other", {"label": "b"}))
