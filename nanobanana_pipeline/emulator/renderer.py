"""Renders images on demand in a thread pool, and caches the last few: `Renderer`."""

import asyncio
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor

from nanobanana_pipeline.emulator.fields import PictureFields
from nanobanana_pipeline.emulator.pictures import ImageFormat, draw

# Two: a 2048x2048 picture is 12 MB while it is drawn, and the emulator shares a small machine.
_PAINTERS = 2
_KEPT = 64


class Renderer:
    """Pictures are never stored: a purchase can be drawn again at any time."""

    def __init__(self) -> None:
        self._painters = ThreadPoolExecutor(_PAINTERS, thread_name_prefix="emulator-painter")
        self._drawn: OrderedDict[tuple[bytes, ImageFormat, int], bytes] = OrderedDict()

    async def picture(self, fields: PictureFields, sample: int, image_format: ImageFormat) -> bytes:
        """Give the bytes of one picture; `sample` counts from 0."""
        # The caption tells how many samples there are, which the sample's digest leaves out.
        name = (fields.sample_digest(sample), image_format, fields.samples)
        drawn = self._drawn.pop(name, None)
        if drawn is None:
            loop = asyncio.get_running_loop()
            drawn = await loop.run_in_executor(self._painters, draw, fields, sample, image_format)
        self._drawn[name] = drawn
        if len(self._drawn) > _KEPT:
            self._drawn.popitem(last=False)
        return drawn

    def forget(self) -> None:
        """Keep none of the pictures drawn so far."""
        self._drawn.clear()

    def close(self) -> None:
        """Shut the thread pool down; images that were not begun are not drawn."""
        self._painters.shutdown(wait=False, cancel_futures=True)
