"""What shows that each mood of pictures is there."""

import io
from collections.abc import Callable

import pytest
import requests
from PIL import Image

from nanobanana_pipeline.emulator.image_faults import SPOILT
from tests.emulator.account import Account
from tests.emulator.conftest import LATENCY


def _link(account: Account, **fields: object) -> str:
    answer = account.buy(**fields)
    account.advance(LATENCY)
    link: str = account.fetch(answer["id"])["output"][0]
    assert answer["future_links"][0] == link
    return link


def _image(account: Account, **fields: object) -> Image.Image:
    return Image.open(io.BytesIO(account.get(_link(account, **fields)).content))


def _seed_ignored(account: Account) -> None:
    one, other = (account.get(_link(account, seed=seed)).content for seed in (2, 3))
    assert one == other
    record = account.admin("purchases")
    assert (record["total"], record["bought_twice"]) == (2, 0)


def _webp(account: Account) -> None:
    link = _link(account)
    image = account.get(link)
    assert (link[-5:], image.headers["content-type"]) == (".webp", "image/webp")
    assert Image.open(io.BytesIO(image.content)).format == "WEBP"


def _index_first(account: Account) -> None:
    link = _link(account)
    assert link.rpartition("/")[2].startswith("0-")
    assert account.get(link).status_code == 200


def _wrong_size(account: Account) -> None:
    assert _image(account).size == (512, 512)


def _lying_extension(account: Account) -> None:
    link = _link(account)
    image = account.get(link)
    assert (link[-4:], image.headers["content-type"]) == (".png", "image/png")
    assert Image.open(io.BytesIO(image.content)).format == "JPEG"


def _corrupt_chunk(account: Account) -> None:
    link = _link(account)
    for _ in range(2):
        image = Image.open(io.BytesIO(account.get(link).content))
        with pytest.raises(SyntaxError, match="broken PNG"):
            image.verify()


def _image_bomb(account: Account) -> None:
    image = account.get(_link(account)).content
    assert len(image) < 2**20
    with pytest.raises(Image.DecompressionBombError):
        Image.open(io.BytesIO(image))


def _provenance(account: Account) -> None:
    image = account.get(_link(account)).content
    assert image[37:41] == b"caBX"
    Image.open(io.BytesIO(image)).verify()
    out = io.BytesIO()
    Image.open(io.BytesIO(image)).save(out, "JPEG")
    marked = SPOILT["provenance"](out.getvalue())
    assert marked[2:4] == b"\xff\xeb"
    Image.open(io.BytesIO(marked)).load()


def _image_html(account: Account) -> None:
    link = _link(account)
    first, second = account.get(link), account.get(link)
    assert (first.status_code, first.text[:15]) == (200, "<!DOCTYPE html>")
    assert second.content[:4] == b"\x89PNG"


def _image_empty(account: Account) -> None:
    link = _link(account)
    first, second = account.get(link), account.get(link)
    assert (first.status_code, first.content) == (200, b"")
    assert second.content[:4] == b"\x89PNG"


def _expired_link(account: Account) -> None:
    link = _link(account)
    assert [account.get(link).status_code for _ in range(2)] == [404, 404]


def _image_redirect(account: Account) -> None:
    image = account.get(_link(account))
    assert [each.status_code for each in image.history] == [302]
    assert image.content[:4] == b"\x89PNG"


def _image_redirect_private(account: Account) -> None:
    answer = requests.get(_link(account), allow_redirects=False, timeout=10)
    assert answer.headers["location"].startswith("http://169.254.169.254/")


def _oversized(account: Account) -> None:
    with requests.get(_link(account), stream=True, timeout=10) as answer:
        assert "content-length" not in answer.headers
        assert sum(map(len, answer.iter_content(2**20))) > 64 * 2**20


def _text_plain(account: Account) -> None:
    image = account.get(_link(account))
    assert image.headers["content-type"].startswith("text/plain")
    assert image.content[:4] == b"\x89PNG"


PROOFS: dict[str, Callable[[Account], None]] = {
    proof.__name__[1:]: proof
    for proof in (
        _seed_ignored,
        _webp,
        _index_first,
        _wrong_size,
        _lying_extension,
        _corrupt_chunk,
        _image_bomb,
        _provenance,
        _image_html,
        _image_empty,
        _expired_link,
        _image_redirect,
        _image_redirect_private,
        _oversized,
        _text_plain,
    )
}
