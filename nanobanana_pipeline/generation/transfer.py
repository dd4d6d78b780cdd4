"""The engine's second stage: download → verify → hash → PUT → settle."""

import hashlib
import threading
from dataclasses import dataclass

import tenacity

from nanobanana_pipeline.errors import (
    DownloadError,
    DownloadRefused,
    ImageBroken,
    ImageGone,
    StorageUnavailable,
)
from nanobanana_pipeline.images import CONTENT_TYPES, inspect
from nanobanana_pipeline.layout import image_key, image_owner_key
from nanobanana_pipeline.ledger import PAID_PATIENCE_SECONDS, Held, Ledger, StoredImage
from nanobanana_pipeline.provider.answers import Done, Failed, Missing
from nanobanana_pipeline.provider.client import ProviderClient
from nanobanana_pipeline.provider.delivery import receive
from nanobanana_pipeline.provider.downloads import Downloader
from nanobanana_pipeline.storage import ObjectStore

__all__ = ["Transfer", "Transferred"]


@dataclass(frozen=True)
class Transferred:
    """What the second stage made of one accepted request.

    Attributes:
        held: its entry afterwards: settled, lost, or still accepted.
        images: pictures stored.
        size: their bytes.
        reason: why it is not settled.
        refused: our own rules forbid to download from there.
    """

    held: Held
    images: int
    size: int
    reason: str | None = None
    refused: bool = False


class Transfer:
    """Brings accepted requests' images into the bucket. Safe to share between threads.

    Attributes:
        give_up: once set, a silent bucket is waited for no longer; what was accepted stays so.
    """

    def __init__(
        self,
        store: ObjectStore,
        ledger: Ledger,
        provider: ProviderClient,
        downloader: Downloader,
        *,
        run_id: str,
        download_seconds: float = 60.0,
    ) -> None:
        self._store = store
        self._ledger = ledger
        self._provider = provider
        self._downloader = downloader
        self._run_id = run_id
        self._download_seconds = download_seconds
        self.give_up = threading.Event()

    def settle(self, held: Held, nonce: str, done: Done) -> Transferred:
        """Store every picture of an accepted attempt, then say so in the ledger.

        Bytes that cannot be had for a passing reason leave the entry accepted, to be resumed by
        id; bytes that are gone or broken to the end make it lost, with the good ones kept.

        Raises:
            StorageUnavailable: S3 stayed silent; the entry is as accepted as before.
        """
        request = held.entry.request
        images: list[StoredImage] = []
        problems: list[str] = []
        passing = refused = False
        for sample, url in enumerate(done.output):
            try:
                images.append(self._bring_or_ask_again(held, nonce, sample, url))
            except DownloadError as error:
                passing = passing or not isinstance(error, ImageGone | ImageBroken)
                refused = refused or isinstance(error, DownloadRefused)
                problems.append(f"sample {sample}: {error}")
        missing = request.samples - len(done.output)
        if missing > 0:
            problems.append(f"{missing} of {request.samples} samples never came")
        size = sum(image.size for image in images)
        reason = "; ".join(problems) or None
        if reason is None:
            held = self._ledger.record(held, lambda entry: entry.settle(nonce, images, done.seed))
        elif not passing:
            held = self._ledger.record(held, lambda entry: entry.lose(nonce, reason, images))
        return Transferred(held, len(images), size, reason, refused)

    def _bring_or_ask_again(self, held: Held, nonce: str, sample: int, url: str) -> StoredImage:
        """`_bring`; where the bytes are gone or broken, once more from a URL asked for anew."""
        try:
            return self._bring(held, sample, url)
        except (ImageGone, ImageBroken):
            fresh = self._fresh_url(held, nonce, sample, url)
            if fresh is None:
                raise
        return self._bring(held, sample, fresh)

    def _bring(self, held: Held, sample: int, url: str) -> StoredImage:
        """Download, verify and store one picture.

        Raises:
            DownloadError: as the last try said.
            StorageUnavailable: S3 stayed silent.
        """
        request = held.entry.request
        for attempt in tenacity.Retrying(
            retry=tenacity.retry_if_exception(
                lambda e: isinstance(e, DownloadError) and not isinstance(e, DownloadRefused)
            ),
            wait=tenacity.wait_exponential_jitter(multiplier=0.3, max=10),
            stop=tenacity.stop_after_delay(self._download_seconds) | tenacity.stop_after_attempt(6),
            reraise=True,
        ):
            with attempt:
                data = receive(self._downloader, url)
                facts = inspect(data, width=request.width, height=request.height)
        digest = hashlib.sha256(data)
        sha256 = digest.hexdigest()
        key = image_key(sha256, facts.format)
        self._store_patiently(held, key, data, digest.digest(), CONTENT_TYPES[facts.format])
        return StoredImage(
            sample=sample,
            sha256=sha256,
            size=len(data),
            format=facts.format,
            width=facts.width,
            height=facts.height,
            key=key,
        )

    def _store_patiently(
        self, held: Held, key: str, data: bytes, digest: bytes, content_type: str
    ) -> None:
        """`_store_once`, however long S3 takes to come back, or until nobody waits any more."""
        for attempt in tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(StorageUnavailable),
            wait=tenacity.wait_exponential_jitter(multiplier=0.2, max=10),
            stop=tenacity.stop_after_delay(PAID_PATIENCE_SECONDS)
            | tenacity.stop_when_event_set(self.give_up),
            sleep=tenacity.sleep_using_event(self.give_up),
            reraise=True,
        ):
            with attempt:
                self._store_once(held, key, data, digest, content_type)

    def _store_once(
        self, held: Held, key: str, data: bytes, digest: bytes, content_type: str
    ) -> None:
        """Create the image, or record a second owner where the same bytes lie already."""
        request_key = held.entry.request_key
        created = self._store.create(
            key,
            data,
            sha256=digest,
            content_type=content_type,
            metadata={"request-key": request_key, "run-id": self._run_id},
        )
        if created is not None:
            return
        metadata = self._store.head(key)
        if metadata is None:
            raise StorageUnavailable(f"{self._store.uri(key)} is there and is not: write it again")
        if metadata.get("request-key") != request_key:
            self._store.put(image_owner_key(digest.hex(), request_key), b"")

    def _fresh_url(self, held: Held, nonce: str, sample: int, url: str) -> str | None:
        """Another URL for the same picture, if the provider names one now.

        Raises:
            DownloadError: it could not be asked, so nothing is known to be lost.
        """
        provider_id = held.entry.attempt(nonce).provider_id
        if provider_id is None:
            return None
        outcome = self._provider.fetch(provider_id)
        if isinstance(outcome, Done) and sample < len(outcome.output):
            return outcome.output[sample] if outcome.output[sample] != url else None
        if isinstance(outcome, Done | Failed | Missing):
            return None
        raise DownloadError(f"there are no good bytes yet, and the provider says: {outcome}")
