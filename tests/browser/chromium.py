"""Chromium, and what people do in Dagster's pages. Screenshots are kept in `artifacts/`."""

import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect, sync_playwright

from tests.graphql import Dagster

CHROMIUM = shutil.which("chromium")
ARTIFACTS = Path(__file__).parents[2] / "artifacts"
REQUIRED = bool(os.environ.get("REQUIRE_DEBIAN_PACKAGES"))
TRIES = 30
SLOW_MS = 120_000
"""A run on a busy machine, from the click to its end."""
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

needs_chromium = [
    pytest.mark.browser,
    pytest.mark.skipif(
        CHROMIUM is None and not REQUIRED,
        reason="needs Debian's chromium: apt-get install chromium",
    ),
]


@pytest.fixture
def page() -> Iterator[Page]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        page = browser.new_page(viewport={"width": 1500, "height": 1000})
        page.set_default_timeout(SLOW_MS)
        expect.set_options(timeout=SLOW_MS)
        try:
            yield page
        finally:
            keep(page, "last")
            browser.close()


def keep(page: Page, name: str) -> None:
    ARTIFACTS.mkdir(exist_ok=True)
    # So that no tooltip of what was clicked last lies over the page.
    page.mouse.move(1490, 990)
    page.wait_for_timeout(500)
    page.screenshot(path=ARTIFACTS / f"{name}.png")


def expect_pictures(page: Page, *words: str) -> None:
    """Pictures are inline on this page, and have really been loaded."""
    for each in words:
        shown = page.get_by_alt_text(each).first
        expect(shown).to_be_visible()
        page.wait_for_function("each => each.naturalWidth > 0", arg=shown.element_handle())


def add_partition(page: Page, url: str, asset: str, dimension: int, key: str) -> None:
    """Add a partition in the dialog that the Materialize button opens."""
    _open_dialog(page, url, asset)
    page.get_by_role("button", name="Add a partition").nth(dimension).click()
    page.get_by_placeholder("name").fill(key)
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_placeholder("name")).to_have_count(0)


def materialize_all(page: Page, url: str, asset: str, dimensions: int) -> None:
    """Press Materialize, choose all partitions, and launch them."""
    # The dialog that has just added a partition does not find it; a new page does.
    _open_dialog(page, url, asset)
    for dimension in range(dimensions):
        page.get_by_role("button", name="All", exact=True).nth(dimension).click()
    # While its keys were loading, a dimension's button has chosen none.
    while page.get_by_text("0 partitions", exact=True).count():
        for dimension in range(dimensions):
            page.get_by_role("button", name="All", exact=True).nth(dimension).click()
        page.wait_for_timeout(200)
    page.get_by_role("button", name=re.compile("Launch (1 run|backfill)")).click()
    expect(page.get_by_role("dialog")).to_have_count(0)


def _open_dialog(page: Page, url: str, asset: str) -> None:
    page.goto(f"{url}/assets/{asset}", wait_until="domcontentloaded")
    page.get_by_role("button", name="Materialize…").click()


def open_launchpad(page: Page, url: str, asset: str, partition: str) -> Locator:
    """Open the launchpad of one partition; gives its dialog."""
    page.goto(f"{url}/assets/{asset}", wait_until="domcontentloaded")
    page.get_by_role("button", name="Materialize…").locator("xpath=following::button[1]").click()
    page.get_by_text("Open launchpad").click()
    launchpad = page.get_by_role("dialog")
    expect(launchpad.get_by_text("No errors")).to_be_visible()
    page.get_by_placeholder("Partition").click()
    page.get_by_role("menuitem", name=partition).click()
    # Until it stands there too, Dagster asks whether to launch without a partition.
    expect(launchpad.get_by_text(f"partition: {partition}")).to_be_visible()
    return launchpad


def launch(page: Page, launchpad: Locator) -> None:
    """Press the launchpad's button; the run's page follows."""
    launchpad.get_by_role("button", name="Materialize").click()
    page.wait_for_url("**/runs/*", timeout=SLOW_MS)


def away(page: Page) -> None:
    """Leave while Dagster works: an open page asks and draws all the time."""
    page.goto("about:blank")


def wait_for_run(page: Page, url: str, run_id: str) -> None:
    """Stay away until a run has succeeded."""
    away(page)
    dagster = Dagster(url)
    assert dagster.wait_for(run_id) == "SUCCESS", dagster.log_of(run_id)


def open_partition(page: Page, url: str, asset: str, key: str) -> None:
    """Look at a partition once it is materialized."""
    away(page)
    dagster = Dagster(url)
    deadline = time.monotonic() + 2 * SLOW_MS / 1000
    while not dagster.materialized(asset, [key]):
        assert time.monotonic() < deadline, f"{asset} {key} was not materialized"
        time.sleep(1)
    address = f"{url}/assets/{asset}?view=partitions&partition={key.replace('|', '%7C')}"
    for _ in range(TRIES):
        page.goto(address, wait_until="domcontentloaded")
        expect(page.get_by_role("button", name="Materialize")).to_be_visible()
        page.wait_for_timeout(3000)
        if page.get_by_text("dagster/row_count").count():
            return
    keep(page, f"{asset}_missing")
    pytest.fail(f"{asset} {key} is materialized, and not shown; see the screenshot")


def open_check(page: Page, url: str, asset: str, check: str) -> None:
    """Go to an asset's checks, and to one of them."""
    page.goto(f"{url}/assets/{asset}", wait_until="domcontentloaded")
    page.get_by_role("tab", name="Checks").click()
    page.get_by_text(check, exact=True).first.click()
