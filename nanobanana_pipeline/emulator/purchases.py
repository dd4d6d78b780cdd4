"""The record of what was bought: the outside witness that nothing was bought twice."""

import json
import sqlite3
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypedDict, cast

from nanobanana_pipeline.emulator.fields import PictureFields
from nanobanana_pipeline.emulator.pictures import ImageFormat

_SCHEMA_VERSION = 2
_SCHEMA = """
CREATE TABLE purchases (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    picture_hash TEXT NOT NULL,
    fields TEXT NOT NULL,
    track_id TEXT,
    occasion TEXT NOT NULL,
    bought_at REAL NOT NULL,
    ready_at REAL NOT NULL,
    fails INTEGER NOT NULL,
    output TEXT NOT NULL UNIQUE,
    image_format TEXT NOT NULL,
    base64 INTEGER NOT NULL DEFAULT 0,
    temp INTEGER NOT NULL DEFAULT 0,
    cleared INTEGER NOT NULL DEFAULT 0,
    delivered TEXT
);
CREATE INDEX purchases_by_picture ON purchases (picture_hash);
CREATE TABLE clock (offset_seconds REAL NOT NULL);
INSERT INTO clock VALUES (0);
"""
_DRAWN = "ready_at <= ? AND NOT fails AND NOT cleared"
_FROM_1_TO_2 = """
ALTER TABLE purchases ADD COLUMN base64 INTEGER NOT NULL DEFAULT 0;
ALTER TABLE purchases ADD COLUMN temp INTEGER NOT NULL DEFAULT 0;
ALTER TABLE purchases ADD COLUMN cleared INTEGER NOT NULL DEFAULT 0;
ALTER TABLE purchases ADD COLUMN delivered TEXT;
"""


@dataclass(frozen=True, slots=True)
class NewPurchase:
    """An accepted POST, before it has an id.

    Attributes:
        picture: What to draw, with the seed that was really used.
        track_id: The client's mark, if it gave one. It groups nothing.
        occasion: What repeatable misbehaviours are drawn by; see `moods`.
        bought_at: When it was accepted, in Unix seconds of the emulator's clock.
        ready_at: When its pictures are done, likewise.
        fails: Whether the generation ends as failed instead.
        output: The part of the outputs' names that tells this purchase from all others.
        image_format: The format that its links promise.
        base64: Whether its outputs are texts of base64 instead.
        temp: Whether its outputs lie where it is cleaned daily.
    """

    picture: PictureFields
    track_id: str | None
    occasion: str
    bought_at: float
    ready_at: float
    fails: bool
    output: str
    image_format: ImageFormat
    base64: bool
    temp: bool


@dataclass(frozen=True, slots=True)
class Purchase(NewPurchase):
    """An accepted POST as it is on record.

    Attributes:
        id: What the client knows it by.
        cleared: Whether it was forgotten with the queue it was in.
        delivered: The addresses in the customer's bucket, once its pictures are there.
    """

    id: int
    cleared: bool = False
    delivered: tuple[str, ...] | None = None


class PictureGroup(TypedDict):
    """All purchases of the same pictures: `samples` counts the pictures that were paid for.

    `failed` of the `count` purchases ended without drawing anything: to buy again then is right.
    `ids`, `track_ids` and `times` (Unix seconds of the emulator's clock) are in order of purchase.
    """

    picture_hash: str
    count: int
    failed: int
    samples: int
    endpoint: str
    prompt: str
    seed: int
    references: tuple[str, ...]
    ids: list[int]
    track_ids: list[str | None]
    times: list[float]


class PurchaseBook:
    """All purchases, in SQLite: in a file that outlives a restart, or in memory.

    Each one is written before its answer is given, so it also outlives `kill -9`. Synchronous
    writes are off: what the emulator knows need not survive the machine. No API key gets here.
    """

    def __init__(self, data_dir: Path | None, first_id: int) -> None:
        """Open the record, or begin one.

        Args:
            data_dir: Where it lies; made if it is not there. None keeps it in memory.
            first_id: Where ids begin in a new record.

        Raises:
            ValueError: The record was written by another version of the emulator.
        """
        path = ":memory:"
        if data_dir is not None:
            data_dir.mkdir(parents=True, exist_ok=True)
            path = str(data_dir / "purchases.sqlite")
        # It is opened by the thread that builds the emulator and used by the one that serves.
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._db.row_factory = sqlite3.Row
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=OFF")
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version == 0:
            self._create(first_id)
        elif version == 1:
            self._db.executescript(
                f"BEGIN; {_FROM_1_TO_2}; PRAGMA user_version={_SCHEMA_VERSION}; COMMIT;"
            )
        elif version != _SCHEMA_VERSION:
            self._db.close()
            raise ValueError(
                f"{path} has schema version {version}, this emulator knows {_SCHEMA_VERSION}:"
                " name another data directory, or delete this one"
            )

    def _create(self, first_id: int) -> None:
        self._db.executescript(
            f"BEGIN; {_SCHEMA}; PRAGMA user_version={_SCHEMA_VERSION}; COMMIT;"  # constants only
        )
        self._db.execute("INSERT INTO sqlite_sequence VALUES ('purchases', ?)", (first_id - 1,))

    def add(self, new: NewPurchase) -> Purchase:
        """Write a purchase down and give it an id that no other ever had."""
        cursor = self._db.execute(
            "INSERT INTO purchases (picture_hash, fields, track_id, occasion, bought_at, ready_at,"
            " fails, output, image_format, base64, temp) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                new.picture.digest(),
                json.dumps(asdict(new.picture)),
                new.track_id,
                new.occasion,
                new.bought_at,
                new.ready_at,
                new.fails,
                new.output,
                new.image_format,
                new.base64,
                new.temp,
            ),
        )
        values = {name: getattr(new, name) for name in NewPurchase.__slots__}
        return Purchase(**values, id=cast("int", cursor.lastrowid))

    def by_id(self, purchase_id: int) -> Purchase | None:
        """Find a purchase by its id."""
        return self._one("SELECT * FROM purchases WHERE id = ?", purchase_id)

    def by_output(self, output: str) -> Purchase | None:
        """Find a purchase by the name of its outputs."""
        return self._one("SELECT * FROM purchases WHERE output = ?", output)

    def drawn(self, now: float, limit: int, offset: int) -> list[Purchase]:
        """List purchases whose pictures were drawn by `now`, the newest first."""
        rows = self._db.execute(
            f"SELECT * FROM purchases WHERE {_DRAWN} ORDER BY id DESC LIMIT ? OFFSET ?",  # noqa: S608 - constants only
            (now, limit, offset),
        )
        return [_purchase(row) for row in rows]

    def count_drawn(self, now: float) -> int:
        """Count the purchases whose pictures were drawn by `now`."""
        query = f"SELECT count(*) FROM purchases WHERE {_DRAWN}"  # noqa: S608 - constants only
        (count,) = self._db.execute(query, (now,)).fetchone()
        return int(count)

    def count_images_paid(self, now: float) -> int:
        """Count the pictures that were paid for; what has failed by `now` costs nothing."""
        query = (
            "SELECT coalesce(sum(json_extract(fields, '$.samples')), 0) FROM purchases"
            " WHERE NOT (fails AND ready_at <= ?)"
        )
        (count,) = self._db.execute(query, (now,)).fetchone()
        return int(count)

    def another(self, purchase: Purchase, now: float) -> Purchase | None:
        """Find the purchase of other pictures that is nearest to one and drawn at `now`."""
        return self._one(
            "SELECT * FROM purchases WHERE picture_hash != ? AND ready_at <= ? AND NOT fails"
            " AND NOT cleared ORDER BY abs(id - ?) LIMIT 1",
            purchase.picture.digest(),
            now,
            purchase.id,
        )

    def ready_times_after(self, now: float) -> list[float]:
        """List when each generation that is under way at `now` will be ready, in Unix seconds."""
        rows = self._db.execute(
            "SELECT ready_at FROM purchases WHERE ready_at > ? AND NOT cleared", (now,)
        )
        return [row["ready_at"] for row in rows]

    def groups(self, now: float) -> list[PictureGroup]:
        """Group the purchases by picture, those bought most often first."""
        rows = self._db.execute(
            "SELECT picture_hash, count(*) AS count, sum(fails AND ready_at <= ?) AS failed,"
            " fields, json_group_array(id) AS ids, json_group_array(track_id) AS track_ids,"
            " json_group_array(bought_at) AS times"
            " FROM (SELECT * FROM purchases ORDER BY id)"
            " GROUP BY picture_hash ORDER BY count DESC, min(id)",
            (now,),
        )
        return [_group(row) for row in rows]

    def clock_offset(self) -> float:
        """Tell how far the clock had been moved, in seconds."""
        (offset,) = self._db.execute("SELECT offset_seconds FROM clock").fetchone()
        return float(offset)

    def keep_clock_offset(self, seconds: float) -> None:
        """Remember how far the clock was moved, so that a restart does not turn it back."""
        self._db.execute("UPDATE clock SET offset_seconds = ?", (seconds,))

    def clear_queue(self, now: float) -> None:
        """Mark as forgotten what is under way at `now`."""
        self._db.execute("UPDATE purchases SET cleared = 1 WHERE ready_at > ?", (now,))

    def deliver(self, purchase_id: int, addresses: tuple[str, ...]) -> None:
        """Note where a purchase's pictures are in the customer's bucket."""
        self._db.execute(
            "UPDATE purchases SET delivered = ? WHERE id = ?", (json.dumps(addresses), purchase_id)
        )

    def clear(self) -> None:
        """Forget all purchases. Ids go on counting: none is ever given twice."""
        self._db.execute("DELETE FROM purchases")

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def _one(self, query: str, *values: object) -> Purchase | None:
        row = self._db.execute(query, values).fetchone()
        return None if row is None else _purchase(row)


def _purchase(row: sqlite3.Row) -> Purchase:
    return Purchase(
        id=row["id"],
        picture=PictureFields.from_json(row["fields"]),
        track_id=row["track_id"],
        occasion=row["occasion"],
        bought_at=row["bought_at"],
        ready_at=row["ready_at"],
        fails=bool(row["fails"]),
        output=row["output"],
        image_format=row["image_format"],
        base64=bool(row["base64"]),
        temp=bool(row["temp"]),
        cleared=bool(row["cleared"]),
        delivered=None if row["delivered"] is None else tuple(json.loads(row["delivered"])),
    )


def _group(row: sqlite3.Row) -> PictureGroup:
    fields = PictureFields.from_json(row["fields"])
    return {
        "picture_hash": row["picture_hash"],
        "count": row["count"],
        "failed": row["failed"],
        "samples": fields.samples * row["count"],
        "endpoint": fields.endpoint,
        "prompt": fields.prompt,
        "seed": fields.seed,
        "references": fields.references,
        "ids": json.loads(row["ids"]),
        "track_ids": json.loads(row["track_ids"]),
        "times": json.loads(row["times"]),
    }
