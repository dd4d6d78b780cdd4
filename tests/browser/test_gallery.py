"""A release's gallery in a real browser, opened where it lies in the bucket."""

from urllib.parse import quote

import pytest
from playwright.sync_api import Dialog, Page, expect

from nanobanana_pipeline import local
from nanobanana_pipeline.datasets.formats.gallery import GALLERY
from nanobanana_pipeline.datasets.publish import build_release
from nanobanana_pipeline.storage import ObjectStore
from tests.browser.chromium import keep, needs_chromium, page
from tests.datasets.release_rows import NOTHING_REJECTED, recipe, row, table

__all__ = ["page"]

pytestmark = needs_chromium

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)> “quoted”"
LOADED = "each => each.complete && each.naturalWidth > 0"


@pytest.fixture
def gallery(store: ObjectStore, s3_url: str, page: Page) -> list[str]:
    """A release of 200 pictures is open in the page; gives what the page asks for and says."""
    rows = [row(store, number, side=64) for number in range(200)]
    rows[3]["prompt"] = HOSTILE
    rows[5]["blank"] = True
    rows[12]["seed_reported"] = rows[12]["seed_asked"]
    release = build_release(store, recipe(), table(rows), NOTHING_REJECTED, parent=None)
    noted: list[str] = []
    page.on("request", lambda request: noted.append(request.url))
    page.on("console", lambda message: noted.append(message.text))
    page.on("pageerror", lambda error: noted.append(str(error)))

    def dismiss(dialog: Dialog) -> None:
        noted.append(dialog.message)
        dialog.dismiss()

    page.on("dialog", dismiss)
    key = quote(store.prefix + release.file(GALLERY).key)
    page.goto(f"{s3_url}/{local.BUCKET}/{key}", wait_until="domcontentloaded")
    expect(page.locator("#count")).to_have_text("200 pictures")
    return noted


def test_a_gallery_is_searched_filtered_and_looked_at(page: Page, gallery: list[str]) -> None:
    cards, count = page.locator(".card"), page.locator("#count")
    # What is far below is not there yet.
    assert 0 < cards.count() < 200
    assert cards.first.locator("img").evaluate(LOADED)
    keep(page, "gallery")

    page.keyboard.press("/")
    page.keyboard.type("CAT 7”,")
    # Prompts come twice, under two seeds: those of 7, 17 and so on up to 97.
    expect(count).to_have_text("20 of 200")
    page.locator("#words").fill("")
    page.select_option("#split", "test")
    expect(count).to_have_text("50 of 200")
    page.select_option("#seed", "2")
    expect(count).to_have_text("25 of 200")
    page.locator("#words").fill("nothing is like this")
    expect(page.locator("#none")).to_be_visible()
    page.locator("#again").click()
    expect(count).to_have_text("200 pictures")
    page.select_option("#flag", "blank")
    expect(cards).to_have_count(1)
    expect(cards).to_contain_text("blank or near-uniform")
    page.select_option("#flag", "mark c2pa")
    expect(count).to_have_text("193 of 200")
    page.locator("#reset").click()

    page.locator("#words").fill("alert")
    expect(cards).to_have_count(1)
    cards.click()
    detail = page.locator("#detail")
    expect(detail.locator("h2")).to_have_text(HOSTILE)
    assert detail.locator("img").evaluate(LOADED)
    keep(page, "gallery_detail")
    for told in ("image uri", "s3://", "request key", "provider id", "seed reported", "unknown"):
        expect(detail.locator("#facts")).to_contain_text(told)
    page.keyboard.press("Escape")
    expect(detail).to_be_hidden()
    # Neither the prompt nor anything else made the page speak or ask for something.
    assert [each for each in gallery if not each.startswith("data:")] == [page.url]


@pytest.mark.usefixtures("gallery")
def test_a_gallery_is_looked_at_by_keyboard_alone(page: Page) -> None:
    cards, detail = page.locator(".card"), page.locator("#detail")
    page.locator("#reset").focus()
    cards.first.focus()
    page.keyboard.press("ArrowRight")
    expect(cards.nth(1)).to_be_focused()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowUp")
    expect(cards.nth(1)).to_be_focused()
    page.keyboard.press("Enter")
    expect(detail.locator("#place")).to_have_text("2 of 200")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    expect(detail.locator("#place")).to_have_text("4 of 200")
    expect(detail.locator("h2")).to_have_text(HOSTILE)
    page.keyboard.press("Escape")
    expect(cards.nth(3)).to_be_focused()
    # More come while one walks down; the last one can be reached.
    page.mouse.wheel(0, 50_000)
    expect(cards).to_have_count(200)
