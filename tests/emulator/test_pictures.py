import io
import json
import time
from dataclasses import replace

import pytest
from PIL import Image, ImageChops

from nanobanana_pipeline.emulator.fields import PictureFields
from nanobanana_pipeline.emulator.pictures import ImageFormat, draw

FIELDS = PictureFields(
    prompt="a red panda",
    negative_prompt="",
    width=1024,
    height=1024,
    seed=7,
    samples=2,
    noise_scale_start=7.5,
    noise_scale_end=7.5,
    noise_clip_std=2.5,
    watermark=False,
)


def picture(fields: PictureFields, sample: int = 0) -> Image.Image:
    return Image.open(io.BytesIO(draw(fields, sample, "png"))).convert("RGB")


def share_that_differs(one: Image.Image, other: Image.Image) -> float:
    difference = ImageChops.difference(one, other).convert("L").point(lambda level: level > 8)
    return difference.histogram()[1] / (one.width * one.height)


@pytest.mark.parametrize(("image_format", "magic"), [("png", b"\x89PNG"), ("jpg", b"\xff\xd8\xff")])
def test_equal_fields_give_equal_bytes_of_the_right_kind(
    image_format: ImageFormat, magic: bytes
) -> None:
    fields = replace(FIELDS, width=2048, height=1056)
    image = draw(fields, 0, image_format)
    assert image == draw(replace(fields), 0, image_format)
    assert image[: len(magic)] == magic
    assert Image.open(io.BytesIO(image)).size == (2048, 1056)


@pytest.mark.parametrize(
    ("other", "sample"),
    [
        (replace(FIELDS, seed=8), 0),
        (replace(FIELDS, prompt="a red pandA"), 0),
        (replace(FIELDS, noise_clip_std=2.4), 0),
        (FIELDS, 1),
    ],
)
def test_any_other_picture_looks_different_at_a_glance(other: PictureFields, sample: int) -> None:
    assert share_that_differs(picture(FIELDS), picture(other, sample)) > 0.5


@pytest.mark.parametrize(
    "change", [{"prompt": "a red pandA"}, {"seed": 8}, {"samples": 3}], ids=str
)
def test_what_is_written_on_the_panel_follows_the_fields(change: dict[str, object]) -> None:
    """Within the panel there is only text, so a difference there is a different text."""
    panel = (80, 80, 300, 260)
    one = picture(FIELDS).crop(panel)
    levels = one.convert("L").getextrema()
    assert levels == (16, 244)
    other = picture(replace(FIELDS, **change)).crop(panel)  # type: ignore[arg-type]
    assert 0 < share_that_differs(one, other) < 0.05


@pytest.mark.parametrize("image_format", ["png", "jpg"])
def test_machines_can_read_prompt_and_seed_too(image_format: ImageFormat) -> None:
    info = Image.open(io.BytesIO(draw(FIELDS, 1, image_format))).info
    label = json.loads(info["emulator"] if image_format == "png" else info["comment"])
    assert label == {"prompt": "a red panda", "seed": 7, "sample": 1, "width": 1024, "height": 1024}


@pytest.mark.parametrize("image_format", ["png", "jpg"])
@pytest.mark.parametrize(
    "prompt",
    ["日本の赤いパンダ", "🐼" * 20_000, "\x00\t\u202e\x07", "W" * 5000, "حیوان", "a\n\n\nb" * 3000],
    ids=ascii,
)
def test_no_prompt_is_too_strange_to_draw(prompt: str, image_format: ImageFormat) -> None:
    image = draw(replace(FIELDS, prompt=prompt, seed=2**64 - 1), 0, image_format)
    Image.open(io.BytesIO(image)).load()


@pytest.mark.parametrize(("side", "bound_ms"), [(1024, 50), (2048, 200)])
def test_drawing_is_no_bottleneck(side: int, bound_ms: float) -> None:
    fields = replace(FIELDS, width=side, height=side)
    draw(fields, 0, "png")
    spent = []
    for seed in range(1, 6):
        begun = time.thread_time()
        draw(replace(fields, seed=seed), 0, "png")
        spent.append(time.thread_time() - begun)
    assert min(spent) * 1000 < bound_ms
