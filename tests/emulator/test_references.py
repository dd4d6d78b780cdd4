import base64
import io
import json
from collections.abc import Callable

import pytest
from PIL import Image

from tests.emulator.account import Account
from tests.emulator.conftest import LATENCY


def picture(width: int, height: int, colour: str = "red") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(out, "PNG")
    return out.getvalue()


def text(image: bytes) -> str:
    return base64.b64encode(image).decode()


def order(account: Account, endpoint: str = "img2img", **fields: object) -> dict[str, object]:
    answer = account.post(endpoint, {"prompt": "a red panda", "seed": 7} | fields)
    body: dict[str, object] = answer.json()
    return body


def test_a_reference_counts_by_its_bytes_however_it_is_given(account: Account) -> None:
    link = account.buy(seed=9)["future_links"][0]
    account.advance(LATENCY)
    image = account.get(link).content
    for reference in (link, text(image), [f"data:image/png;base64,{text(image)}"]):
        assert order(account, ref_image=reference)["status"] == "processing"
    record = account.admin("purchases")
    thrice, once = record["groups"]
    assert (thrice["count"], thrice["endpoint"], once["endpoint"]) == (3, "img2img", "text2img")
    account.advance(LATENCY)
    links = account.fetch(thrice["ids"][0])["output"]
    drawn = Image.open(io.BytesIO(account.get(links[0]).content))
    assert json.loads(drawn.info["emulator"])["references"] == thrice["references"]
    assert drawn.size == (1024, 1024)


@pytest.mark.parametrize(
    ("endpoint", "change"),
    [
        ("img2img", {"ref_image": [text(picture(1024, 1024, "blue"))]}),
        ("img2img", {"ref_image": ["https://elsewhere.test/a.png"], "width": 1024, "height": 1024}),
        ("multi_ref", {"ref_image": [text(picture(1024, 1024))]}),
    ],
)
def test_other_references_and_endpoints_are_other_pictures(
    account: Account, endpoint: str, change: dict[str, object]
) -> None:
    order(account, ref_image=text(picture(1024, 1024)))
    order(account, endpoint, **change)
    record = account.admin("purchases")
    assert (record["total"], record["bought_twice"]) == (2, 0)


def _size(answer: dict[str, object]) -> tuple[int, int]:
    meta = answer["meta"]
    assert isinstance(meta, dict)
    return meta["W"], meta["H"]


@pytest.mark.parametrize(
    ("fields", "size"),
    [
        ({"ref_image": text(picture(1500, 1100))}, (1504, 1088)),
        ({"ref_image": text(picture(10, 4000))}, (1024, 2048)),
        ({"ref_image": text(picture(1500, 1100)), "width": 2048}, (2048, 1088)),
        ({"ref_image": "https://elsewhere.test/a.png"}, (2048, 2048)),
        (
            {
                "ref_image": text(picture(3000, 2000)),
                "width": 1536,
                "height": 1536,
                "keep_original_aspect": "yes",
            },
            (1536, 1024),
        ),
    ],
    ids=["nearest", "bounded", "half given", "unknown", "aspect kept"],
)
def test_the_size_is_the_references_unless_told(
    account: Account, fields: dict[str, object], size: tuple[int, int]
) -> None:
    assert _size(order(account, "img2img", **fields)) == size


@pytest.mark.parametrize(
    ("endpoint", "reference", "words"),
    [
        ("img2img", lambda _: None, "ref_image is required"),
        ("multi_ref", lambda _: [], "ref_image is required"),
        ("multi_ref", lambda _: text(picture(64, 64)), "must be an array"),
        ("img2img", lambda _: ["no base64!"], "must be a URL or base64"),
        ("img2img", lambda _: "\ud800", "must be a URL or base64"),
        ("img2img", lambda _: "https://\ud800", "must be a URL or base64"),
        ("img2img", lambda _: 7, "must be an array"),
        ("img2img", lambda _: [{}], "must be an array"),
        ("img2img", lambda _: "http://127.0.0.1:port/", "must be a URL or base64"),
        ("img2img", lambda _: text(b"no image"), "could not be loaded"),
        ("img2img", lambda account: f"{account.root_url}/healthz", "could not be loaded"),
        ("img2img", lambda account: f"{account.root_url}/outputs/x.png", "could not be loaded"),
    ],
)
def test_what_is_no_reference_is_refused_with_the_reason(
    account: Account, endpoint: str, reference: Callable[[Account], object], words: str
) -> None:
    answer = order(account, endpoint, ref_image=reference(account))
    assert answer["status"] == "error"
    assert words in str(answer["message"])
    assert account.bought() == 0
