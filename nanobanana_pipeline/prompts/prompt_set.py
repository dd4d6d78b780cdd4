"""Prompt sets: named snapshots of prompt tables in the bucket, under their fingerprints.

``prompt_sets/<name>/<fingerprint>.parquet`` never changes once it is there;
``prompt_sets/<name>/current.json`` says which one counts, and is changed by compare-and-swap.
"""

import io
import json
import re
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter

from nanobanana_pipeline.bucket_keys import prompt_set_key
from nanobanana_pipeline.errors import PromptTableError
from nanobanana_pipeline.prompts.checked_prompts import CheckedPrompts, fingerprint
from nanobanana_pipeline.storage import ObjectStore, StoredObject
from nanobanana_pipeline.storage.cas import parse_json, put_if_absent, refuse_newer, swap
from nanobanana_pipeline.storage.versioned import SCHEMA_KEY, as_frame

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "PromptSet",
    "current",
    "load",
    "load_quarantine",
    "read_prompts_arrow",
    "snapshot",
    "valid_name",
]

SCHEMA: Final = 1

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class PromptSet:
    """What ``current.json`` says of a prompt set.

    Attributes:
        name: as `valid_name` has it.
        fingerprint: 64 hexadecimal digits; names the snapshot.
        rows: good rows in the snapshot.
        quarantined: rows of the table that were left out.
        source: path or URL of the table.
        created: when the snapshot became current, ISO 8601 in UTC.
    """

    name: str
    fingerprint: str
    rows: int
    quarantined: int
    source: str
    created: str


_PROMPT_SET: Final = TypeAdapter(PromptSet)


def valid_name(name: str) -> str:
    """Give `name` back if it can name a prompt set.

    Dagster parts the dimensions of a partition key with ``|``, and S3 keys their folders with
    ``/``, so neither may be in it.

    Raises:
        PromptTableError: it cannot.
    """
    if not _NAME.fullmatch(name):
        raise PromptTableError(
            f"{name!r} cannot name a prompt set: use 1 to 100 letters, digits, '.', '_' and '-', "
            "and begin with a letter or digit"
        )
    return name


def snapshot(store: ObjectStore, name: str, checked: CheckedPrompts) -> PromptSet:
    """Keep checked prompts under their fingerprint, and make them the current ones of `name`.

    Raises:
        PromptTableError: a bad name, no good row, or a ``current.json`` that this version cannot
            read; nothing is changed then.
    """
    current(store, valid_name(name))
    if checked.prompts.empty:
        first = checked.quarantine.iloc[0]
        raise PromptTableError(
            f"{checked.source} has no usable row; row {first['row']}, column {first['column']!r}: "
            f"{first['reason']}"
        )
    found = PromptSet(
        name=name,
        fingerprint=fingerprint(checked.prompts),
        rows=len(checked.prompts),
        quarantined=int(checked.quarantine["row"].nunique()),
        source=checked.source,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    key = prompt_set_key(name, found.fingerprint)
    put_if_absent(store, f"{key}.parquet", _parquet(checked.prompts))
    store.put(f"{key}.quarantine.parquet", _parquet(checked.quarantine))
    swap(
        store,
        prompt_set_key(name, "current.json"),
        lambda stored: _parsed(store, name, stored),
        lambda _: found,
        lambda _: json.dumps({"schema": SCHEMA, **asdict(found)}, indent=1).encode(),
    )
    return found


def current(store: ObjectStore, name: str) -> PromptSet | None:
    """The current snapshot of a prompt set; None if there is no such set."""
    return _parsed(store, name, store.get(prompt_set_key(valid_name(name), "current.json")))


def load(store: ObjectStore, name: str, fingerprint: str) -> "pd.DataFrame":
    """Read a snapshot.

    Returns:
        What `CheckedPrompts.prompts` was, with the same dtypes.
    """
    return as_frame(read_prompts_arrow(store, name, fingerprint))


def read_prompts_arrow(store: ObjectStore, name: str, fingerprint: str) -> pa.Table:
    """The same, as it is stored."""
    return _table(store, valid_name(name), f"{fingerprint}.parquet")


def load_quarantine(store: ObjectStore, name: str, fingerprint: str) -> "pd.DataFrame":
    """Read what was left out of a snapshot.

    Returns:
        What `CheckedPrompts.quarantine` was.
    """
    return as_frame(_table(store, valid_name(name), f"{fingerprint}.quarantine.parquet"))


def _table(store: ObjectStore, name: str, leaf: str) -> pa.Table:
    key = prompt_set_key(name, leaf)
    stored = store.get(key)
    if stored is None:
        raise PromptTableError(
            f"{store.uri(key)} does not exist: make the prompt set {name!r} from its table again"
        )
    try:
        # Not `pq.read_table`, which is made for many files and imports pandas.
        table = pq.ParquetFile(io.BytesIO(stored.body)).read()
        schema = int((table.schema.metadata or {})[SCHEMA_KEY])
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise PromptTableError(
            f"{store.uri(key)} is no readable snapshot ({error!r}): move it away, and make the "
            f"prompt set {name!r} from its table again"
        ) from error
    refuse_newer(store.uri(key), schema, SCHEMA, PromptTableError)
    return table


def _parsed(store: ObjectStore, name: str, stored: StoredObject | None) -> PromptSet | None:
    if stored is None:
        return None
    return parse_json(
        stored.body,
        store.uri(prompt_set_key(name, "current.json")),
        lambda body: _PROMPT_SET.validate_python({**json.loads(body), "name": name}),
        SCHEMA,
        error=PromptTableError,
        remedy="restore it, or move it away and make the set again",
    )


def _parquet(frame: "pd.DataFrame") -> bytes:
    table = pa.Table.from_pandas(frame, preserve_index=False)
    table = table.replace_schema_metadata({SCHEMA_KEY: str(SCHEMA).encode()})
    file = io.BytesIO()
    pq.write_table(table, file, compression="zstd")
    return file.getvalue()
