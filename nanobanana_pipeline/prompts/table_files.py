"""Which prompt tables lie in a folder and below the bucket's prefix, without reading them."""

import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final

from nanobanana_pipeline.bucket_keys import Folder
from nanobanana_pipeline.errors import PromptTableError
from nanobanana_pipeline.prompts.prompt_set import valid_name
from nanobanana_pipeline.prompts.readers import known_suffixes, match_reader

if TYPE_CHECKING:
    from nanobanana_pipeline.storage import ObjectStore

__all__ = ["FoundTable", "fault_of_name", "find_tables"]

UNCHANGED_SECONDS: Final = 3.0
"""A local file that was changed just now may be half written: it is left for the next look."""


@dataclass(frozen=True)
class FoundTable:
    """A file that is, or should be, a prompt table.

    Attributes:
        source: its path or ``s3://`` URL.
        name: of the prompt set it makes; "" where `fault` says why it makes none.
        stamp: another one whenever the file is written.
        fault: what is wrong with it, and what to do; None if nothing is.
    """

    source: str
    name: str
    stamp: str
    fault: str | None = None


def find_tables(folder: Path, store: "ObjectStore") -> list[FoundTable]:
    """The tables of both places, by source. Names that begin with a dot are passed over.

    Two files that would make the same prompt set are both at fault.

    Args:
        folder: of this machine; it need not exist.
        store: whose ``prompts/`` is listed too, one LIST for a thousand files.

    Raises:
        StorageError: the bucket refuses.
    """
    found = [_described(*each) for each in [*_in_folder(folder), *_in_bucket(store)]]
    sources = defaultdict(list)
    for table in found:
        if table.fault is None:
            sources[table.name].append(table.source)
    return sorted(
        (_unless_shared(table, sources[table.name]) for table in found),
        key=lambda table: table.source,
    )


def fault_of_name(source: str) -> str | None:
    """Why a file's name makes no prompt set, and what to do; None if it makes one.

    Args:
        source: path or ``s3://`` URL; it is not looked at.
    """
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


def _in_bucket(store: "ObjectStore") -> Iterator[tuple[str, str, str]]:
    folder = Folder.PROMPTS.prefix
    for found in store.listing(folder):
        leaf = found.key.removeprefix(folder)
        if leaf and not leaf.startswith(".") and "/" not in leaf:
            stamp = f"{found.last_modified.timestamp():.0f}-" + found.etag.strip('"')
            yield store.uri(found.key), leaf, stamp


def _described(source: str, leaf: str, stamp: str) -> FoundTable:
    match = match_reader(leaf)
    if match is None:
        fault = f"is of no known format: name it {known_suffixes()}"
        return FoundTable(source, "", stamp, f"{source} {fault}")
    try:
        return FoundTable(source, valid_name(match.stem), stamp)
    except PromptTableError as error:
        return FoundTable(source, "", stamp, f"{source}: {error}")


def _unless_shared(table: FoundTable, sources: list[str]) -> FoundTable:
    if table.fault is not None or len(sources) == 1:
        return table
    fault = f"{' and '.join(sorted(sources))} would all make {table.name!r}: keep one"
    return FoundTable(table.source, "", table.stamp, fault)
