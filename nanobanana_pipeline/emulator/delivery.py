"""Where the pictures of a purchase are found: the names of its outputs, and the way back."""

import re
import uuid
from dataclasses import replace

from nanobanana_pipeline.emulator.answers import OUTPUTS
from nanobanana_pipeline.emulator.bucket import Bucket
from nanobanana_pipeline.emulator.fields import PictureFields
from nanobanana_pipeline.emulator.provider import Provider
from nanobanana_pipeline.emulator.purchases import Purchase

_UUID = "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_NAMES = [
    re.compile(rf"(?P<output>{_UUID})-(?P<sample>[0-3])\.(?P<format>[a-z0-9]+)"),
    re.compile(rf"(?P<sample>[0-3])-(?P<output>{_UUID})\.(?P<format>[a-z0-9]+)"),
]
_TEMP = "temp/"
_THE_ONE_SEED = 1


class Delivery:
    """Names outputs for the answers, and finds the purchase behind a name."""

    def __init__(self, provider: Provider) -> None:
        self._provider = provider

    def links(self, purchase: Purchase, root: str) -> list[str]:
        """List the addresses of a purchase's pictures; `root` is how the emulator was reached."""
        if purchase.delivered is not None:
            return list(purchase.delivered)
        folder = f"{root}{OUTPUTS}{_TEMP if purchase.temp else ''}"
        return [f"{folder}{name}" for name in self.names(purchase)]

    def future_links(self, purchase: Purchase, root: str) -> list[str]:
        """List where the pictures will be, if all goes well."""
        bucket = None if purchase.temp else self._provider.bucket
        return self.addresses(purchase, bucket) if bucket else self.links(purchase, root)

    def wrong_links(self, purchase: Purchase, root: str) -> list[str]:
        """List addresses that look right and lead nowhere."""
        return self.links(replace(purchase, output=str(uuid.uuid4()), delivered=None), root)

    def addresses(self, purchase: Purchase, bucket: Bucket) -> list[str]:
        """List the addresses in the customer's bucket."""
        naive = self._provider.moods.strikes("double_slash", purchase.occasion)
        return [bucket.address(name, naive=naive) for name in self.names(purchase)]

    def names(self, purchase: Purchase) -> list[str]:
        """Name the outputs, in the order of their samples."""
        return [self._name(purchase, sample) for sample in range(purchase.picture.samples)]

    def find(self, name: str) -> tuple[Purchase, int] | None:
        """Find the purchase and the sample that a name stands for, if it can be seen now."""
        own_name = name.removeprefix(_TEMP)
        found = next((match for each in _NAMES if (match := each.fullmatch(own_name))), None)
        purchase = self._provider.book.by_output(found["output"]) if found else None
        if found is None or purchase is None or found["format"] != _extension(purchase):
            return None
        if purchase.temp != name.startswith(_TEMP):
            return None
        sample = int(found["sample"])
        if sample >= purchase.picture.samples or not self._provider.shows_images(purchase):
            return None
        return purchase, sample

    def drawn_from(self, purchase: Purchase) -> PictureFields:
        """Tell what is really drawn: a provider in the mood draws the same for every seed."""
        if self._provider.moods.strikes("seed_ignored", purchase.occasion):
            return replace(purchase.picture, seed=_THE_ONE_SEED)
        return purchase.picture

    def _name(self, purchase: Purchase, sample: int) -> str:
        index_first = self._provider.moods.strikes("index_first", purchase.occasion)
        stem = f"{sample}-{purchase.output}" if index_first else f"{purchase.output}-{sample}"
        return f"{stem}.{_extension(purchase)}"


def _extension(purchase: Purchase) -> str:
    return "base64" if purchase.base64 else purchase.image_format
