"""What the ledger and the listings say, side by side on disk, so that memory stays bounded.

SQLite's own temporary database: a file without a name that ends with its connection. The bucket's
parts are listed in orders of their own (request keys, SHA-256), so they can only be joined here.
"""

import re
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing
from typing import Final, NamedTuple

from nanobanana_pipeline.bucket_keys import Folder
from nanobanana_pipeline.ledger import Entry, State
from nanobanana_pipeline.storage import ListedObject

__all__ = ["AuditIndex", "Mismatch", "NamedPicture", "Stored"]

_OWNER: Final = re.compile(
    rf"{Folder.IMAGES}/[0-9a-f]{{2}}/([0-9a-f]{{64}})\.refs/([0-9a-f]{{64}})"
)

_TABLES: Final = """
PRAGMA journal_mode = OFF;
CREATE TABLE entry (
    request_key TEXT PRIMARY KEY, state TEXT, run_id TEXT, age REAL) WITHOUT ROWID;
CREATE TABLE picture (
    request_key TEXT, sample INTEGER, key TEXT, sha256 TEXT, size INTEGER, format TEXT,
    width INTEGER, height INTEGER, PRIMARY KEY (request_key, sample)) WITHOUT ROWID;
CREATE INDEX picture_key ON picture (key);
CREATE TABLE stored (key TEXT PRIMARY KEY, size INTEGER, age REAL) WITHOUT ROWID;
CREATE TABLE owner (
    sha256 TEXT, request_key TEXT, key TEXT, age REAL, PRIMARY KEY (sha256, request_key)
    ) WITHOUT ROWID;
CREATE TABLE reference (sha256 TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE cell (
    request_key TEXT, sample INTEGER, state TEXT, sha256 TEXT, PRIMARY KEY (request_key, sample)
    ) WITHOUT ROWID;
CREATE TABLE owed (request_key TEXT PRIMARY KEY) WITHOUT ROWID;
"""


class Stored(NamedTuple):
    """An object under ``images/``: its size in bytes, its age in seconds by S3's clock."""

    key: str
    size: int
    age: float


class NamedPicture(NamedTuple):
    """A picture as the ledger has it; `owners` are the request keys of entries that name it."""

    key: str
    sha256: str
    size: int
    format: str
    width: int
    height: int
    owners: tuple[str, ...]


class Mismatch(NamedTuple):
    """A manifest's row that is not as the ledger says; None where one of them has nothing."""

    request_key: str
    sample: int
    cell_state: str
    cell_sha256: str | None
    state: str | None
    sha256: str | None


class AuditIndex(ExitStack):
    """The temporary database. To be used in one thread, within `with`."""

    def __init__(self) -> None:
        super().__init__()
        self._db = self.enter_context(closing(sqlite3.connect("", isolation_level=None)))
        self._db.executescript(_TABLES)

    def add_entry(self, entry: Entry, age_seconds: float) -> None:
        """Note an entry, its pictures and its references."""
        run_id = entry.deciding.run_id if entry.deciding else None
        row = (entry.request_key, entry.state.value, run_id, age_seconds)
        self._db.execute("INSERT OR REPLACE INTO entry VALUES (?, ?, ?, ?)", row)
        self._db.executemany(
            "INSERT OR REPLACE INTO picture VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                (entry.request_key, i.sample, i.key, i.sha256, i.size, i.format, i.width, i.height)
                for i in entry.images
            ),
        )
        self.add_references(entry.ref_sha256)

    def add_unreadable(self, request_key: str) -> None:
        """Note that there is an entry of which nothing is known."""
        row = (request_key, None, None, 0.0)
        self._db.execute("INSERT OR REPLACE INTO entry VALUES (?, ?, ?, ?)", row)

    def add_references(self, hashes: Iterable[str]) -> None:
        """Note reference pictures that something names."""
        rows = ((sha256,) for sha256 in hashes)
        self._db.executemany("INSERT OR IGNORE INTO reference VALUES (?)", rows)

    def add_object(self, found: ListedObject) -> None:
        """Note an object under ``images/``: a picture, or the mark of a further owner."""
        owner = _OWNER.fullmatch(found.key)
        if owner:
            self._db.execute(
                "INSERT OR REPLACE INTO owner VALUES (?, ?, ?, ?)",
                (owner[1], owner[2], found.key, found.age_seconds),
            )
        else:
            self._db.execute(
                "INSERT OR REPLACE INTO stored VALUES (?, ?, ?)",
                (found.key, found.size, found.age_seconds),
            )

    def settled_seconds(self, request_key: str) -> float | None:
        """How long a request has been settled, by S3's clock; None if it is not."""
        found = self._db.execute(
            "SELECT age FROM entry WHERE request_key = ? AND state = ?",
            (request_key, State.SETTLED.value),
        ).fetchone()
        return None if found is None else float(found[0])

    def has_reference(self, sha256: str) -> bool:
        """Whether something names this reference picture."""
        found = self._db.execute("SELECT 1 FROM reference WHERE sha256 = ?", (sha256,))
        return found.fetchone() is not None

    def unnamed(self) -> Iterator[Stored]:
        """Stored objects that no entry names."""
        rows = self._db.execute(
            "SELECT key, size, age FROM stored s"
            " WHERE NOT EXISTS (SELECT 1 FROM picture p WHERE p.key = s.key) ORDER BY key"
        )
        return (Stored(*row) for row in rows)

    def unfounded_owners(self) -> Iterator[Stored]:
        """Marks of further owners whose entry does not name the picture."""
        rows = self._db.execute(
            "SELECT key, 0, age FROM owner o WHERE NOT EXISTS (SELECT 1 FROM picture p"
            " WHERE p.request_key = o.request_key AND p.sha256 = o.sha256) ORDER BY key"
        )
        return (Stored(*row) for row in rows)

    def owners(self, sha256: str) -> set[str]:
        """Request keys of the further owners of these bytes, as the marks beside them say."""
        rows = self._db.execute("SELECT request_key FROM owner WHERE sha256 = ?", (sha256,))
        return {str(row[0]) for row in rows}

    def missing(self) -> Iterator[NamedPicture]:
        """Pictures that entries name, and that are not stored."""
        return self._pictures("LEFT JOIN stored s USING (key) WHERE s.key IS NULL")

    def of_other_size(self) -> Iterator[NamedPicture]:
        """Stored pictures whose size is not what an entry says."""
        return self._pictures("JOIN stored s USING (key) WHERE s.size <> p.size")

    def wrongly_named(self) -> Iterator[NamedPicture]:
        """Pictures whose key is not that of their SHA-256 and format."""
        return self._pictures(
            f"WHERE p.key <> '{Folder.IMAGES}/' || substr(p.sha256, 1, 2) || '/' || p.sha256 || '.'"
            " || p.format"
        )

    def sample(self, count: int | None, *, listed: bool) -> Iterator[NamedPicture]:
        """So many of the pictures that entries name, always the same ones; all if None.

        With `listed` only those that are stored, at the size that their entry says.
        """
        # The end of a hash orders pictures as well as any dice, and the same way each time.
        return self._pictures(
            "JOIN stored s USING (key) WHERE s.size = p.size" if listed else "",
            limit=-1 if count is None else count,
            order="substr(p.sha256, -16)",
        )

    def count_pictures(self, *, stored: bool) -> int:
        """How many objects are stored, or how many pictures entries name."""
        what = "count(*) FROM stored" if stored else "count(DISTINCT key) FROM picture"
        return int(self._db.execute(f"SELECT {what}").fetchone()[0])

    def compare(self, rows: Iterable[tuple[str, int, str, str | None]]) -> Iterator[Mismatch]:
        """Compare a manifest's rows (request key, sample, state, SHA-256) with the ledger.

        Gives what is not the same; nothing where the entry cannot be read.
        """
        self._db.execute("DELETE FROM cell")
        self._db.executemany("INSERT OR IGNORE INTO cell VALUES (?, ?, ?, ?)", rows)
        found = self._db.execute(
            "SELECT request_key, c.sample, c.state, c.sha256, e.state, p.sha256 FROM cell c"
            " LEFT JOIN entry e USING (request_key) LEFT JOIN picture p USING (request_key, sample)"
            " WHERE (e.request_key IS NULL OR e.state IS NOT NULL)"
            " AND (c.state IS NOT e.state OR c.sha256 IS NOT p.sha256)"
        )
        return (Mismatch(*row) for row in found)

    def owed(self, run_id: str, request_keys: Iterable[str]) -> Counter[State]:
        """What a run's requests wait for: open ones, and those that it sent and did not end."""
        self._db.execute("DELETE FROM owed")
        rows = ((key,) for key in request_keys)
        self._db.executemany("INSERT OR IGNORE INTO owed VALUES (?)", rows)
        counted = self._db.execute(
            "SELECT coalesce(e.state, ?) AS state, count(*) FROM owed o"
            " LEFT JOIN entry e USING (request_key)"
            " WHERE e.request_key IS NULL OR e.state = ?"
            " OR (e.state IN (?, ?) AND e.run_id = ?) GROUP BY state",
            (State.OPEN, State.OPEN, State.SUBMITTING, State.ACCEPTED, run_id),
        )
        return Counter({State(state): count for state, count in counted})

    def _pictures(
        self, where: str, *values: object, limit: int = -1, order: str = "p.key"
    ) -> Iterator[NamedPicture]:
        rows = self._db.execute(
            "SELECT p.key, p.sha256, p.size, p.format, p.width, p.height,"  # noqa: S608 - our own
            f" group_concat(DISTINCT p.request_key) FROM picture p {where}"
            " GROUP BY p.key, p.sha256, p.size, p.format, p.width, p.height"
            f" ORDER BY {order} LIMIT ?",
            (*values, limit),
        )
        for key, sha256, size, kind, width, height, owners in rows:
            yield NamedPicture(key, sha256, size, kind, width, height, tuple(owners.split(",")))
