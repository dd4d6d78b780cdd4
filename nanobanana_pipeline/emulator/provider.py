"""What the emulated provider knows and does, apart from speaking HTTP."""

import secrets
import time
import uuid
from dataclasses import replace
from typing import TYPE_CHECKING

from nanobanana_pipeline.emulator.clock import Clock
from nanobanana_pipeline.emulator.config import EmulatorConfig
from nanobanana_pipeline.emulator.fields import Order
from nanobanana_pipeline.emulator.moods import Moods
from nanobanana_pipeline.emulator.occupancy import Occupancy
from nanobanana_pipeline.emulator.purchases import NewPurchase, Purchase, PurchaseBook

if TYPE_CHECKING:
    from nanobanana_pipeline.emulator.bucket import Bucket

_LARGEST_RANDOM_SEED = 2**32 - 1
_SHARING = 4
_TEMP_SECONDS = 24 * 3600


class Provider:
    """One account at the provider: its clock, queue, moods and record of purchases.

    Used from the event loop alone. No method waits, so each one happens at once as seen by clients:
    two POSTs cannot both take the last place in the queue.
    """

    def __init__(self, config: EmulatorConfig) -> None:
        self.config = config
        # A real provider never gives an id twice. An emulator that kept no data must not either, or
        # clients would take another purchase's pictures for theirs: ids begin at the time, in µs,
        # which no server sells fast enough to overtake.
        self.book = PurchaseBook(config.data_dir, first_id=time.time_ns() // 1000)
        self.bucket: Bucket | None = None  # the customer's own, once it is registered
        self.clock = Clock(self.book.clock_offset())
        self._begin()

    def _begin(self) -> None:
        self.moods = Moods(self.config.moods, self.config.seed)
        self._shared_ids: dict[int, int] = {}
        self.queue = Occupancy(self.config.cap)
        now = self.clock.now()
        self.queue.restore(now, self.book.ready_times_after(now))

    def buy(self, order: Order, occasion: str) -> Purchase:
        """Accept an order: from here on it is paid for."""
        picture = order.picture
        if picture.seed == 0:
            # Truly random, unlike the dice: a restart must not repeat it.
            picture = replace(picture, seed=1 + secrets.randbelow(_LARGEST_RANDOM_SEED))
        shortest, longest = self.config.latency_seconds
        latency = shortest + (longest - shortest) * self.moods.roll("latency", occasion)
        now = self.clock.now()
        self.queue.enter(now, now + latency)
        return self.book.add(
            NewPurchase(
                picture=picture,
                track_id=order.track_id,
                occasion=occasion,
                bought_at=now,
                ready_at=now + latency,
                fails=self.moods.strikes("failed", occasion),
                output=str(uuid.uuid4()),
                base64=order.base64,
                temp=order.temp,
                image_format=(
                    "webp" if self.moods.strikes("webp", occasion) else self.config.image_format
                ),
            )
        )

    def find(self, purchase_id: str) -> Purchase | None:
        """Find a purchase by its id as it came in; None if there is none, or it is forgotten."""
        # 18 digits: a longer number would not fit SQLite's integers.
        if not (purchase_id.isascii() and purchase_id.isdigit() and len(purchase_id) <= 18):  # noqa: PLR2004 - see above
            return None
        purchase = self.book.by_id(int(purchase_id))
        if purchase is None or purchase.cleared or self.moods.strikes("forget", purchase.occasion):
            return None
        age = self.clock.now() - purchase.bought_at
        is_new = age < self.config.found_late_seconds
        return None if is_new and self.moods.strikes("found_late", purchase.occasion) else purchase

    def another(self, purchase: Purchase) -> Purchase | None:
        """Find a finished purchase of other pictures, to be taken for this one."""
        return self.book.another(purchase, self.clock.now())

    def id_told(self, purchase: Purchase) -> int:
        """Tell the id that clients are told: its own, or in the mood one for four in a row."""
        told = self._shared_ids
        if not self.moods.strikes("shared_id", purchase.occasion):
            return purchase.id
        if purchase.id not in told:
            last = next(reversed(told.values()), purchase.id)
            is_full = sum(each == last for each in told.values()) >= _SHARING
            told[purchase.id] = purchase.id if is_full else last
        return told[purchase.id]

    def is_ready(self, purchase: Purchase) -> bool:
        """Tell whether the generation has ended, well or not."""
        is_over = purchase.ready_at <= self.clock.now()
        return is_over and not self.moods.strikes("never_ready", purchase.occasion)

    def shows_images(self, purchase: Purchase) -> bool:
        """Tell whether the links lead to pictures: done, not failed, not expired."""
        age = self.clock.now() - purchase.ready_at
        life = self.config.expiry_seconds
        if purchase.temp:
            life = min(life, _TEMP_SECONDS)
        is_there = self.is_ready(purchase) and not (purchase.fails or purchase.cleared)
        return is_there and age < life

    def clear_queue(self) -> None:
        """Forget what is under way; the money is gone, so the record keeps it."""
        now = self.clock.now()
        self.book.clear_queue(now)
        self.queue.clear(now)

    def advance_clock(self, seconds: float) -> None:
        """Move the clock forward; a restart does not turn it back."""
        self.clock.advance(seconds)
        self.book.keep_clock_offset(self.clock.offset_seconds)

    def reset(self) -> None:
        """Forget all purchases, figures and S3 details, and go back to the moods of the start.

        The clock keeps its time and ids go on counting.
        """
        self.book.clear()
        self.bucket = None
        self._begin()

    def close(self) -> None:
        """Close the record."""
        self.book.close()
