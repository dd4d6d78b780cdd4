"""Pictures inside metadata: small enough that Dagster shows them, with addresses that last."""

import base64
import io
import re
import xml.dom.minidom

import dagster as dg
import numpy as np
import pytest
from PIL import Image

from dagster_nanobanana.presentation.pictures_and_plots import (
    MARKDOWN_CHARACTERS,
    plot,
    shown_picture,
)


def noisy(seed: int) -> bytes:
    levels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(levels).resize((256, 256), Image.Resampling.NEAREST).save(out, "PNG")
    return out.getvalue()


def refused() -> list[bytes]:
    pytest.fail("no picture is needed where one is stored")


def drawn(value: dg.MetadataValue) -> str:
    """The SVG of a plot."""
    found = re.fullmatch(r"!\[[^]]*\]\(data:image/svg\+xml;base64,([^)]*)\)", str(value.value))
    assert found is not None
    return base64.b64decode(found[1]).decode()


def test_a_stored_picture_is_shown_by_its_address() -> None:
    shown = shown_picture("some pictures", "http://127.0.0.1:1/b/a%20b.webp?v=1", refused)
    assert shown.value == "![some pictures](http://127.0.0.1:1/b/a%20b.webp?v=1)"


def test_without_an_address_small_pictures_stand_in_the_event() -> None:
    shown = str(shown_picture("a [b]", None, lambda: [noisy(seed) for seed in range(4)]).value)
    assert len(shown) <= MARKDOWN_CHARACTERS
    found = re.fullmatch(r"!\[a \(b\)\]\(data:image/webp;base64,([^)]*)\)", shown)
    assert found is not None
    with Image.open(io.BytesIO(base64.b64decode(found[1]))) as image:
        assert (image.format, image.width >= image.height >= 48) == ("WEBP", True)
    assert shown_picture("none", None, list).value == "none"


def test_a_plot_has_a_bar_and_a_label_each_the_largest_first() -> None:
    svg = drawn(plot("splits", {"test": 250, "train": 1000, "none": 0, "one": 1}))
    xml.dom.minidom.parseString(svg)  # noqa: S318 - our own; raises where it is malformed
    labels = re.findall(r"<text[^>]*>([^<]*)</text>", svg)
    assert labels == ["train 1,000", "test 250", "one 1", "none 0"]
    widths = [int(width) for width in re.findall(r"h(\d+)v", svg)]
    assert widths == [widths[0], widths[0] // 4, 1, 0]


def test_a_plot_stays_short_whatever_is_counted() -> None:
    counts = {f"<a & very long label, number {n}>": n + 1 for n in range(40)}
    shown = plot("many", counts)
    assert len(str(shown.value)) <= MARKDOWN_CHARACTERS
    svg = drawn(shown)
    xml.dom.minidom.parseString(svg)  # noqa: S318 - our own; raises where it is malformed
    totals = [int(each.replace(",", "")) for each in re.findall(r"([\d,]+)</text>", svg)]
    assert sum(totals) == sum(counts.values())
    assert re.search(r"\d+ others", svg)
    assert plot("nothing", {}).value == "none"
    assert "all 0" in drawn(plot("zero", {"all": 0}))
