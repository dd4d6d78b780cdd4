"""What happens when a generation is ready: the customer's bucket is filled, the webhook is told."""

import asyncio
import contextlib
import functools
from dataclasses import replace

import requests
from botocore.exceptions import BotoCoreError, ClientError

from nanobanana_pipeline.emulator import answers
from nanobanana_pipeline.emulator.background import may_be_called, run_in_background
from nanobanana_pipeline.emulator.bucket import Bucket
from nanobanana_pipeline.emulator.clock import ClockStoppedError
from nanobanana_pipeline.emulator.delivery import Delivery
from nanobanana_pipeline.emulator.outputs import Outputs, media_type
from nanobanana_pipeline.emulator.provider import Provider
from nanobanana_pipeline.emulator.purchases import Purchase

_AT_ONCE = 4
_ACL_REFUSED = {"AccessControlListNotSupported", "AccessDenied"}
_WEBHOOK_SECONDS = 30  # within which the provider wants an answer


class Completion:
    """Looks after purchases until they are delivered. A restart ends all that was under way.

    Used from the event loop alone.
    """

    def __init__(self, provider: Provider, gallery: Outputs, delivery: Delivery) -> None:
        self._provider = provider
        self._outputs = gallery
        self._delivery = delivery
        self._tasks: set[asyncio.Task[None]] = set()
        self._uploads: dict[int, asyncio.Event] = {}
        self._turn = asyncio.Semaphore(_AT_ONCE)

    def look_after(self, purchase: Purchase, webhook: str | None, root: str) -> None:
        """Do later what this purchase needs; `root` is how the emulator was reached."""
        bucket = None if purchase.temp or purchase.fails else self._provider.bucket
        told = webhook if webhook is not None and may_be_called(webhook) else None
        if bucket is None and told is None:
            return
        if bucket is not None:
            self._uploads[purchase.id] = asyncio.Event()
        task = asyncio.create_task(self._complete(purchase, bucket, told, root))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def is_done(self, purchase: Purchase) -> bool:
        """Tell whether the generation has ended and its pictures are where they belong."""
        return self._provider.is_ready(purchase) and purchase.id not in self._uploads

    async def wait_for(self, purchase: Purchase) -> None:
        """Wait until the purchase is done.

        Raises:
            ClockStoppedError: The emulator stops before that.
        """
        await self._provider.clock.wait_until(purchase.ready_at)
        if (upload := self._uploads.get(purchase.id)) is not None:
            await upload.wait()

    def stop(self) -> None:
        """Look after nothing any more."""
        for task in self._tasks:
            task.cancel()

    async def _complete(
        self, purchase: Purchase, bucket: Bucket | None, webhook: str | None, root: str
    ) -> None:
        with contextlib.suppress(ClockStoppedError):
            try:
                await self._provider.clock.wait_until(purchase.ready_at)
                if bucket is not None and self._is_to_be_delivered(purchase):
                    await self._upload(purchase, bucket)
            finally:
                if (upload := self._uploads.pop(purchase.id, None)) is not None:
                    upload.set()
            if webhook is not None and self._is_to_be_delivered(purchase):
                await self._tell(purchase, webhook, root)

    def _is_to_be_delivered(self, purchase: Purchase) -> bool:
        found = self._provider.book.by_id(purchase.id)
        return found is not None and not found.cleared and self._provider.is_ready(purchase)

    async def _upload(self, purchase: Purchase, bucket: Bucket) -> None:
        """Fill the bucket; if that fails, the pictures stay at the provider's own addresses.

        A bucket that refuses the ACL gets nothing, and the answers name its addresses all the same:
        the contract does not say what happens then, so the worst is rehearsed.
        """
        names = self._delivery.names(purchase)
        async with self._turn:
            try:
                for sample, name in enumerate(names):
                    content = await self._outputs.content(purchase, sample)
                    put = functools.partial(bucket.put, name, content, media_type(purchase))
                    await run_in_background(put)
            except ClientError as error:
                if error.response.get("Error", {}).get("Code") not in _ACL_REFUSED:
                    return
            except (BotoCoreError, ValueError):
                return
        addresses = self._delivery.addresses(purchase, bucket)
        self._provider.book.deliver(purchase.id, tuple(addresses))

    async def _tell(self, purchase: Purchase, webhook: str, root: str) -> None:
        """Tell the webhook, as often and as truly as the moods will have it."""
        moods, clock = self._provider.moods, self._provider.clock
        if moods.strikes("webhook_never", purchase.occasion):
            return
        if moods.strikes("webhook_late", purchase.occasion):
            await clock.wait_until(clock.now() + self._provider.config.late_webhook_seconds)
        told = replace(purchase, id=self._provider.id_told(purchase))
        confuses = moods.strikes("webhook_other_id", purchase.occasion)
        other = self._provider.another(purchase) if confuses else None
        if other is not None:
            payload = answers.told_done(other, await self._outputs.outputs(other, root))
            payload["track_id"] = purchase.track_id
        elif moods.strikes("webhook_lies", purchase.occasion):
            payload = answers.told_done(told, self._delivery.wrong_links(purchase, root))
        elif purchase.fails:
            payload = answers.told_failed(told)
        else:
            found = self._provider.book.by_id(purchase.id) or purchase
            payload = answers.told_done(told, await self._outputs.outputs(found, root))
        if moods.strikes("webhook_request_id", purchase.occasion):
            payload["request_id"] = payload.pop("id")
        for _ in range(1 + moods.strikes("webhook_twice", purchase.occasion)):
            async with self._turn:
                await run_in_background(functools.partial(_post, webhook, payload))


def _post(url: str, payload: dict[str, object]) -> None:
    """Send a payload once. Whether it arrives is the receiver's business alone."""
    with contextlib.suppress(requests.RequestException, ValueError), requests.Session() as session:
        session.trust_env = False  # no proxy, and no password of whoever runs the emulator
        session.post(
            url, json=payload, timeout=_WEBHOOK_SECONDS, allow_redirects=False, stream=True
        ).close()
