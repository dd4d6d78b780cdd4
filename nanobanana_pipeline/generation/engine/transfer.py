"""`Transfer`, the engine's second stage: reads, verifies, hashes and stores images, then settles.

An image is downloaded and stored by PUT. One that the provider wrote into the customer's own bucket
is read with S3's credentials, and stored by a copy inside S3.
"""

import dataclasses
import hashlib
import logging
import threading
from datetime import UTC, datetime

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
from nanobanana_pipeline.generation.engine.metrics import NO_METRICS, Duration, Metrics
from nanobanana_pipeline.generation.engine.timing import DEFAULT_TIMING, Timing
from nanobanana_pipeline.images.inspect import CONTENT_TYPES, inspect
from nanobanana_pipeline.ledger import Held, Ledger, Outcome, StoredImage
from nanobanana_pipeline.provider.downloads import Downloader
from nanobanana_pipeline.provider.outcomes import Done, Failed, Missing
from nanobanana_pipeline.provider.protocol import Delivered, Original, Provider
from nanobanana_pipeline.storage import ObjectStore
from nanobanana_pipeline.wording import time_text

__all__ = ["Transfer", "Transferred"]

log = logging.getLogger(__name__)


class _Expired(ImageGone):
    """The provider has deleted a picture by its own rule: it will not come back."""


@dataclasses.dataclass(frozen=True)
class _VerifiedImage:
    """An image to be stored under `key`; `original` is an object of just these bytes."""

    key: str
    data: bytes = dataclasses.field(repr=False)
    digest: bytes
    content_type: str
    original: Original | None


@dataclasses.dataclass(frozen=True)
class Transferred:
    """The transfer of one accepted request.

    Attributes:
        held: its entry afterwards: settled, lost, or still accepted.
        images, size: how many were stored, and their bytes.
        reason: why it is not settled.
        refused: our own rules, or S3's, forbid to read it.
    """

    held: Held
    images: int
    size: int
    reason: str | None = None
    refused: bool = False


class Transfer:
    """Stores accepted requests' images in the bucket. Safe to share between threads.

    The run id is written beside every image. Once `give_up` is set, a silent bucket is waited for
    no longer; what was accepted stays so.
    """

    def __init__(
        self,
        store: ObjectStore,
        ledger: Ledger,
        provider: Provider,
        downloader: Downloader,
        *,
        run_id: str,
        metrics: Metrics = NO_METRICS,
        timing: Timing = DEFAULT_TIMING,
        give_up: threading.Event | None = None,
    ) -> None:
        self._store = store
        self._ledger = ledger
        self._provider = provider
        self._read_output = provider.reader(store, downloader)
        self._run_id = run_id
        self._metrics = metrics
        self._timing = timing
        self._give_up = give_up or threading.Event()
        self._lock = threading.Lock()
        self._failures = 0

    @property
    def is_stuck(self) -> bool:
        """Whether S3 accepts no images now, so that none should be bought."""
        return self._failures >= self._timing.stuck_after

    def settle(self, held: Held, nonce: str, done: Done) -> Transferred:
        """Store every image of an accepted attempt, then record that in the ledger.

        The entry stays accepted, to be resumed by its id, if bytes cannot be had for a passing
        reason; it is lost, with the good images kept, if they are gone or broken.

        Raises:
            StorageUnavailable: S3 stayed silent; the entry is as accepted as before.
        """
        samples = held.entry.samples
        images: list[StoredImage] = []
        problems: list[str] = []
        passing = refused = False
        for sample, url in enumerate(done.output[:samples]):
            try:
                images.append(self._transfer_or_ask_again(held, nonce, sample, url))
            except DownloadError as error:
                passing = passing or not isinstance(error, ImageGone | ImageBroken)
                refused = refused or isinstance(error, DownloadRefused)
                problems.append(f"sample {sample}: {error}")
        missing = samples - len(done.output)
        if missing < 0:
            log.warning(
                "request %s: %d pictures for %d samples; the rest is left where it is",
                held.entry.request_key,
                len(done.output),
                samples,
            )
        if missing > 0:
            problems.append(f"{missing} of {samples} samples never came")
        size = sum(image.size for image in images)
        reason = "; ".join(problems) or None
        if reason is None:
            held = self._ledger.record(
                held, lambda entry: entry.settle(nonce, images, done.echo.seed)
            )
        elif not passing:
            held = self._ledger.record(held, lambda entry: entry.lose(nonce, reason, images))
        return Transferred(held, len(images), size, reason, refused)

    def _transfer_or_ask_again(self, held: Held, nonce: str, sample: int, url: str) -> StoredImage:
        """`_transfer_image`; again from a fresh URL where the bytes are gone or broken."""
        try:
            return self._transfer_image(held, nonce, sample, url)
        except (ImageGone, ImageBroken):
            fresh = self._fresh_url(held, nonce, sample, url)
            if fresh is None:
                raise
        return self._transfer_image(held, nonce, sample, fresh)

    def _transfer_image(self, held: Held, nonce: str, sample: int, url: str) -> StoredImage:
        """Read, verify and store one image; with fewer tries, if the attempt is lost already.

        Raises:
            DownloadError: as the last try said.
            StorageUnavailable: S3 stayed silent.
        """
        timing = self._timing
        is_lost = held.entry.attempt(nonce).outcome is Outcome.LOST
        tries = timing.download_tries_once_lost if is_lost else timing.download_tries
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(
                lambda e: (
                    isinstance(e, DownloadError) and not isinstance(e, DownloadRefused | _Expired)
                )
            ),
            wait=tenacity.wait_exponential_jitter(multiplier=0.3, max=10),
            stop=tenacity.stop_after_delay(timing.download_seconds)
            | tenacity.stop_after_attempt(tries),
            reraise=True,
        )
        return retrying(self._transfer_once, held, nonce, sample, url)

    def _transfer_once(self, held: Held, nonce: str, sample: int, url: str) -> StoredImage:
        # Unchecked: a rule that is newer than the request must not stop its pictures.
        request = self._provider.request_model.model_construct(**held.entry.request)
        with self._metrics.timed(Duration.DOWNLOAD):
            delivered = self._read(held, nonce, url)
        data = delivered.data
        asked = request.size_asked or (None, None)
        facts = inspect(data, width=asked[0], height=asked[1])
        digest = hashlib.sha256(data)
        sha256 = digest.hexdigest()
        key = image_key(sha256, facts.format)
        content_type = CONTENT_TYPES[facts.format]
        image = _VerifiedImage(key, data, digest.digest(), content_type, delivered.original)
        self._store_with_retries(held, image)
        return StoredImage(
            sample=sample, sha256=sha256, size=len(data), key=key, **dataclasses.asdict(facts)
        )

    def _read(self, held: Held, nonce: str, url: str) -> Delivered:
        """An image's bytes.

        Raises:
            DownloadError: they cannot be had.
        """
        try:
            return self._read_output(url)
        except NotDelivered:
            raise
        except ImageGone as error:
            raise _explain_gone(
                error, held.entry.attempt(nonce).accepted, self._provider.kept_seconds
            ) from None

    def _store_with_retries(self, held: Held, image: _VerifiedImage) -> None:
        """`_store_once`, repeated while S3 is silent, within the patience for what was paid for.

        Raises:
            StorageFull: at once: waiting makes no room.
        """
        tenacity.Retrying(
            retry=tenacity.retry_if_exception(
                lambda e: isinstance(e, StorageUnavailable) and not isinstance(e, StorageFull)
            ),
            wait=tenacity.wait_exponential_jitter(multiplier=0.2, max=10),
            stop=tenacity.stop_after_delay(self._timing.paid_patience_seconds)
            | tenacity.stop_when_event_set(self._give_up),
            sleep=tenacity.sleep_using_event(self._give_up),
            after=self._count_failure,
            reraise=True,
        )(self._store_once, held, image)

    def _count_failure(self, failed: tenacity.RetryCallState) -> None:
        with self._lock:
            self._failures += 1
            is_first = self._failures == self._timing.stuck_after
        if is_first:
            error = failed.outcome and failed.outcome.exception()
            log.warning("nothing more is bought until S3 takes pictures again: %s", error)

    def _store_once(self, held: Held, image: _VerifiedImage) -> None:
        """Create the image, or record a second owner if the same bytes are stored already.

        Raises:
            ImageBroken: the original has changed since it was read.
        """
        request_key, original = held.entry.request_key, image.original
        metadata = {"request-key": request_key, "run-id": self._run_id}
        with self._metrics.timed(Duration.PUT):
            if original is None:
                created = self._upload(image, metadata)
            else:
                created = self._adopt(image, original, metadata)
        self._failures = 0
        if created:
            return
        stored = self._store.head(image.key)
        if stored is None and original is not None:
            raise ImageBroken(f"s3://{original.bucket}/{original.key} changed while it was copied")
        if stored is None:
            raise StorageUnavailable(
                f"{self._store.uri(image.key)} is there and is not: write it again"
            )
        if stored.get("request-key") != request_key:
            self._store.put(image_owner_key(image.digest.hex(), request_key), b"")

    def _adopt(self, image: _VerifiedImage, original: Original, metadata: dict[str, str]) -> bool:
        """Copy inside S3; if that is not allowed, upload the bytes."""
        try:
            return self._store.adopt(
                original.bucket,
                original.key,
                original.etag,
                image.key,
                content_type=image.content_type,
                metadata=metadata,
            )
        except StorageUnavailable:
            raise
        except StorageError as error:
            log.info("uploading what S3 does not copy: %s", error)
            return self._upload(image, metadata)

    def _upload(self, image: _VerifiedImage, metadata: dict[str, str]) -> bool:
        etag = self._store.create(
            image.key,
            image.data,
            sha256=image.digest,
            content_type=image.content_type,
            metadata=metadata,
        )
        return etag is not None

    def _fresh_url(self, held: Held, nonce: str, sample: int, url: str) -> str | None:
        """Another URL for the same image, if the provider names one now.

        Raises:
            DownloadError: the provider did not answer, so that the image may not be lost.
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


def _explain_gone(error: ImageGone, accepted: str | None, kept_seconds: int) -> ImageGone:
    """The error with the image's age, and whether the provider has deleted it by its own rule."""
    if accepted is None:
        return error
    age = (datetime.now(UTC) - datetime.fromisoformat(accepted)).total_seconds()
    if age >= kept_seconds:
        return _Expired(
            f"expired: the provider deletes pictures after {kept_seconds // 3600} hours; "
            f"accepted at {accepted} ({error})"
        )
    return ImageGone(f"{error}, {time_text(age)} after it was accepted")
