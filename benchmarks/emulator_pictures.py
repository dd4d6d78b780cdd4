"""What the emulator pays to draw a picture, in CPU time.

``uv run python -m benchmarks.emulator_pictures``
"""

import time
from typing import Literal, get_args

import pandas as pd
from rich.console import Console

from nanobanana_pipeline.cli.show import table_of
from nanobanana_pipeline.emulator.fields import PictureFields
from nanobanana_pipeline.emulator.pictures import draw

PICTURES = 20
Format = Literal["png", "jpg"]


def main() -> None:
    """Draw some of each kind and print the mean."""
    found = []
    for side in (1024, 2048):
        for image_format in get_args(Format):
            start, size = time.process_time(), 0
            for seed in range(1, PICTURES + 1):
                fields = PictureFields(
                    prompt="a paper fox by the river",
                    negative_prompt="",
                    width=side,
                    height=side,
                    seed=seed,
                    samples=1,
                    noise_scale_start=7.5,
                    noise_scale_end=7.5,
                    noise_clip_std=2.5,
                    watermark=False,
                )
                size += len(draw(fields, 0, image_format))
            found.append(
                {
                    "side": side,
                    "format": image_format,
                    "CPU ms": round((time.process_time() - start) / PICTURES * 1000, 1),
                    "KB": round(size / PICTURES / 1000),
                }
            )
    Console().print(table_of(pd.DataFrame(found), f"mean of {PICTURES} pictures"))


if __name__ == "__main__":
    main()
