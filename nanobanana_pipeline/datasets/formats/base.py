"""What a format of releases is (`ReleaseFormat`): its shards (`ShardFiles`) and pages (`Page`)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Protocol

import pyarrow as pa

from nanobanana_pipeline.datasets.release import Format, Release
from nanobanana_pipeline.storage import ObjectStore

__all__ = ["PARQUET_MEDIA_TYPE", "Page", "ReleaseFormat", "ShardFiles", "ShardWriter", "Sink"]

PARQUET_MEDIA_TYPE: Final = "application/vnd.apache.parquet"


class Sink(Protocol):
    """What a shard is written into."""

    def write(self, data: bytes, /) -> int:
        """Append."""

    def tell(self) -> int:
        """The number of bytes written."""


class ShardWriter(Protocol):
    """One shard while it is being written. The same rows must give the same bytes."""

    def add(self, row: dict[str, Any], image: bytes) -> None:
        """Append a row, named by its ``key`` in every format, and its image's original bytes."""

    def finish(self) -> bytes | None:
        """Write what comes last; gives the shard's index, a Parquet file, if the format has one."""


@dataclass(frozen=True)
class ShardFiles:
    """The shards of a format; `open` begins one, for rows of this schema. `suffix` has no dot."""

    suffix: str
    media_type: str
    open: Callable[[Sink, pa.Schema], ShardWriter]


@dataclass(frozen=True)
class Page:
    """A small file of a release; `path` is in the release."""

    path: str
    body: bytes
    media_type: str


@dataclass(frozen=True)
class ReleaseFormat:
    """One format in which releases are stored.

    Attributes:
        shards: its own; None where its pages describe those of `shards_of`.
        pages: gives its small files; None if it has none. Takes the store, the release with its
            shards among its files, and the release's rows with their keys.
        shards_of: the format whose shards it uses; None where it has its own.
    """

    shards: ShardFiles | None = None
    pages: Callable[[ObjectStore, Release, pa.Table], Iterator[Page]] | None = None
    shards_of: Format | None = None
