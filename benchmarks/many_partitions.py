"""How long Dagster's pages of `generated_images` take in Chromium, with 50,000 partitions.

Needs Debian's chromium. ``uv run python -m benchmarks.many_partitions``
"""

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import dagster as dg
import pandas as pd
import requests
from playwright.sync_api import Page, expect, sync_playwright
from rich.console import Console

from benchmarks.measured import save
from dagster_nanobanana.partitions import partition_key_of, prompt_sets, seeds
from nanobanana_pipeline.cli.profile import dagster_home
from nanobanana_pipeline.cli.show import table_of
from nanobanana_pipeline.local import child, free_port

ASSET: Final = "generated_images"
TIMES: Final = 3
LONGEST_MS: Final = 120_000
ARGUMENTS: Final = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


def main() -> None:
    """Fill an instance, start `nanobanana dev` on it, and open each page some times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompt-sets", type=int, default=250)
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--materialized", type=int, default=500)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        _fill(Path(folder), asked.prompt_sets, asked.seeds, asked.materialized)
        with _dev(Path(folder)) as url:
            looks = [_look(url, asked.prompt_sets * asked.seeds) for _ in range(TIMES)]
    found = [
        {
            "until": what,
            "first, s": round(looks[0][what], 1),
            "median of the others, s": round(statistics.median(e[what] for e in looks[1:]), 1),
        }
        for what in looks[0]
    ]
    title = f"{asked.prompt_sets} prompt sets × {asked.seeds} seeds, {asked.materialized} made"
    Console().print(table_of(pd.DataFrame(found), title))
    save(
        "many_partitions",
        {"prompt_sets": asked.prompt_sets, "seeds": asked.seeds}
        | {"materialized": asked.materialized, "load": os.getloadavg(), "pages": found},
    )


def _fill(data: Path, sets: int, numbers: int, materialized: int) -> None:
    """Add the partitions, and say of some that they are materialized."""
    names = [f"set-{number:03}" for number in range(sets)]
    keys = [str(number + 1) for number in range(numbers)]
    with dg.DagsterInstance.from_config(str(dagster_home(data))) as instance:
        instance.add_dynamic_partitions(str(prompt_sets.name), names)
        instance.add_dynamic_partitions(str(seeds.name), keys)
        # Without them Dagster asks first whether one is sure.
        for name in names:
            instance.report_runless_asset_event(
                dg.AssetMaterialization("prompt_set", partition=name)
            )
        cells = ((name, key) for key in keys for name in names)
        for (name, key), _ in zip(cells, range(materialized), strict=False):
            made = dg.AssetMaterialization(ASSET, partition=partition_key_of(name, int(key)))
            instance.report_runless_asset_event(made)


@contextmanager
def _dev(data: Path) -> Iterator[str]:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with child(
        "nanobanana dev",
        [
            *(sys.executable, "-c", "from nanobanana_pipeline.cli import app; app()"),
            *("dev", "--data", str(data), "--port", str(port)),
        ],
        log=data / "dev.log",
        ready=lambda: _is_up(url),
        grace_seconds=60,
    ):
        yield url


def _is_up(url: str) -> bool:
    query = {"query": "{ assetNodes { id } }"}
    try:
        answer = requests.post(f"{url}/graphql", json=query, timeout=10)
        return bool(answer.ok and answer.json()["data"]["assetNodes"])
    except requests.RequestException:
        return False


def _look(url: str, partitions: int) -> dict[str, float]:
    """Seconds until each page can be used, in a browser that has seen nothing yet."""
    seconds = {}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=ARGUMENTS
        )
        page = browser.new_page(viewport={"width": 1500, "height": 1000})
        page.set_default_timeout(LONGEST_MS)
        expect.set_options(timeout=LONGEST_MS)

        start = time.monotonic()
        page.goto(f"{url}/assets/{ASSET}", wait_until="domcontentloaded")
        expect(page.get_by_text("Every prompt of a set drawn")).to_be_visible()
        expect(page.get_by_role("button", name="Materialize…")).to_be_enabled()
        seconds["the asset's page"] = time.monotonic() - start

        start = time.monotonic()
        page.get_by_role("button", name="Materialize…").click()
        _choose_all(page)
        expect(page.get_by_text(f"{partitions:,} partitions")).to_be_visible()
        expect(page.get_by_role("button", name="Launch backfill")).to_be_enabled()
        seconds["the backfill dialog with all partitions chosen"] = time.monotonic() - start

        start = time.monotonic()
        page.goto(f"{url}/assets/{ASSET}?view=partitions", wait_until="domcontentloaded")
        expect(page.get_by_text(f"{partitions:,} Partitions Selected")).to_be_visible()
        expect(page.get_by_text("set-000").first).to_be_visible()
        seconds["its list of partitions with their statuses"] = time.monotonic() - start
        browser.close()
    return seconds


def _choose_all(page: Page) -> None:
    """Press All of both dimensions; while the keys are loading it chooses none."""
    deadline = time.monotonic() + LONGEST_MS / 1000
    for dimension in range(2):
        while page.get_by_text("partitions selected").count() <= dimension:
            page.get_by_role("button", name="All", exact=True).nth(dimension).click()
            page.wait_for_timeout(100)
            if time.monotonic() > deadline:
                raise TimeoutError("the dialog never let all partitions be chosen")


if __name__ == "__main__":
    main()
