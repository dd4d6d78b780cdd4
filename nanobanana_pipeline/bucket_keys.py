"""Keys of everything in the bucket: a table of its folders, and a function for each object."""

import hashlib
from enum import StrEnum
from typing import Final

__all__ = [
    "FILES",
    "MARKER",
    "Folder",
    "bucket_verdict_key",
    "clock_key",
    "contact_sheet_key",
    "day_budget_key",
    "day_budget_prefix",
    "delivery_key",
    "features_folder",
    "features_prefix",
    "image_key",
    "image_owner_key",
    "index_key",
    "latest_release_key",
    "ledger_key",
    "lineage_key",
    "manifest_prefix",
    "partition_budget_key",
    "partition_plan_key",
    "preview_key",
    "probe_key",
    "prompt_set_key",
    "reference_key",
    "release_key",
    "release_prefix",
    "run_alive_key",
    "run_budget_key",
    "run_done_key",
    "run_plan_key",
    "run_prefix",
    "run_settled_key",
    "run_shard_key",
    "run_value_key",
    "run_values_prefix",
    "unfinished_key",
    "webhook_key",
    "webhook_prefix",
]

MARKER: Final = "nanobanana.json"


class Folder(StrEnum):
    """The top-level folders below the bucket's prefix: each key begins with one of them.

    The last three hold nothing yet. Their names are reserved, so that no delivery goes there.
    """

    BUDGET = "budget"
    DATASETS = "datasets"
    FEATURES = "features"
    IMAGES = "images"
    INDEX = "index"
    LEDGER = "ledger"
    LINEAGE = "lineage"
    MANIFESTS = "manifests"
    PROBE = "probe"
    PROMPTS = "prompts"
    PROMPT_SETS = "prompt_sets"
    REFERENCES = "references"
    RUNS = "runs"
    UNFINISHED = "unfinished"
    WEBHOOKS = "webhooks"
    OUTAGE = "outage"
    REJECTED = "rejected"
    SCORES = "scores"

    @property
    def prefix(self) -> str:
        """The folder as the beginning of a key, with its slash."""
        return f"{self.value}/"


DELIVERY: Final = "delivery.json"
FILES: Final = (MARKER, DELIVERY)
"""The objects that lie beside the folders."""


def prompt_set_key(name: str, leaf: str) -> str:
    """A file of a prompt set: ``current.json``, or a snapshot under its fingerprint."""
    return f"{Folder.PROMPT_SETS}/{name}/{leaf}"


def ledger_key(request_key: str) -> str:
    """Where a request's ledger entry lies."""
    return f"{Folder.LEDGER}/{request_key[:2]}/{request_key}.json"


def image_key(sha256: str, extension: str) -> str:
    """Where an image lies; `extension` is that of its real format, without a dot."""
    return f"{Folder.IMAGES}/{sha256[:2]}/{sha256}.{extension}"


def image_owner_key(sha256: str, request_key: str) -> str:
    """The empty object that says that another request made the very same bytes."""
    return f"{Folder.IMAGES}/{sha256[:2]}/{sha256}.refs/{request_key}"


def index_key(leaf: str) -> str:
    """A file of the index that traces pictures: ``current.json``, or a table that it names."""
    return f"{Folder.INDEX}/{leaf}"


def probe_key(name: str) -> str:
    """An object that the bucket check writes: always the same few."""
    return f"{Folder.PROBE}/{name}"


def bucket_verdict_key(endpoint: str) -> str:
    """Where it lies what the check of the bucket through an endpoint (its URL) has found."""
    return f"{Folder.PROBE}/verdict-{hashlib.sha256(endpoint.encode()).hexdigest()[:16]}.json"


def reference_key(sha256: str) -> str:
    """Where a reference picture of a prompt table lies, byte for byte as it was read."""
    return f"{Folder.REFERENCES}/{sha256[:2]}/{sha256}"


def manifest_prefix(prompt_set: str, seed: int) -> str:
    """The folder of one partition's manifests."""
    return f"{Folder.MANIFESTS}/{prompt_set}/seed={seed}/"


def partition_plan_key(prompt_set: str, seed: int) -> str:
    """What a partition's newest plan asks for, and its number."""
    return f"{manifest_prefix(prompt_set, seed)}plan.json"


def preview_key(prompt_set: str, seed: int, content: str) -> str:
    """Where some pictures of a manifest lie on one, by its content: another has another key."""
    return f"{manifest_prefix(prompt_set, seed)}{content[:16]}.webp"


def features_folder(prompt_set: str) -> str:
    """The folder of all that was measured of one prompt set."""
    return f"{Folder.FEATURES}/{prompt_set}/"


def features_prefix(prompt_set: str, seed: int) -> str:
    """The folder of one partition's tables of features."""
    return f"{features_folder(prompt_set)}seed={seed}/"


def contact_sheet_key(prompt_set: str, seed: int) -> str:
    """Where many pictures of one partition lie on one."""
    return f"{features_prefix(prompt_set, seed)}contact_sheet.webp"


def run_prefix(run_id: str) -> str:
    """The folder of one run."""
    return f"{Folder.RUNS}/{run_id}/"


def run_shard_key(run_id: str, shard: str) -> str:
    """The list of requests that a shard of a run set out to settle."""
    return f"{run_prefix(run_id)}{shard}.parquet"


def run_plan_key(run_id: str) -> str:
    """What a run set out to do, written before it buys."""
    return f"{run_prefix(run_id)}plan.json"


def run_values_prefix(run_id: str) -> str:
    """The folder of what the steps of a run hand to each other."""
    return f"{run_prefix(run_id)}values/"


def run_value_key(run_id: str, *parts: str) -> str:
    """A small value that one step of a run hands to another."""
    return f"{run_values_prefix(run_id)}{'/'.join(parts)}.json"


def run_settled_key(run_id: str, shard: str) -> str:
    """What a shard has settled, for the step that makes the manifest."""
    return f"{run_values_prefix(run_id)}settled/{shard}.jsonl.gz"


def run_alive_key(run_id: str, start: str) -> str:
    """The heartbeat of one start of a shard: ``<shard>.<incarnation>``, in 0.1.0 ``<shard>``."""
    return f"{run_prefix(run_id)}{start}.alive"


def run_budget_key(run_id: str) -> str:
    """The counter of what a run with a cap of its own has spent."""
    return f"{run_prefix(run_id)}budget.json"


def day_budget_key(day: str) -> str:
    """The counter of what was spent on a UTC day (ISO date)."""
    return f"{day_budget_prefix()}{day}.json"


def day_budget_prefix() -> str:
    """The folder of the counters of days."""
    return f"{Folder.BUDGET}/days/"


def clock_key() -> str:
    """Written to learn the time by the clock that stamps objects."""
    return f"{Folder.BUDGET}/clock"


def partition_budget_key(prompt_set: str, seed: int) -> str:
    """The counter of what was ever spent on a partition."""
    return f"{Folder.BUDGET}/partitions/{prompt_set}/seed={seed}.json"


def run_done_key(run_id: str) -> str:
    """Its presence says that a run came to its end and left nothing to rescue."""
    return f"{run_prefix(run_id)}done.json"


def unfinished_key(run_id: str) -> str:
    """The empty object that names a run that has not come to its end."""
    return f"{Folder.UNFINISHED}/{run_id}"


def lineage_key(day: str, run_id: str) -> str:
    """Where the lineage events of a run that began on a UTC day (ISO date) lie."""
    return f"{Folder.LINEAGE}/{day}/{run_id}.ndjson"


def webhook_prefix(attempt_id: str) -> str:
    """The folder of the webhooks that came for one attempt."""
    return f"{Folder.WEBHOOKS}/{attempt_id}/"


def webhook_key(attempt_id: str, sha256: str) -> str:
    """Where a webhook's body lies, under its own hash."""
    return f"{webhook_prefix(attempt_id)}{sha256}.json"


def delivery_key() -> str:
    """Where it is written down which buckets of its customer the provider writes into."""
    return DELIVERY


def release_prefix(dataset: str) -> str:
    """The folder of all releases of one dataset."""
    return f"{Folder.DATASETS}/{dataset}/"


def release_key(dataset: str, version: str, leaf: str) -> str:
    """A file of a release, by its path in it."""
    return f"{release_prefix(dataset)}{version}/{leaf}"


def latest_release_key(dataset: str) -> str:
    """Which release of a dataset counts; written last."""
    return f"{release_prefix(dataset)}latest.json"
