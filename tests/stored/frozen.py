"""Frozen buckets: archives of what a version of this package wrote, one a stored schema."""

import json
import re
import tarfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final, Self

from nanobanana_pipeline.storage import ObjectStore

DATA: Final = Path(__file__).parents[1] / "data"

KINDS: Final = {
    "bucket check lease": r"probe/lease",
    "bucket marker": r"nanobanana\.json",
    "bucket verdict": r"probe/verdict-[0-9a-f]{16}\.json",
    "changelog": r"datasets/[^/]+/v\d+/changelog\.parquet",
    "clock": r"budget/clock",
    "contact sheet": r"features/.+/contact_sheet\.webp",
    "counter": r"(budget/(days|partitions)/.+|runs/[^/]+/budget)\.json",
    "dataset pointer": r"datasets/[^/]+/latest\.json",
    "features": r"features/.+\.parquet",
    "features pointer": r"features/.+/current\.json",
    "heartbeat": r"runs/[^/]+/shard-\d+(\.[0-9a-f]{8})?\.alive",
    "image": r"images/../[0-9a-f]{64}\.\w+",
    "image owner": r"images/../[0-9a-f]{64}\.refs/[0-9a-f]{64}",
    "index image": r"index/[^/]+/image-\d+\.parquet",
    "index pointer": r"index/current\.json",
    "index prompt": r"index/[^/]+/prompt-\d+\.parquet",
    "index provider": r"index/[^/]+/provider-\d+\.parquet",
    "index release": r"index/[^/]+/release-\d+\.parquet",
    "index request": r"index/[^/]+/request-\d+\.parquet",
    "ledger entry": r"ledger/../[0-9a-f]{64}\.json",
    "lineage": r"lineage/.+\.ndjson",
    "manifest": r"manifests/.+\.parquet",
    "manifest pointer": r"manifests/.+/current\.json",
    "partition plan": r"manifests/.+/plan\.json",
    "preview": r"manifests/.+\.webp",
    "prompt set": r"prompt_sets/[^/]+/[0-9a-f]{64}\.parquet",
    "prompt set pointer": r"prompt_sets/[^/]+/current\.json",
    "prompt table": r"prompts/.+",
    "quarantine": r"prompt_sets/[^/]+/[0-9a-f]{64}\.quarantine\.parquet",
    "rejected": r"datasets/[^/]+/v\d+/rejected\.parquet",
    "release": r"datasets/[^/]+/v\d+/release\.json",
    "release claim": r"datasets/[^/]+/v\d+/build\.json",
    "release manifest": r"datasets/[^/]+/v\d+/manifest\.parquet",
    "release page": r"datasets/.+(README\.md|croissant\.json|gallery\.html|\.png|\.webp)",
    "release parquet": r"datasets/[^/]+/v\d+/parquet/.+\.parquet",
    "release receipt": r"datasets/[^/]+/v\d+/build/.+\.json",
    "release tar": r"datasets/[^/]+/v\d+/webdataset/.+\.tar",
    "release tar index": r"datasets/[^/]+/v\d+/index/.+\.parquet",
    "run done": r"runs/[^/]+/done\.json",
    "run file": r"runs/[^/]+/shard-\d+\.parquet",
    "run plan": r"runs/[^/]+/plan\.json",
    "settled entries": r"runs/[^/]+/values/settled/.+\.jsonl\.gz",
    "unfinished run": r"unfinished/.+",
}
"""Every kind of stored object, by the pattern of its keys."""

SHORT_LIVED: Final = frozenset({"bucket verdict"})
"""Kinds that no archive needs to hold: each version writes them anew after 30 days at most.

The golden file alone holds their fields."""


def kind_of(key: str) -> str:
    """The one kind that a key belongs to."""
    kinds = [kind for kind, pattern in KINDS.items() if re.fullmatch(pattern, key)]
    assert len(kinds) == 1, f"{key} is of the kinds {kinds}: name its kind in KINDS"
    return kinds[0]


@dataclass(frozen=True)
class FrozenBucket:
    """One archive in memory.

    Attributes:
        files: every file of the archive, by its path.
        index: of each object its key, content type and user metadata.
    """

    files: Mapping[str, bytes]
    index: tuple[Mapping[str, Any], ...]

    @classmethod
    @cache
    def read(cls, path: Path) -> Self:
        with tarfile.open(path) as archive:
            files = {
                member.name.removeprefix("./"): found.read()
                for member in archive
                if (found := archive.extractfile(member)) is not None
            }
        return cls(files, tuple(map(json.loads, files["index.jsonl"].splitlines())))

    def body(self, key: str) -> bytes:
        return self.files[f"objects/{key}"]

    def objects(self, *kinds: str) -> Iterator[tuple[str, bytes]]:
        """Key and bytes of every object of these kinds."""
        for each in self.index:
            if kind_of(each["key"]) in kinds:
                yield each["key"], self.body(each["key"])

    def json(self, *kinds: str) -> Iterator[tuple[str, Any]]:
        """Key and content of every JSON object of these kinds."""
        for key, body in self.objects(*kinds):
            yield key, json.loads(body)

    def load(self, store: ObjectStore) -> ObjectStore:
        """Write all objects into an empty bucket, or below an empty prefix."""

        def put(each: Mapping[str, Any]) -> None:
            store.client.put_object(
                Bucket=store.bucket,
                Key=store.prefix + each["key"],
                Body=self.body(each["key"]),
                ContentType=each["content_type"],
                Metadata=each["metadata"],
            )

        with ThreadPoolExecutor(16) as pool:
            list(pool.map(put, self.index))
        return store


def archives() -> list[Path]:
    """All frozen buckets, the oldest first."""
    return sorted(DATA.glob("bucket-*.tar.gz"))
