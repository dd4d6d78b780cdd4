"""The engine's second stage: read → verify → hash → store → settle.

A picture is read by download, and stored by PUT. One that the provider wrote into the customer's
own bucket is read with S3's credentials, and stored by a copy inside S3.
"""

import hashlib
import logging
import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

import tenacity

from nanobanana_pipeline.bucket_keys import image_key, image_owner_key
from nanobanana_pipeline.errors import (
    DownloadError,
    DownloadRefused,
    ImageBroken,
    ImageGone,
    NotDelivered,
    StorageError,
    StorageFull,
    StorageUnavailable,
)
from nanobanana_pipeline.generation.engine.metrics import NO_METRICS, Metrics
from nanobanana_pipeline.images.inspect import CONTENT_TYPES, inspect
from nanobanana_pipeline.ledger import (
    PAID_PATIENCE_SECONDS,
    Held,
    Ledger,
    Outcome,
    StoredImage,
)
from nanobanana_pipeline.provider.downloads import Downloader
from nanobanana_pipeline.provider.outcomes import Done, Failed, Missing
from nanobanana_pipeline.provider.protocol import KEPT_SECONDS, Delivered, Original, Provider
from nanobanana_pipeline.storage import ObjectStore
from nanobanana_pipeline.wording import time_text

__all__ = ["Transfer", "Transferred"]

log = logging.getLogger(__name__)

TRIES: Final = 6
TRIES_ONCE_LOST: Final = 2
"""Every launch looks again at what was lost: a miracle needs no patience."""
STUCK_AFTER: Final = 8
"""So many uploads that failed in a row: S3 takes no pictures, whatever else it does."""


class _Expired(ImageGone):
    """The provider has deleted a picture by its own rule: it will not come back."""


@dataclass(frozen=True)
class _Picture:
    """A verified picture on its way to its place; `original` is an object of just these bytes."""

    key: str
    data: bytes = field(repr=False)
    digest: bytes
    content_type: str
    original: Original | None


@dataclass(frozen=True)
class Transferred:
    """What the second stage made of one accepted request.

    Attributes:
        held: its entry afterwards: settled, lost, or still accepted.
        images: pictures stored.
        size: their bytes.
        reason: why it is not settled.
        refused: our own rules, or S3's, forbid to read it.
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
        provider: Provider,
        downloader: Downloader,
        *,
        run_id: str,
        download_seconds: float = 60.0,
        metrics: Metrics = NO_METRICS,
    ) -> None:
        self._store = store
        self._ledger = ledger
        self._provider = provider
        self._read_output = provider.reader(store, downloader)
        self._run_id = run_id
        self._download_seconds = download_seconds
        self._metrics = metrics
        self.give_up = threading.Event()
        self._lock = threading.Lock()
        self._failures = 0

    @property
    def is_stuck(self) -> bool:
        """Whether S3 takes no pictures now, so that none should be bought."""
        return self._failures >= STUCK_AFTER

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
        for sample, url in enumerate(done.output[: request.samples]):
            try:
                images.append(self._bring_or_ask_again(held, nonce, sample, url))
            except DownloadError as error:
                passing = passing or not isinstance(error, ImageGone | ImageBroken)
                refused = refused or isinstance(error, DownloadRefused)
                problems.append(f"sample {sample}: {error}")
        missing = request.samples - len(done.output)
        if missing < 0:
            log.warning(
                "request %s: %d pictures for %d samples; the rest is left where it is",
                held.entry.request_key,
                len(done.output),
                request.samples,
            )
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
            return self._bring(held, nonce, sample, url)
        except (ImageGone, ImageBroken):
            fresh = self._fresh_url(held, nonce, sample, url)
            if fresh is None:
                raise
        return self._bring(held, nonce, sample, fresh)

    def _bring(self, held: Held, nonce: str, sample: int, url: str) -> StoredImage:
        """Read, verify and store one picture; what was lost before, with fewer tries.

        Raises:
            DownloadError: as the last try said.
            StorageUnavailable: S3 stayed silent.
        """
        is_lost = held.entry.attempt(nonce).outcome is Outcome.LOST
        for attempt in tenacity.Retrying(
            retry=tenacity.retry_if_exception(
                lambda e: (
                    isinstance(e, DownloadError) and not isinstance(e, DownloadRefused | _Expired)
                )
            ),
            wait=tenacity.wait_exponential_jitter(multiplier=0.3, max=10),
            stop=tenacity.stop_after_delay(self._download_seconds)
            | tenacity.stop_after_attempt(TRIES_ONCE_LOST if is_lost else TRIES),
            reraise=True,
        ):
            with attempt:
                return self._bring_once(held, nonce, sample, url)
        raise AssertionError  # tenacity gives a result or raises

    def _bring_once(self, held: Held, nonce: str, sample: int, url: str) -> StoredImage:
        request = held.entry.request
        with self._metrics.timed("download"):
            delivered = self._read(held, nonce, url)
        data = delivered.data
        asked = (request.width, request.height) if request.size_is_asked else (None, None)
        facts = inspect(data, width=asked[0], height=asked[1])
        digest = hashlib.sha256(data)
        sha256 = digest.hexdigest()
        key = image_key(sha256, facts.format)
        content_type = CONTENT_TYPES[facts.format]
        picture = _Picture(key, data, digest.digest(), content_type, delivered.original)
        self._store_patiently(held, picture)
        return StoredImage(
            sample=sample,
            sha256=sha256,
            size=len(data),
            format=facts.format,
            width=facts.width,
            height=facts.height,
            key=key,
            marks=facts.marks,
        )

    def _read(self, held: Held, nonce: str, url: str) -> Delivered:
        """A picture's bytes.

        Raises:
            DownloadError: they cannot be had.
        """
        try:
            return self._read_output(url)
        except NotDelivered:
            raise
        except ImageGone as error:
            raise _gone(error, held.entry.attempt(nonce).accepted) from None

    def _store_patiently(self, held: Held, picture: _Picture) -> None:
        """`_store_once`, however long S3 takes to come back, or until nobody waits any more.

        Raises:
            StorageFull: at once: no waiting makes room.
        """
        for attempt in tenacity.Retrying(
            retry=tenacity.retry_if_exception(
                lambda e: isinstance(e, StorageUnavailable) and not isinstance(e, StorageFull)
            ),
            wait=tenacity.wait_exponential_jitter(multiplier=0.2, max=10),
            stop=tenacity.stop_after_delay(PAID_PATIENCE_SECONDS)
            | tenacity.stop_when_event_set(self.give_up),
            sleep=tenacity.sleep_using_event(self.give_up),
            reraise=True,
        ):
            with attempt:
                try:
                    self._store_once(held, picture)
                except StorageFull:
                    raise
                except StorageUnavailable as error:
                    self._note_failure(error)
                    raise

    def _note_failure(self, error: StorageUnavailable) -> None:
        with self._lock:
            self._failures += 1
            is_news = self._failures == STUCK_AFTER
        if is_news:
            log.warning("nothing more is bought until S3 takes pictures again: %s", error)

    def _store_once(self, held: Held, picture: _Picture) -> None:
        """Create the image, or record a second owner where the same bytes lie already.

        Raises:
            ImageBroken: the original is not any more what was read from it.
        """
        request_key, original = held.entry.request_key, picture.original
        metadata = {"request-key": request_key, "run-id": self._run_id}
        with self._metrics.timed("put"):
            if original is None:
                created = self._upload(picture, metadata)
            else:
                created = self._adopt(picture, original, metadata)
        self._failures = 0
        if created:
            return
        stored = self._store.head(picture.key)
        if stored is None and original is not None:
            raise ImageBroken(f"s3://{original.bucket}/{original.key} changed while it was copied")
        if stored is None:
            raise StorageUnavailable(
                f"{self._store.uri(picture.key)} is there and is not: write it again"
            )
        if stored.get("request-key") != request_key:
            self._store.put(image_owner_key(picture.digest.hex(), request_key), b"")

    def _adopt(self, picture: _Picture, original: Original, metadata: dict[str, str]) -> bool:
        """Copy inside S3; where that is not allowed, upload the bytes that are here anyway."""
        try:
            return self._store.adopt(
                original.bucket,
                original.key,
                original.etag,
                picture.key,
                content_type=picture.content_type,
                metadata=metadata,
            )
        except StorageUnavailable:
            raise
        except StorageError as error:
            log.info("uploading what S3 does not copy: %s", error)
            return self._upload(picture, metadata)

    def _upload(self, picture: _Picture, metadata: dict[str, str]) -> bool:
        etag = self._store.create(
            picture.key,
            picture.data,
            sha256=picture.digest,
            content_type=picture.content_type,
            metadata=metadata,
        )
        return etag is not None

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


def _gone(error: ImageGone, accepted: str | None) -> ImageGone:
    """Why a picture that the provider keeps is gone: whether its time was over, and its age."""
    if accepted is None:
        return error
    age = (datetime.now(UTC) - datetime.fromisoformat(accepted)).total_seconds()
    if age >= KEPT_SECONDS:
        return _Expired(
            f"expired: the provider deletes pictures after {KEPT_SECONDS // 3600} hours; "
            f"accepted at {accepted} ({error})"
        )
    return ImageGone(f"{error}, {time_text(age)} after it was accepted")
