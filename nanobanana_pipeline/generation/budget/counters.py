"""Counters of what was spent, one object a UTC day, a partition and a capped run, in the bucket.

A counter holds a reservation for each incarnation of a shard that buys under its cap. Answers get
lost, and processes stop at any line; two rules keep the counter right all the same:

- A reservation holds absolute values that its owner alone sets, so a write that is sent twice
  counts once. To close it is the only step that others may take.
- A step that finds its reservation closed, or gone after it was opened, changes nothing.

What is reserved counts as spent until the reservation is closed: a counter may say too much, and
never too little.
"""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Final

from pydantic import BaseModel, ConfigDict, Field, model_validator

from nanobanana_pipeline.bucket_keys import (
    Folder,
    day_budget_key,
    partition_budget_key,
    run_budget_key,
)
from nanobanana_pipeline.money import Budget, Cap, cost_of, cost_text
from nanobanana_pipeline.storage import ObjectStore, StoredObject
from nanobanana_pipeline.storage.cas import parse_json, swap

__all__ = [
    "Counter",
    "Reservation",
    "Scope",
    "counter_keys",
    "day_scope",
    "partition_scope",
    "run_scope",
]

SCHEMA: Final = 2
KEPT: Final = timedelta(days=7)
"""A closed reservation stays so long: `budget recount` can count it anew."""


class Reservation(BaseModel):
    """What an incarnation may buy; once it is closed, what it bought.

    Attributes:
        images: pictures, all that the incarnation bought before included.
        price: of one, when the incarnation began; None if it was unknown.
        opened: when (ISO 8601), by the S3 server's clock.
        closed: the same of its end; None while it is open.
    """

    model_config = ConfigDict(frozen=True)

    images: int
    price: Decimal | None = None
    opened: str
    closed: str | None = None


class Counter(BaseModel):
    """What was spent on one scope, and what is reserved.

    Attributes:
        images: spent by reservations that were closed long ago and are dropped.
        cost: money for those of them whose price was known.
        unpriced: those of them whose price was unknown.
        reservations: by ``<run id>/<shard>/<incarnation>``; those of version 0.1.0, which knew no
            incarnations, by ``<run id>/<shard>``.
    """

    model_config = ConfigDict(frozen=True)

    schema_version: int = Field(SCHEMA, alias="schema")
    images: int = 0
    cost: Decimal = Decimal(0)
    unpriced: int = 0
    reservations: dict[str, Reservation] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _read_schema_1(cls, stored: dict[str, object]) -> dict[str, object]:
        """Version 0.1.0 wrote ``reserved``, of open reservations with ``since`` and ``sign``."""
        if stored.get("schema") != 1:
            return stored
        reserved = stored.get("reserved", {})
        if not isinstance(reserved, dict):
            raise ValueError("its reservations are no object")  # noqa: TRY004 - pydantic's way
        renamed = {
            name: {"images": old["images"], "price": old.get("price"), "opened": old["since"]}
            for name, old in reserved.items()
        }
        return {**stored, "schema": SCHEMA, "reservations": renamed}

    @property
    def images_counted(self) -> int:
        """Spent and reserved images."""
        return self.images + sum(r.images for r in self.reservations.values())

    @property
    def cost_counted(self) -> Decimal:
        """Money spent and reserved, as far as prices were known."""
        costs = (cost_of(r.images, r.price) or Decimal(0) for r in self.reservations.values())
        return self.cost + sum(costs, Decimal(0))

    @property
    def unpriced_counted(self) -> int:
        """Spent and reserved images whose price was unknown."""
        bare = (r.images for r in self.reservations.values() if r.price is None)
        return self.unpriced + sum(bare)

    @property
    def cost_text(self) -> str:
        """`cost_counted` for people: what had no price adds an unknown amount, and not 0."""
        known = cost_text(self.cost_counted or None)
        is_partial = bool(self.cost_counted) and bool(self.unpriced_counted)
        return f"{known} + unknown" if is_partial else known

    @property
    def open(self) -> dict[str, Reservation]:
        """The reservations that are not closed."""
        return {name: r for name, r in self.reservations.items() if r.closed is None}

    def room(self, cap: Cap, price: Decimal | None, *, but: str = "") -> int | None:
        """How many images the cap has room for beside all reservations `but` one; None: no bound.

        Money sets no bound if the price of an image is unknown (None).
        """
        others = self._without(but)
        return cap.room(others.images_counted, others.cost_counted, price)

    def with_reservation(self, name: str, reservation: Reservation) -> "Counter":
        """A reservation as it is now."""
        return self.model_copy(update={"reservations": {**self.reservations, name: reservation}})

    def closed(self, name: str, images: int, now: datetime) -> "Counter":
        """The end of an open reservation: so many images were bought. Of others nothing changes."""
        mine = self.reservations.get(name)
        if mine is None or mine.closed is not None:
            return self
        ended = mine.model_copy(update={"images": images, "closed": now.isoformat()})
        return self.with_reservation(name, ended)

    def recounted(self, name: str, images: int) -> "Counter":
        """A closed reservation with what the ledger says by now; of others nothing changes."""
        mine = self.reservations.get(name)
        if mine is None or mine.closed is None:
            return self
        return self.with_reservation(name, mine.model_copy(update={"images": images}))

    def folded(self, now: datetime) -> "Counter":
        """Without the reservations that were closed long ago, whose images are summed up."""
        folded = self
        for name, old in self.reservations.items():
            if old.closed is not None and datetime.fromisoformat(old.closed) < now - KEPT:
                folded = folded._without(name).model_copy(
                    update={
                        "images": folded.images + old.images,
                        "cost": folded.cost + (cost_of(old.images, old.price) or Decimal(0)),
                        "unpriced": folded.unpriced + (old.images if old.price is None else 0),
                    }
                )
        return folded

    def _without(self, name: str) -> "Counter":
        rest = {other: r for other, r in self.reservations.items() if other != name}
        return self.model_copy(update={"reservations": rest})


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

    def change(self, step: Callable[[Counter], Counter]) -> Counter:
        """Change the counter, on top of whatever others have written meanwhile.

        Raises:
            StorageUnavailable: S3 stayed silent, or the counter is fought over, for a minute.
        """
        # Old reservations are dropped in a write that does nothing else: only so does every other
        # step find its reservation as it left it, or closed.
        is_folding = True
        while is_folding:

            def fold_or_step(counter: Counter) -> Counter:
                nonlocal is_folding
                folded = counter.folded(datetime.now(UTC))
                is_folding = folded != counter
                return folded if is_folding else step(counter)

            _, after = swap(self._store, self.key, self._parsed, fold_or_step, _to_json)
        return after

    def _parsed(self, found: StoredObject | None) -> Counter:
        if found is None:
            return Counter(schema=SCHEMA)
        parse = Counter.model_validate_json
        return parse_json(found.body, self._store.uri(self.key), parse, SCHEMA)


def counter_keys(store: ObjectStore) -> Iterator[str]:
    """The keys of all counters: of days, partitions and capped runs."""
    for folder, end in ((Folder.BUDGET, ".json"), (Folder.RUNS, "/budget.json")):
        yield from (key for key in store.keys(folder.prefix) if key.endswith(end))


def _to_json(counter: Counter) -> bytes:
    return counter.model_dump_json(by_alias=True, exclude_none=True).encode()


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
