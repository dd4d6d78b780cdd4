"""The arithmetic of `docs/scaling.md`: from a laptop to 100 million images a month.

``uv run python -m benchmarks.scaling`` prints its tables; `tests/deploy/test_scaling.py` counts
what is said to be counted, and compares the page with what is printed here.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from rich.console import Console

from nanobanana_pipeline.ledger.ledger import ENTRY_READERS

__all__ = ["COUNTED", "Counted", "S3Cost", "tables"]

MONTH_SECONDS: Final = 30 * 86_400
LATENCY_SECONDS: Final = 2.0
PICTURE_MB: Final = 5.1
CPU_SECONDS_AN_IMAGE: Final = 0.07
S3_READ_SECONDS: Final = 0.1
S3_WRITES_A_SECOND: Final = 3_500
LIST_PAGE: Final = 1_000
DAGSTER_PARTITIONS: Final = 100_000
MONTHLY: Final = (10_000, 1_000_000, 10_000_000, 100_000_000)
CAPS: Final = (5, 10, 15, 50, 80)
ROWS: Final = (1_000, 10_000, 100_000, 1_000_000)


@dataclass(frozen=True)
class Counted:
    """What one small launch of one sample a request takes; a test counts it anew.

    Attributes:
        writes, reads: S3 calls a request, PUT and GET.
        calls_besides: of a partition's launch through Dagster, whatever its size; at most.
        entry_bytes: of a settled ledger entry.
        row_bytes: of a manifest, for each further row.
        run_objects: left under ``runs/`` by a partition's launch through Dagster.
        events, event_bytes: of a partition in Dagster's log, pictures and features.
    """

    writes: int = 4
    reads: int = 1
    calls_besides: int = 90
    entry_bytes: int = 1_000
    row_bytes: int = 140
    run_objects: int = 7
    events: int = 46
    event_bytes: int = 110_000


COUNTED: Final = Counted()


@dataclass(frozen=True)
class S3Cost:
    """AWS's list prices in US dollars for S3 Standard in us-east-1, without transfer."""

    write: float = 0.005 / 1_000
    read: float = 0.0004 / 1_000
    tiers: tuple[tuple[float, float], ...] = ((50.0, 23.0), (450.0, 22.0), (math.inf, 21.0))
    """Terabytes, and what each costs a month."""

    def requests(self, images: int) -> float:
        """What the calls for so many images cost."""
        return images * (COUNTED.writes * self.write + COUNTED.reads * self.read)

    def storage(self, terabytes: float) -> float:
        """What so much costs a month."""
        cost = 0.0
        for size, price in self.tiers:
            part = min(terabytes, size)
            cost += part * price
            terabytes -= part
        return cost


def tables() -> dict[str, str]:
    """The page's tables in Markdown, by name."""
    return {
        "counted": _counted(),
        "cap": _by_cap(),
        "volume": _by_volume(),
        "partition": _by_partition(),
    }


def _counted() -> str:
    million = S3Cost().requests(1_000_000)
    return _markdown(
        ["counted", "figure"],
        [
            ["S3 writes a request: claim, acceptance, picture, settling", f"{COUNTED.writes}"],
            ["S3 reads a request: plan", f"{COUNTED.reads}"],
            ["S3 calls besides, a partition's launch", f"up to {COUNTED.calls_besides}"],
            ["S3 requests for a million images, $", _figure(million)],
            ["a settled ledger entry, bytes", f"{COUNTED.entry_bytes:,}"],
            ["a manifest's row, bytes", f"{COUNTED.row_bytes}"],
            ["objects under `runs/` a launch", f"{COUNTED.run_objects}"],
            ["events in Dagster's log a partition", f"{COUNTED.events}"],
            ["their size, bytes", f"{COUNTED.event_bytes:,}"],
        ],
    )


def _by_volume() -> str:
    cost = S3Cost()
    rows: list[tuple[str, Callable[[int], str]]] = [
        ("images/s, mean", lambda n: _figure(n / MONTH_SECONDS)),
        ("slots in use", lambda n: _figure(n / MONTH_SECONDS * LATENCY_SECONDS)),
        ("S3 writes/s", lambda n: _figure(n / MONTH_SECONDS * COUNTED.writes)),
        (
            "of what one prefix takes",
            lambda n: f"{n / MONTH_SECONDS * COUNTED.writes / S3_WRITES_A_SECOND:.2%}",
        ),
        ("S3 requests, $ a month", lambda n: _figure(cost.requests(n))),
        ("pictures, TB a month", lambda n: _figure(n * PICTURE_MB / 1e6)),
        ("their first month, $", lambda n: _figure(cost.storage(n * PICTURE_MB / 1e6))),
        ("ledger, GB a month", lambda n: _figure(n * COUNTED.entry_bytes / 1e9)),
        (
            "reading that ledger whole, h",
            lambda n: _figure(n * S3_READ_SECONDS / ENTRY_READERS / 3_600),
        ),
        ("manifests, GB a month", lambda n: _figure(n * COUNTED.row_bytes / 1e9)),
        ("cores busy", lambda n: _figure(n / MONTH_SECONDS * CPU_SECONDS_AN_IMAGE)),
        ("Mbit/s, in and out each", lambda n: _figure(n / MONTH_SECONDS * PICTURE_MB * 8)),
    ]
    heads = ["images a month", *(f"{n:,}" for n in MONTHLY)]
    return _markdown(heads, [[name, *map(figure, MONTHLY)] for name, figure in rows])


def _by_cap() -> str:
    pace = [cap / LATENCY_SECONDS for cap in CAPS]
    return _markdown(
        ["requests at once", *map(str, CAPS)],
        [
            ["images/s", *map(_figure, pace)],
            ["millions of images a month", *(_figure(p * MONTH_SECONDS / 1e6) for p in pace)],
        ],
    )


def _by_partition() -> str:
    partitions = [MONTHLY[-1] / rows for rows in ROWS]
    runs = [math.ceil(12 * count * COUNTED.run_objects / LIST_PAGE) for count in partitions]
    logged = [count * COUNTED.event_bytes / 1e9 for count in partitions]
    return _markdown(
        ["rows a partition", *(f"{rows:,}" for rows in ROWS)],
        [
            ["partitions a month", *map(_figure, partitions)],
            ["months to 100,000 of them", *(_figure(DAGSTER_PARTITIONS / c) for c in partitions)],
            [
                "plan's reads of the ledger, s, where it does not list it",
                *(_figure(rows * S3_READ_SECONDS / ENTRY_READERS) for rows in ROWS),
            ],
            ["manifest, MB", *(_figure(rows * COUNTED.row_bytes / 1e6) for rows in ROWS)],
            ["events a month", *(_figure(count * COUNTED.events) for count in partitions)],
            ["their size, GB", *map(_figure, logged)],
            ["LISTs of all runs (`status`, `audit`), after a year", *(f"{n:,}" for n in runs)],
        ],
    )


def _figure(value: float) -> str:
    """Two digits that count, or whole numbers."""
    digits = max(0, 1 - math.floor(math.log10(value))) if value < 100 else 0  # noqa: PLR2004
    return f"{value:,.{digits}f}"


def _markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] + ["---:"] * (len(heads) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    """Print the tables."""
    console = Console(soft_wrap=True)
    for name, table in tables().items():
        console.print(f"\n{name}\n{table}", highlight=False, markup=False)


if __name__ == "__main__":
    main()
