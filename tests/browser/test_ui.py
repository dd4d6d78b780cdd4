"""The Dagster UI in a real browser: a prompt set and a seed are added, materialized and looked at.

Screenshots are kept in `artifacts/`.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from nanobanana_pipeline import local
from tests.cli.test_profile import STOP_SECONDS, files_with, start_dev, wait_until_gone

CHROMIUM = shutil.which("chromium")
ARTIFACTS = Path(__file__).parents[2] / "artifacts"
REQUIRED = bool(os.environ.get("REQUIRE_DEBIAN_PACKAGES"))
TRIES = 30
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        CHROMIUM is None and not REQUIRED,
        reason="needs Debian's chromium: apt-get install chromium",
    ),
]


@pytest.fixture
def dev(tmp_path: Path) -> Iterator[str]:
    """`nanobanana dev` in a folder with one prompt table and a recipe; gives the UI's address."""
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "animals.csv").write_text(
        "id,prompt,width,height\nfox,a paper fox,1024,1024\nwhale,a glass whale,1024,1024\n"
    )
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "zoo.yaml").write_text(
        "name: zoo\ndescription: Two animals.\nlicence: CC0-1.0\n"
        "prompt_sets: [animals]\nsplits: {ratios: {train: 1}}\n"
    )
    data = tmp_path / "data"
    process, url = start_dev(data, tmp_path / "dev.log", cwd=tmp_path)
    try:
        yield url
    finally:
        process.terminate()
        process.wait(STOP_SECONDS)
        assert not wait_until_gone(data)
    # What a run that the UI launched leaves behind: run config, events, compute logs.
    assert files_with(data, local.API_KEY) == []


@pytest.fixture
def page() -> Iterator[Page]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        page = browser.new_page(viewport={"width": 1500, "height": 1000})
        page.set_default_timeout(30_000)
        try:
            yield page
        finally:
            keep(page, "last")
            browser.close()


def keep(page: Page, name: str) -> None:
    ARTIFACTS.mkdir(exist_ok=True)
    page.screenshot(path=ARTIFACTS / f"{name}.png")


def add_partition(page: Page, url: str, asset: str, dimension: int, key: str) -> None:
    """Add a partition in the dialog that the Materialize button opens."""
    page.goto(f"{url}/assets/{asset}", wait_until="domcontentloaded")
    page.get_by_role("button", name="Materialize…").click()
    page.get_by_role("button", name="Add a partition").nth(dimension).click()
    page.get_by_placeholder("name").fill(key)
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_placeholder("name")).to_have_count(0)


def materialize(page: Page, url: str, asset: str, dimensions: int) -> None:
    """Press Materialize, choose all partitions, and launch."""
    page.goto(f"{url}/assets/{asset}", wait_until="domcontentloaded")
    page.get_by_role("button", name="Materialize…").click()
    for dimension in range(dimensions):
        page.get_by_role("button", name="All", exact=True).nth(dimension).click()
    page.get_by_role("button", name="Launch 1 run").click()
    expect(page.get_by_role("dialog")).to_have_count(0)


def wait_for_partition(page: Page, url: str, asset: str, key: str) -> None:
    """Look at a partition until it is materialized."""
    for _ in range(TRIES):
        page.goto(
            f"{url}/assets/{asset}?view=partitions&partition={key}", wait_until="domcontentloaded"
        )
        expect(page.get_by_role("button", name="Materialize")).to_be_visible()
        page.wait_for_timeout(1500)
        if page.get_by_text("dagster/row_count").count():
            return
    keep(page, f"{asset}_missing")
    pytest.fail(f"{asset} {key} was not materialized; see the screenshot")


def wait_for_release(page: Page, url: str) -> None:
    """Look at a dataset's events until there is a release with pictures."""
    for _ in range(TRIES):
        page.goto(url, wait_until="domcontentloaded")
        page.wait_for_timeout(3000)
        if page.get_by_alt_text("pictures of each split").count():
            return
    keep(page, "release_missing")
    pytest.fail("no release was made; see the screenshot")


def expect_pictures(page: Page, *words: str) -> None:
    """Pictures are inline on this page, and have really been loaded."""
    for each in words:
        shown = page.get_by_alt_text(each).first
        expect(shown).to_be_visible()
        page.wait_for_function("each => each.naturalWidth > 0", arg=shown.element_handle())


@pytest.mark.timeout(900)
def test_a_prompt_set_and_a_seed_are_added_and_materialized(page: Page, dev: str) -> None:
    add_partition(page, dev, "prompt_set", 0, "animals")
    materialize(page, dev, "prompt_set", 1)
    wait_for_partition(page, dev, "prompt_set", "animals")
    expect(page.get_by_text("a paper fox")).to_be_visible()
    keep(page, "prompt_set")

    add_partition(page, dev, "generated_images", 1, "7")
    materialize(page, dev, "generated_images", 2)
    wait_for_partition(page, dev, "generated_images", "animals%7C7")
    expect(page.get_by_text("bought in this run")).to_be_visible()
    expect(page.get_by_text("s3://nanobanana/images/").first).to_be_attached()
    expect_pictures(page, "some of the pictures")
    keep(page, "generated_images")

    materialize(page, dev, "image_features", 2)
    wait_for_partition(page, dev, "image_features", "animals%7C7")
    expect_pictures(page, "the first pictures")
    keep(page, "image_features")

    page.goto(f"{dev}/assets/datasets/zoo", wait_until="domcontentloaded")
    # Who leaves the page too soon has launched nothing.
    with page.expect_response(lambda to: "mutation Launch" in (to.request.post_data or "")):
        page.get_by_role("button", name="Materialize").first.click()
    wait_for_release(page, f"{dev}/assets/datasets/zoo?view=events")
    expect_pictures(
        page,
        "some pictures of train",
        "pictures of each split",
        "pictures of each size in pixels",
        "pictures with each flag",
    )
    keep(page, "release")
    gallery = page.get_by_role("link", name="gallery.html").first
    assert "/nanobanana/datasets/zoo/v1/gallery.html" in str(gallery.get_attribute("href"))

    page.goto(f"{dev}/asset-groups", wait_until="domcontentloaded")
    for group in ("prompts", "images"):
        expect(page.get_by_text(group, exact=True).first).to_be_visible()
    page.keyboard.press("Alt+e")
    for asset in ("prompt_set", "generated_images"):
        expect(page.get_by_text(asset, exact=True).first).to_be_visible()
    expect(page.get_by_text("Loading…")).to_have_count(0)
    keep(page, "asset_graph")

    page.goto(f"{dev}/assets/generated_images", wait_until="domcontentloaded")
    button = page.get_by_role("button", name="Materialize…")
    button.locator("xpath=following::button[1]").click()
    page.get_by_text("Open launchpad").click()
    page.get_by_text("change_parameters").first.click()
    expect(page.get_by_text("A pilot: buy so many rows").first).to_be_visible()
    keep(page, "launchpad")
