"""Serves images at their output addresses; no key is needed, as at the provider."""

import asyncio
import base64

from starlette.requests import Request
from starlette.responses import Response

from nanobanana_pipeline.emulator import answers
from nanobanana_pipeline.emulator.delivery import Delivery
from nanobanana_pipeline.emulator.image_faults import ALWAYS, ONCE, SPOILT
from nanobanana_pipeline.emulator.moods import Moods, Stage
from nanobanana_pipeline.emulator.provider import Provider
from nanobanana_pipeline.emulator.purchases import Purchase
from nanobanana_pipeline.emulator.renderer import Renderer

MEDIA_TYPES = {"png": "image/png", "jpg": "image/jpeg", "webp": "image/webp"}


class Outputs:
    """Draws what was bought, and answers the GETs of it."""

    def __init__(self, provider: Provider, renderer: Renderer, delivery: Delivery) -> None:
        self._provider = provider
        self._renderer = renderer
        self._delivery = delivery

    async def show(self, request: Request) -> Response:
        """Answer the GET of one output."""
        found = self._delivery.find(request.path_params["name"])
        if found is None:
            return answers.not_found()
        purchase, sample = found
        content = await self.content(purchase, sample)
        answer = Response(content, media_type=media_type(purchase))
        return _moody(answer, str(request.url), self._moods, _occasion(purchase, sample))

    async def outputs(self, purchase: Purchase, root: str) -> list[str]:
        """List what a finished purchase's `output` says; `root` is how we were reached."""
        links = self._delivery.links(purchase, root)
        if not purchase.base64:
            return links
        data_uri = self._moods.strikes("base64_data_uri", purchase.occasion)
        if not data_uri and not self._moods.strikes("base64_inline", purchase.occasion):
            return links
        head = f"data:{MEDIA_TYPES[purchase.image_format]};base64," if data_uri else ""
        texts = [await self.content(purchase, sample) for sample in range(len(links))]
        return [head + text.decode() for text in texts]

    async def content(self, purchase: Purchase, sample: int) -> bytes:
        """Give what one output holds: the picture, or its base64."""
        image = await self._picture(purchase, sample)
        return base64.b64encode(image) if purchase.base64 else image

    async def _picture(self, purchase: Purchase, sample: int) -> bytes:
        """Draw one picture, counted from 0, with what the moods do to its bytes."""
        fields = self._delivery.drawn_from(purchase)
        image = await self._renderer.picture(fields, sample, purchase.image_format)
        for mood in self._moods.striking(Stage.BYTES, _occasion(purchase, sample))[:1]:
            image = await asyncio.to_thread(SPOILT[mood], image)
        return image

    @property
    def _moods(self) -> Moods:
        return self._provider.moods  # a reset gives new ones


def media_type(purchase: Purchase) -> str:
    """Tell the type that an output is served as."""
    return "text/plain" if purchase.base64 else MEDIA_TYPES[purchase.image_format]


def _occasion(purchase: Purchase, sample: int) -> str:
    return f"{purchase.occasion}:{sample}"


def _moody(answer: Response, url: str, moods: Moods, occasion: str) -> Response:
    for mood, spoil in ONCE.items():
        if moods.strikes_once(mood, occasion):
            return spoil(answer, url)
    for mood in moods.striking(Stage.LINK, occasion)[:1]:
        return ALWAYS[mood](answer, url)
    return answer
