"""An output may be a URL, a URL of text, base64 itself, or a data URI."""

import base64
import io

import pytest
from PIL import Image

from nanobanana_pipeline.errors import ImageBroken
from nanobanana_pipeline.provider.downloads import Downloader, is_url
from nanobanana_pipeline.provider.modelslab.delivery import OutputReader
from nanobanana_pipeline.provider.protocol import Delivered
from nanobanana_pipeline.storage import ObjectStore
from tests.conftest import Emulators, account_for
from tests.launching import check_images, keep_prompts, launch


def picture(kind: str) -> bytes:
    body = io.BytesIO()
    Image.new("RGB", (64, 64), "teal").save(body, kind)
    return body.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_inline_pictures_are_decoded(store: ObjectStore, kind: str) -> None:
    data = picture(kind)
    text = base64.b64encode(data).decode()
    wrapped = "\n".join(text[at : at + 76] for at in range(0, len(text), 76))
    read = OutputReader(store, Downloader())
    safe = base64.urlsafe_b64encode(data).decode()
    for output in (text, wrapped, safe, f"data:image/{kind.lower()};base64,{text}"):
        assert read(output) == Delivered(data)


def test_words_are_no_picture(store: ObjectStore) -> None:
    with pytest.raises(ImageBroken):
        OutputReader(store, Downloader())("sorry, try again later!")


def test_urls_are_told_from_text() -> None:
    assert is_url("https://example.com/a.png")
    assert not is_url("data:image/png;base64,AAAA")
    assert not is_url("iVBORw0KGgo=")


@pytest.mark.parametrize("mode", ["queued", "sync"])
@pytest.mark.parametrize("mood", [None, "base64_inline", "base64_data_uri"])
def test_pictures_delivered_as_base64_are_settled(
    store: ObjectStore, emulators: Emulators, mode: str, mood: str | None
) -> None:
    emulator = emulators(mode=mode, moods={mood: 1.0} if mood else {})
    rows = [{"prompt": f"number {n}", "base64": "yes"} for n in range(3)]
    keep_prompts(store, "texts", rows)
    done = launch(store, account_for(emulator.base_url, store), "texts")
    assert done.states == {"settled": 3}
    check_images(store, done.rows)
    for key in store.keys("ledger/"):
        entry = store.get(key)
        assert entry is not None
        assert len(entry.body) < 4000, "the ledger is no place for pictures"
