"""What it costs to measure a picture, in CPU time.

``uv run python -m benchmarks.features``

The pictures are shapes over soft noise: PNGs of about as many bytes as those of photographs.
"""

import hashlib
import io
import time
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageFilter
from rich.console import Console

from nanobanana_pipeline.cli.show import table_of
from nanobanana_pipeline.features.measure import measure

PICTURES = 20
NOISE = 12.0
SHAPES = 30


def main() -> None:
    """Measure some of each size, and tell how much of it is decoding."""
    _measure(io.BytesIO(draw(64, 0)))  # libraries load parts of themselves on the first call
    found = []
    for side in (1024, 2048):
        pictures = [draw(side, seed) for seed in range(PICTURES)]
        found.append(
            {
                "side": side,
                "MB": round(sum(map(len, pictures)) / PICTURES / 1e6, 1),
                "CPU ms": _cpu_ms(_measure, pictures),
                "of which decoding": _cpu_ms(lambda data: Image.open(data).load(), pictures),
            }
        )
    Console().print(table_of(pd.DataFrame(found), f"mean of {PICTURES} PNGs"))


def draw(side: int, seed: int) -> bytes:
    """A square PNG, always the same for a seed."""
    chance = np.random.default_rng(seed)
    levels = chance.normal(128, NOISE, (side, side, 3)).clip(0, 255).astype(np.uint8)
    picture = Image.fromarray(levels).filter(ImageFilter.GaussianBlur(0.6))
    pen = ImageDraw.Draw(picture)
    for x, y, red, green in chance.integers(0, 255, (SHAPES, 4)).tolist():
        left, top = x * side // 255, y * side // 255
        pen.ellipse((left, top, left + side // 6, top + side // 8), fill=(red, green, 90))
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


def _measure(data: io.BytesIO) -> None:
    body = data.getvalue()
    error = measure(hashlib.sha256(body).hexdigest(), body).error
    if error is not None:
        raise RuntimeError(error)


def _cpu_ms(work: Callable[[io.BytesIO], object], pictures: Sequence[bytes]) -> float:
    start = time.process_time()
    for data in pictures:
        work(io.BytesIO(data))
    return round((time.process_time() - start) / len(pictures) * 1000, 1)


if __name__ == "__main__":
    main()
