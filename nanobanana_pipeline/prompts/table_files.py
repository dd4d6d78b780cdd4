"""Lists the prompt tables (`ListedTable`) of a folder and of the bucket, without reading them."""

import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from nanobanana_pipeline.bucket_keys import Folder
from nanobanana_pipeline.errors import PromptTableError
from nanobanana_pipeline.prompts.prompt_set import valid_name
from nanobanana_pipeline.prompts.readers import known_suffixes, match_reader
from nanobanana_pipeline.storage import ObjectStore

__all__ = ["ListedTable", "fault_of_name", "list_tables"]

UNCHANGED_SECONDS: Final = 3.0
"""A local file that was changed just now may be half written: it is left for the next look."""


@dataclass(frozen=True)
class ListedTable:
    """A file that is, or should be, a prompt table.

    Attributes:
        source: its path or ``s3://`` URL.
        name: of the prompt set it makes; "" where `fault` says why it makes none.
        stamp: changes whenever the file is written.
        fault: what is wrong with it, and what to do; None if nothing is.
    """

    source: str
    name: str
    stamp: str
    fault: str | None = None


def list_tables(folder: Path, store: ObjectStore) -> list[ListedTable]:
    """The tables of a local folder and of ``prompts/`` in the bucket, by source.

    Those whose names begin with a dot are left out. Two files that would make the same prompt set
    both get a fault. The folder need not exist. It takes one LIST for a thousand files.
    """
    tables = [_described(*each) for each in [*_in_folder(folder), *_in_bucket(store)]]
    sources = defaultdict(list)
    for table in tables:
        if table.fault is None:
            sources[table.name].append(table.source)
    checked = (_with_unique_name(table, sources[table.name]) for table in tables)
    return sorted(checked, key=lambda table: table.source)


def fault_of_name(source: str) -> str | None:
    """Why a file's name makes no prompt set, and what to do; None if it makes one."""
    return _described(source, PurePosixPath(source).name, "").fault


def _in_folder(folder: Path) -> Iterator[tuple[str, str, str]]:
    if not folder.is_dir():
        return
    now = time.time()
    for path in folder.iterdir():
        if path.is_file() and not path.name.startswith("."):
            stat = path.stat()
            if not 0 <= now - stat.st_mtime < UNCHANGED_SECONDS:
                stamp = f"{stat.st_mtime_ns:x}-{stat.st_size:x}"
                yield str(path.resolve()), path.name, stamp


def _in_bucket(store: ObjectStore) -> Iterator[tuple[str, str, str]]:
    folder = Folder.PROMPTS.prefix
    for stored in store.listing(folder):
        leaf = stored.key.removeprefix(folder)
        if leaf and not leaf.startswith(".") and "/" not in leaf:
            stamp = f"{stored.last_modified.timestamp():.0f}-" + stored.etag.strip('"')
            yield store.uri(stored.key), leaf, stamp


def _described(source: str, leaf: str, stamp: str) -> ListedTable:
    match = match_reader(leaf)
    if match is None:
        fault = f"is of no known format: name it {known_suffixes()}"
        return ListedTable(source, "", stamp, f"{source} {fault}")
    try:
        return ListedTable(source, valid_name(match.stem), stamp)
    except PromptTableError as error:
        return ListedTable(source, "", stamp, f"{source}: {error}")


def _with_unique_name(table: ListedTable, sources: list[str]) -> ListedTable:
    if table.fault is not None or len(sources) == 1:
        return table
    fault = f"{' and '.join(sorted(sources))} would all make {table.name!r}: keep one"
    return ListedTable(table.source, "", table.stamp, fault)
