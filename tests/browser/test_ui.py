"""The Dagster UI of `nanobanana dev` in a real browser, from a table to a release and a stop."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests
from playwright.sync_api import Page, expect

from nanobanana_pipeline import local
from tests.browser.chromium import (
    SLOW_MS,
    add_partition,
    expect_pictures,
    keep,
    launch,
    materialize_all,
    needs_chromium,
    open_check,
    open_launchpad,
    open_partition,
    page,
    wait_for_run,
)
from tests.cli.test_profile import STOP_SECONDS, files_with, start_dev, wait_until_gone

__all__ = ["page"]

pytestmark = needs_chromium

ANIMALS = {
    "bear": "A polar bear reading the evening newspaper",
    "carp": "Two carp, gold on lacquer black, in the manner of a woodcut",
    "crow": "A crow with a red ribbon, oil on canvas",
    "fox": "A fox folded from a single sheet of orange paper",
    "frog": "A frog under a leaf, counting raindrops",
    "goat": "A mountain goat on a staircase that goes nowhere",
    "hare": "A hare running over fresh snow, seen from above",
    "heron": "A heron in morning mist, ink on rice paper",
    "moth": "A moth on a paper lantern, long exposure",
    "owl": "An owl made of brass clockwork, catalogue photograph",
    "snail": "A snail with a lighthouse for a shell, at low tide",
    "whale": "A glass whale over a city at night",
}
PLANTS = 300
"""So many that they are still being bought when somebody stops it."""


@dataclass(frozen=True)
class Dev:
    """`nanobanana dev` while it runs.

    Attributes:
        url: the UI's address.
        folder: where it was started: with `prompts/` and `recipes/`.
        emulator: the emulator's address.
    """

    url: str
    folder: Path
    emulator: str

    def purchases(self) -> tuple[int, int]:
        """How many were bought, and how many of them twice."""
        record = requests.get(f"{self.emulator}/admin/purchases", timeout=30).json()
        return record["total"], record["bought_twice"]


@pytest.fixture
def dev(tmp_path: Path) -> Iterator[Dev]:
    """It is started in a folder with one prompt table, of which a row is bad, and a recipe."""
    (tmp_path / "prompts").mkdir()
    rows = "".join(f'{name},"{prompt}",1024,1024\n' for name, prompt in ANIMALS.items())
    table = f"id,prompt,width,height\n{rows}yak,A yak in the rain,1000,1024\n"
    (tmp_path / "prompts" / "animals.csv").write_text(table)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "zoo.yaml").write_text(
        "name: zoo\ndescription: Twelve animals under two seeds.\nlicence: CC0-1.0\n"
        "prompt_sets: [animals]\nsplits: {ratios: {train: 0.8, test: 0.2}}\n"
    )
    data = tmp_path / "data"
    process, url = start_dev(data, tmp_path / "dev.log", cwd=tmp_path)
    try:
        base_url = local.running_profile(data).base_url
        yield Dev(url, tmp_path, base_url.partition("/api/")[0])
    finally:
        process.terminate()
        process.wait(STOP_SECONDS)
        assert not wait_until_gone(data)
    # What runs that the UI launched leave behind: run config, events, compute logs.
    assert files_with(data, local.API_KEY) == []


@pytest.mark.timeout(900)
def test_the_journey_from_a_table_to_a_release_and_a_stop(page: Page, dev: Dev) -> None:
    # A provider that ignores seeds: a check will tell.
    moods = {"seed_ignored": 1}
    requests.post(f"{dev.emulator}/admin/moods", json=moods, timeout=30).raise_for_status()
    make_a_prompt_set(page, dev)
    launch_a_pilot_from_the_launchpad(page, dev)
    complete_it_with_a_backfill(page, dev)
    measure_and_open_a_failing_check(page, dev)
    release(page, dev)
    start_a_sensor_and_drop_a_table(page, dev)
    terminate_a_run(page, dev)
    look_at_the_graph(page, dev)


def make_a_prompt_set(page: Page, dev: Dev) -> None:
    add_partition(page, dev.url, "prompt_set", 0, "animals")
    materialize_all(page, dev.url, "prompt_set", 1)
    open_partition(page, dev.url, "prompt_set", "animals")
    expect(page.get_by_text(ANIMALS["fox"])).to_be_visible()
    keep(page, "prompt_set")
    open_check(page, dev.url, "prompt_set", "quarantine_empty")
    expect(page.get_by_text("must be 1024 to 2048 and divisible by 32").first).to_be_visible()
    keep(page, "check_quarantine")


def launch_a_pilot_from_the_launchpad(page: Page, dev: Dev) -> None:
    add_partition(page, dev.url, "generated_images", 1, "7")
    launchpad = open_launchpad(page, dev.url, "generated_images", "animals|7")
    launchpad.get_by_text("rebuy").first.click()
    page.keyboard.press("End")
    page.keyboard.insert_text("\n      limit: 8\n      slots: 4")
    page.keyboard.press("Escape")
    expect(launchpad.get_by_text("A pilot: buy so many rows").first).to_be_visible()
    expect(launchpad.get_by_text("No errors")).to_be_visible()
    keep(page, "launchpad")
    launch(page, launchpad)
    run = page.url
    wait_for_run(page, dev.url, run.rpartition("/")[2])
    page.goto(run, wait_until="domcontentloaded")
    expect(page.get_by_text("Success", exact=True)).to_be_visible()
    expect(page.get_by_text("generated_images.collect").first).to_be_visible()
    keep(page, "run")
    assert dev.purchases() == (8, 0)

    open_partition(page, dev.url, "generated_images", "animals|7")
    expect_pictures(page, "some of the pictures")
    for told in ("bought in this run", "not_requested", "addresses"):
        expect(page.get_by_text(told).first).to_be_attached()
    keep(page, "generated_images")


def complete_it_with_a_backfill(page: Page, dev: Dev) -> None:
    add_partition(page, dev.url, "generated_images", 1, "8")
    materialize_all(page, dev.url, "generated_images", 2)
    open_partition(page, dev.url, "generated_images", "animals|8")
    expect_pictures(page, "some of the pictures")


def measure_and_open_a_failing_check(page: Page, dev: Dev) -> None:
    materialize_all(page, dev.url, "image_features", 2)
    for seed in (7, 8):
        open_partition(page, dev.url, "image_features", f"animals|{seed}")
    expect_pictures(page, "the first pictures")
    keep(page, "image_features")
    open_check(page, dev.url, "image_features", "seed_honesty")
    expect(page.get_by_text("Failed", exact=True).first).to_be_visible()
    expect(page.get_by_text("prompts with twins").first).to_be_visible()
    keep(page, "check_failing")


def release(page: Page, dev: Dev) -> None:
    page.goto(f"{dev.url}/assets/datasets/zoo", wait_until="domcontentloaded")
    # Who leaves the page too soon has launched nothing.
    with page.expect_response(lambda to: "mutation Launch" in (to.request.post_data or "")) as to:
        page.get_by_role("button", name="Materialize").first.click()
    [run_id] = set(re.findall(r'"([0-9a-f]{8}-[0-9a-f-]{27})"', to.value.text()))
    wait_for_run(page, dev.url, run_id)
    page.goto(f"{dev.url}/assets/datasets/zoo?view=events", wait_until="domcontentloaded")
    expect_pictures(
        page,
        "some pictures of train",
        "some pictures of test",
        "pictures of each split",
        "pictures of each size in pixels",
        "pictures with each flag",
    )
    page.set_viewport_size({"width": 1500, "height": 1300})
    keep(page, "release")
    page.set_viewport_size({"width": 1500, "height": 1000})
    gallery = page.get_by_role("link", name="gallery.html").first
    assert "/nanobanana/datasets/zoo/v1/gallery.html" in str(gallery.get_attribute("href"))


def start_a_sensor_and_drop_a_table(page: Page, dev: Dev) -> None:
    page.goto(f"{dev.url}/automation", wait_until="domcontentloaded")
    expect(page.get_by_text("buy_new_prompt_sets").first).to_be_visible()
    keep(page, "automation")
    page.get_by_role("link", name="new_prompt_tables").first.click()
    page.locator("label", has=page.get_by_role("checkbox")).click()
    rows = "".join(f"plant number {number},1024,1024\n" for number in range(PLANTS))
    (dev.folder / "prompts" / "plants.csv").write_text(f"prompt,width,height\n{rows}")
    expect(page.get_by_text("folder/plants.csv").first).to_be_visible(timeout=SLOW_MS)
    keep(page, "sensor")
    open_partition(page, dev.url, "prompt_set", "plants")


def terminate_a_run(page: Page, dev: Dev) -> None:
    before, _ = dev.purchases()
    launch(page, open_launchpad(page, dev.url, "generated_images", "plants|7"))
    while dev.purchases()[0] < before + 10:
        page.wait_for_timeout(200)
    page.get_by_role("button", name="Terminate").click()
    page.get_by_role("dialog").get_by_role("button", name="Terminate").click()
    expect(page.get_by_text("Canceled", exact=True).first).to_be_visible(timeout=SLOW_MS)
    page.keyboard.press("Escape")
    keep(page, "terminated")
    after, twice = dev.purchases()
    assert (before + 10 <= after < before + PLANTS, twice) == (True, 0)


def look_at_the_graph(page: Page, dev: Dev) -> None:
    page.set_viewport_size({"width": 1900, "height": 800})
    page.goto(f"{dev.url}/asset-groups", wait_until="domcontentloaded")
    for group in ("prompts", "images", "features", "datasets"):
        expect(page.get_by_text(group, exact=True).first).to_be_visible()
    page.keyboard.press("Alt+e")
    for asset in ("prompt_set", "generated_images", "image_features", "zoo"):
        expect(page.get_by_text(asset, exact=True).first).to_be_visible()
    expect(page.get_by_text("Loading…")).to_have_count(0)
    keep(page, "asset_graph")
