"""A backfill as the UI launches it: a real webserver, a real daemon, a process a run."""

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import requests

from nanobanana_pipeline.generation.manifest.manifest import read_current
from tests.dagster_nanobanana.conftest import SMALL
from tests.graphql import running_dev
from tests.launching import keep_prompts, prompts

SEEDS = ("1", "2", "3", "4")
CAP = 3
SETS = {"animals": 2, "plants": CAP, "too_many": CAP + 1}
"""Prompt sets and their rows: a partition may buy so many pictures as the cap says."""
BACKFILL_SECONDS = 800
"""A busy machine takes its time: each of the runs is a process of its own."""


@pytest.mark.timeout(BACKFILL_SECONDS + 200)
def test_a_backfill_makes_what_can_be_made_and_buys_nothing_twice(tmp_path: Path) -> None:
    everything = [f"{name}|{seed}" for name, seed in product(SETS, SEEDS)]
    good = {key for key in everything if not key.startswith("too_many")}
    caps = {"NANOBANANA_MAX_IMAGES_PER_PARTITION": str(CAP)}
    with running_dev(tmp_path, {}, caps) as dev:
        for name, rows in SETS.items():
            keep_prompts(dev.store, name, prompts(rows, name))
            dev.dagster.add_partition("prompt_set", name)
        for seed in SEEDS:
            dev.dagster.add_partition("seed", seed)
        # The second wants the same partitions while the first is at them.
        again = ["plants|2", "too_many|1"]
        launched = [
            dev.dagster.backfill("generated_images", SMALL, keys) for keys in (everything, again)
        ]
        ends = [dev.dagster.wait_for_backfill(each, BACKFILL_SECONDS) for each in launched]
        assert ends == ["COMPLETED_FAILED"] * 2

        def expected(keys: list[str]) -> list[tuple[str, str]]:
            return sorted((key, "SUCCESS" if key in good else "FAILURE") for key in keys)

        for backfill, keys in zip(launched, (everything, again), strict=True):
            ended = dev.dagster.runs_of_backfill(backfill)
            assert ended == expected(keys), (tmp_path / "dev.log").read_text()[-50_000:]
        assert dev.dagster.materialized("generated_images", everything) == good
        assert dev.dagster.counts("generated_images") == {"numMaterialized": 8, "numFailed": 4}
        for name, seed in product(SETS, SEEDS):
            current, _ = read_current(dev.store, name, int(seed))
            assert current is not None
            held_back = {"over_budget": SETS[name] - CAP} if SETS[name] > CAP else {}
            assert current.cells == {**held_back, "settled": min(SETS[name], CAP)}
        record: dict[str, Any] = requests.get(f"{dev.emulator}/admin/purchases", timeout=10).json()
        bought = len(SEEDS) * sum(min(rows, CAP) for rows in SETS.values())
        assert (record["total"], record["bought_twice"]) == (bought, 0)
