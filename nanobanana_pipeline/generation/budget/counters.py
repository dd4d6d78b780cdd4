"""Counters of what was spent, one object a UTC day, a partition and a capped run, in the bucket.

They are changed by compare-and-swap. What a shard has reserved counts as spent until it is closed:
so a counter may say too much, and never too little.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Final

from pydantic import BaseModel, ConfigDict, Field

from nanobanana_pipeline.bucket_keys import day_budget_key, partition_budget_key, run_budget_key
from nanobanana_pipeline.ledger import new_nonce
from nanobanana_pipeline.money import Budget, Cap, cost_of, cost_text
from nanobanana_pipeline.storage import ObjectStore, StoredObject
from nanobanana_pipeline.storage.cas import parse_json, swap

__all__ = ["Counter", "Reservation", "Scope", "day_scope", "partition_scope", "run_scope"]

SCHEMA: Final = 1


class Reservation(BaseModel):
    """What a shard may spend, and has not given back.

    Attributes:
        sign: of life; a new one whenever the shard comes back from a long silence.
    """

    model_config = ConfigDict(frozen=True)

    images: int
    price: Decimal | None = None
    since: str
    sign: str = ""


class Counter(BaseModel):
    """What was spent on one scope, and what is reserved.

    Attributes:
        images: spent by shards that have closed their account.
        cost: money for those of them whose price was known.
        unpriced: those of them whose price was unknown.
        reserved: by ``<run id>/<shard>``.
    """

    model_config = ConfigDict(frozen=True)

    schema_version: int = Field(SCHEMA, alias="schema")
    revision: str = Field(default_factory=new_nonce)
    images: int = 0
    cost: Decimal = Decimal(0)
    unpriced: int = 0
    reserved: dict[str, Reservation] = Field(default_factory=dict)

    @property
    def images_counted(self) -> int:
        """Spent and reserved images."""
        return self.images + sum(r.images for r in self.reserved.values())

    @property
    def cost_counted(self) -> Decimal:
        """Money spent and reserved, as far as prices were known."""
        return self.cost + sum(
            (cost_of(r.images, r.price) or Decimal(0) for r in self.reserved.values()), Decimal(0)
        )

    @property
    def unpriced_counted(self) -> int:
        """Spent and reserved images whose price was unknown."""
        bare = (r.images for r in self.reserved.values() if r.price is None)
        return self.unpriced + sum(bare)

    @property
    def cost_text(self) -> str:
        """`cost_counted` for people: what had no price adds an unknown amount, and not 0."""
        known = cost_text(self.cost_counted or None)
        is_partial = bool(self.cost_counted) and bool(self.unpriced_counted)
        return f"{known} + unknown" if is_partial else known

    def with_reserved(self, name: str, images: int, price: Decimal | None) -> "Counter":
        """A change of one shard's reservation by so many images; none is left at 0."""
        before = self.reserved.get(name)
        now = (before.images if before else 0) + images
        since = before.since if before else datetime.now(UTC).isoformat()
        rest = {other: r for other, r in self.reserved.items() if other != name}
        if now > 0:
            sign = before.sign if before else ""
            rest[name] = Reservation(images=now, price=price, since=since, sign=sign)
        return self._changed(reserved=rest)

    def confirmed(self, name: str) -> "Counter":
        """A shard's reservation with a new sign of life, if it still has one."""
        mine = self.reserved.get(name)
        if mine is None:
            return self
        alive = mine.model_copy(update={"sign": new_nonce()})
        return self._changed(reserved={**self.reserved, name: alive})

    def closed(self, name: str, spent: int, seen: Reservation | None = None) -> "Counter":
        """The end of a shard's reservation: so many images were spent.

        Args:
            name: the shard's.
            spent: images.
            seen: the reservation that was counted; if it is another by now, the shard lives, and
                nothing is changed. None for the shard's own account.
        """
        mine = self.reserved.get(name)
        if mine is None or seen not in {None, mine}:
            return self
        return self._changed(
            images=self.images + spent,
            cost=self.cost + (cost_of(spent, mine.price) or Decimal(0)),
            unpriced=self.unpriced + (spent if mine.price is None else 0),
            reserved={other: r for other, r in self.reserved.items() if other != name},
        )

    def _changed(self, **changes: object) -> "Counter":
        return self.model_copy(update={**changes, "revision": new_nonce()})


class Scope:
    """One counter in the bucket, and the cap on it.

    Args:
        store: the bucket.
        key: where the counter lies.
        cap: the most that may be spent.
        text: the scope in words, for people.
    """

    def __init__(self, store: ObjectStore, key: str, cap: Cap, text: str) -> None:
        self._store = store
        self.key = key
        self.cap = cap
        self.text = text

    def read(self) -> Counter:
        """The counter as it is now.

        Raises:
            StorageError: it is damaged, or of a newer version.
        """
        return self._parsed(self._store.get(self.key))

    def reserve(self, name: str, images: int, price: Decimal | None) -> int:
        """Reserve up to so many images more for a shard; gives how many the cap has room for."""
        granted = 0

        def grow(counter: Counter) -> Counter:
            nonlocal granted
            room = self.cap.room(counter.images_counted, counter.cost_counted, price)
            granted = images if room is None else min(images, room)
            return counter.with_reserved(name, granted, price) if granted else counter

        self.change(grow)
        return granted

    def change(self, step: Callable[[Counter], Counter]) -> Counter:
        """Change the counter, on top of whatever others have written meanwhile.

        Raises:
            StorageUnavailable: S3 stayed silent, or the counter is fought over, for a minute.
        """
        _, after = swap(self._store, self.key, self._parsed, step, _to_json)
        return after

    def _parsed(self, found: StoredObject | None) -> Counter:
        if found is None:
            return Counter(schema=SCHEMA)
        parse = Counter.model_validate_json
        return parse_json(found.body, self._store.uri(self.key), parse, SCHEMA)


def _to_json(counter: Counter) -> bytes:
    return counter.model_dump_json(by_alias=True).encode()


def day_scope(store: ObjectStore, budget: Budget, day: str | None = None) -> Scope:
    """All runs of a UTC day (ISO date); of today if None."""
    day = day or datetime.now(UTC).date().isoformat()
    return Scope(store, day_budget_key(day), budget.day, f"the day {day} (UTC)")


def partition_scope(store: ObjectStore, budget: Budget, prompt_set: str, seed: int) -> Scope:
    """Everything ever bought for a partition."""
    key = partition_budget_key(prompt_set, seed)
    return Scope(store, key, budget.partition, f"the partition {prompt_set}, seed {seed}")


def run_scope(store: ObjectStore, run_id: str, cap: Cap) -> Scope:
    """Everything that a run buys."""
    return Scope(store, run_budget_key(run_id), cap, "this run")
