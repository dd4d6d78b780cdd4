"""What a launch costs that finds everything settled, and what planning a million rows costs.

``uv run python -m benchmarks nothing_to_do [--cells 10000] [--rows 1000000] [--rounds 3]``

So many cells are bought once, flat pictures from a provider that answers at once, and the same
command is launched again: its whole process, its S3 calls, its POSTs. The million rows have a
manifest under one seed in which all are settled, made here without buying, and none under another:
what is timed is `plan` alone, which writes the run files where there is something to buy.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import pyarrow as pa
from rich.console import Console

from benchmarks.commands import generate, prompt_table
from benchmarks.measured import median_of, save, spread
from benchmarks.provider_of_files import files_provider
from benchmarks.watched import Watched, run_watched
from nanobanana_pipeline import local
from nanobanana_pipeline.bucket_keys import image_key
from nanobanana_pipeline.cli.show import table_of
from nanobanana_pipeline.generation.launch_steps import plan
from nanobanana_pipeline.generation.manifest.manifest import (
    MANIFEST_COLUMNS,
    CurrentManifest,
    manifest_key,
    publish,
)
from nanobanana_pipeline.generation.manifest.rows import content_hash
from nanobanana_pipeline.generation.planning.cells import build_cells
from nanobanana_pipeline.generation.planning.planner import Launch
from nanobanana_pipeline.ledger import now_iso
from nanobanana_pipeline.prompts import prompt_set
from nanobanana_pipeline.prompts.table import read_prompt_table
from nanobanana_pipeline.prompts.validation import check_prompts
from nanobanana_pipeline.provider.account import Account
from nanobanana_pipeline.provider.modelslab.request import ModelsLabRequest
from nanobanana_pipeline.settings import Settings
from nanobanana_pipeline.storage.bucket import claim_bucket, open_bucket
from nanobanana_pipeline.storage.versioned import packed

REALM, SEED, FRESH_SEED, NAME, RUN_ID = "emulator", 1, 2, "million", "made-up"
SLOTS: Final = 16


def main() -> None:
    """Run both, and print what they came to."""
    parser = argparse.ArgumentParser(prog="nothing_to_do")
    parser.add_argument("--cells", type=int, default=10_000)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    found = [*_again(given.cells, given.rounds), *_planned(given.rows, given.rounds)]
    where = save("nothing_to_do", found)
    Console(width=160).print(table_of(pd.DataFrame(found), f"medians; kept in {where}"))


def _again(cells: int, rounds: int) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory(prefix="nothing-") as folder:
        data = Path(folder)
        with local.s3_server(data / "s3") as s3_url, files_provider(data) as provider:
            environment = {
                **local.s3_environment(s3_url),
                **provider.environment,
                "NANOBANANA_SLOTS": str(SLOTS),
            }
            command = generate(prompt_table(data, "settled", cells))
            run_watched(command, environment)
            bought = provider.facts()["bought"]
            runs = [run_watched(command, environment) for _ in range(rounds)]
            posts = provider.facts()["bought"] - bought
    return [_row("launch again", cells, runs, s3_url) | {"bought": posts}]


def _planned(rows: int, rounds: int) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory(prefix="nothing-") as folder:
        data = Path(folder)
        with local.s3_server(data / "s3") as s3_url:
            environment = {
                **local.s3_environment(s3_url),
                "NANOBANANA_BUCKET": local.BUCKET,
                "NANOBANANA_BASE_URL": "http://127.0.0.1:9/",
                "NANOBANANA_API_KEY": local.API_KEY,
            }
            settle, ask = (
                f"benchmarks.nothing_to_do:{name}" for name in ("settle_all", "plan_all")
            )
            run_watched([settle, prompt_table(data, NAME, rows)], environment)
            by_seed = {
                seed: [run_watched([ask, str(seed)], environment) for _ in range(rounds)]
                for seed in (SEED, FRESH_SEED)
            }
    found = []
    for seed, what in ((SEED, "plan, all settled"), (FRESH_SEED, "plan, all to buy")):
        inside = sorted(json.loads(run.cost.output)["plan seconds"] for run in by_seed[seed])
        alone = {"of which plan, s": round(inside[len(inside) // 2], 1)}
        found.append(_row(what, rows, by_seed[seed], s3_url) | {"bought": 0} | alone)
    return found


def settle_all() -> None:
    """Keep a table's prompts, and a manifest that says that all of them are settled."""
    store = open_bucket(Settings.load())
    claim_bucket(store, REALM)
    kept = prompt_set.snapshot(store, NAME, check_prompts(read_prompt_table(sys.argv[1])))
    parameters = {**ModelsLabRequest.default_parameters(), "width": 1024, "height": 1024}
    prompts = prompt_set.load(store, NAME, kept.fingerprint)
    cells = build_cells(
        prompts,
        seed=SEED,
        parameters=parameters,
        realm=REALM,
        limit=None,
        model=ModelsLabRequest,
    ).frame
    count = len(cells)
    said: dict[str, Any] = {
        "prompt_set": [NAME] * count,
        "prompt_id": cells["prompt_id"].to_list(),
        "prompt": cells["prompt"].to_list(),
        "seed": np.full(count, SEED),
        "seed_asked": np.full(count, SEED),
        "sample": np.zeros(count, np.int32),
        "request_key": cells["request_key"].to_list(),
        "state": ["settled"] * count,
        # Any other hash of the same length: nothing of the picture is looked at.
        "image_sha256": cells["request_key"].to_list(),
        "image_uri": [store.uri(image_key(key, "png")) for key in cells["request_key"]],
        "format": ["png"] * count,
        "width": np.full(count, 1024, np.int32),
        "height": np.full(count, 1024, np.int32),
        "bytes": np.full(count, 1_900_000),
        "attempts": np.ones(count, np.int32),
        "run_id": [RUN_ID] * count,
    }
    table = pa.table(
        {
            column: pa.array(said[column], kind) if column in said else pa.nulls(count, kind)
            for column, (kind, _) in MANIFEST_COLUMNS.items()
        }
    )
    current = CurrentManifest(
        prompt_set=NAME,
        seed=SEED,
        manifest=manifest_key(NAME, SEED, RUN_ID),
        fingerprint=kept.fingerprint,
        parameters=parameters,
        limit=None,
        cells={"settled": count},
        images=count,
        size=count * 1_900_000,
        content=content_hash(table.select),
        rows=count,
        run_id=RUN_ID,
        created=now_iso(),
    )
    if not publish(store, packed(table), current, None):
        raise SystemExit("the bucket was not empty")


def plan_all() -> None:
    """Plan a launch of the partition with the seed given, and tell how long that took."""
    settings = Settings.load()
    store, account = open_bucket(settings), Account.open(settings)
    seed = int(sys.argv[1])
    began = time.monotonic()
    made = plan(store, account, Launch(NAME, seed, run_id=f"seed-{seed}"))
    if made.buy != (made.cells if seed == FRESH_SEED else 0):
        raise SystemExit(f"{made.buy} of {made.cells} requests would be bought")
    sys.stdout.write(json.dumps({"plan seconds": time.monotonic() - began}))


def _row(what: str, cells: int, runs: Sequence[Watched], s3_url: str) -> dict[str, Any]:
    costs = [found.cost for found in runs]
    return {
        "what": what,
        "cells": cells,
        "whole command, s": round(median_of(costs, lambda cost: cost.seconds), 1),
        "least to most": spread(costs, lambda cost: cost.seconds),
        "CPU s": round(median_of(costs, lambda cost: cost.cpu_seconds), 1),
        "peak MB": round(median_of(costs, lambda cost: cost.peak_mb)),
        "S3 calls": json.dumps(runs[-1].calls_to(s3_url)),
    }


if __name__ == "__main__":
    main()
