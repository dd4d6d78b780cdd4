"""What pictures cost, and how much may be spent. An unknown price is unknown, and not 0."""

from dataclasses import dataclass
from decimal import ROUND_DOWN, Decimal
from typing import TypeVar

from nanobanana_pipeline.wording import counted

__all__ = ["Budget", "Cap", "cost_of", "cost_text"]

Number = TypeVar("Number", int, Decimal)


@dataclass(frozen=True)
class Cap:
    """The most that may be spent on something; None knows no bound.

    Attributes:
        images: pictures.
        cost: money, in the currency of the price.
    """

    images: int | None = None
    cost: Decimal | None = None

    def room(self, images: int, cost: Decimal, price: Decimal | None) -> int | None:
        """How many more images may be bought, beside those spent or reserved; None without bound.

        Money sets no bound if the price of an image is unknown (None), or 0.
        """
        rooms = []
        if self.images is not None:
            rooms.append(self.images - images)
        if self.cost is not None and price:
            rooms.append(int(((self.cost - cost) / price).to_integral_value(ROUND_DOWN)))
        return max(0, min(rooms)) if rooms else None

    def less(self, images: int, price: Decimal | None) -> "Cap":
        """What is left of it after so many images."""
        spent = cost_of(images, price) or Decimal(0)
        return Cap(
            None if self.images is None else max(0, self.images - images),
            None if self.cost is None else max(Decimal(0), self.cost - spent),
        )

    @property
    def is_reached(self) -> bool:
        """Whether it has no room at all."""
        return self.images == 0 or self.cost == 0

    def tightened(self, other: "Cap") -> "Cap":
        """The stricter of both in each respect."""
        return Cap(_least(self.images, other.images), _least(self.cost, other.cost))

    def __str__(self) -> str:
        parts = [counted(self.images, "image")] if self.images is not None else []
        parts += [cost_text(self.cost)] if self.cost is not None else []
        return " and ".join(parts) or "no cap"


@dataclass(frozen=True)
class Budget:
    """The price of an image, and the caps that hold for every launch.

    Attributes:
        price: money an image; None if unknown.
        day: everything bought on one UTC day, over all runs and machines.
        partition: everything ever bought for one prompt set under one seed.
        run: everything that one run buys.
    """

    price: Decimal | None = None
    day: Cap = Cap()
    partition: Cap = Cap()
    run: Cap = Cap()


def cost_of(images: int, price: Decimal | None) -> Decimal | None:
    """Images times price; None if the price is unknown."""
    return None if price is None else images * price


def cost_text(cost: Decimal | None) -> str:
    """Money for people; the currency is that of the configured price."""
    return "unknown" if cost is None else f"{cost:,.2f}"


def _least(one: Number | None, other: Number | None) -> Number | None:
    given = [value for value in (one, other) if value is not None]
    return min(given) if given else None
