"""Run files: a run's plan (`RunPlan`) and the requests of its shards, stored before it buys."""

import io
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter

from nanobanana_pipeline.bucket_keys import (
    Folder,
    run_done_key,
    run_plan_key,
    run_shard_key,
    unfinished_key,
)
from nanobanana_pipeline.errors import StorageError
from nanobanana_pipeline.ledger import now_iso
from nanobanana_pipeline.money import cost_of, cost_text
from nanobanana_pipeline.request import ImageRequest
from nanobanana_pipeline.storage import ObjectStore
from nanobanana_pipeline.storage.cas import parse_json
from nanobanana_pipeline.wording import counted

__all__ = [
    "PlannedRequest",
    "RunPlan",
    "forget_unfinished",
    "list_unfinished",
    "mark_done",
    "mark_unfinished",
    "read_plan",
    "read_request_keys",
    "read_shard",
    "read_shard_keys",
    "unfinished_plans",
    "write_plan",
    "write_shards",
]

SCHEMA: Final = 1
PLAN_SCHEMA: Final = 2
"""Of plans: 2 has `plan_number`."""
REQUESTS_AT_ONCE: Final = 1_000
RUN_FILE: Final = pa.schema(
    [("request_key", pa.string()), ("request", pa.string()), ("buy", pa.bool_())],
    metadata={b"nanobanana.schema": str(SCHEMA).encode()},
)


@dataclass(frozen=True)
class PlannedRequest:
    """A request that a launch is to settle, under its key.

    Attributes:
        buy: it was open when the launch was planned; else it has an entry, to be brought to its
            end.
    """

    request_key: str
    request: ImageRequest
    buy: bool = True


@dataclass(frozen=True)
class RunPlan:
    """The plan of a launch; stored under its run, before anything is bought.

    Attributes:
        fingerprint: of the prompt set as it is now.
        parameters: in force, all of them.
        cells: how many cells the partition has.
        states: how many distinct requests the launch finds in each ledger state; one whose entry
            cannot be read counts as in doubt.
        buy: requests that it will send.
        buy_images: pictures that these ask for.
        resume: requests that were sent before and are brought to their end.
        look: requests in doubt or lost that are reconciled, at no cost.
        shards: names of the run files.
        price: of one image; None if unknown.
        rebuy: requests in doubt or lost are among those to buy.
        max_images, max_cost: the run's own caps; None leaves the configured ones.
        code_version: of this package; None in plans of older versions.
        plan_number: among what was ever asked of the partition (`partition_plan.take_number`); 0
            in plans of version 0.1.0.
    """

    prompt_set: str
    seed: int
    run_id: str
    fingerprint: str
    parameters: Mapping[str, Any]
    limit: int | None
    cells: int
    states: Mapping[str, int]
    buy: int
    buy_images: int
    resume: int
    look: int
    shards: tuple[str, ...] = ()
    price: Decimal | None = None
    rebuy: bool = False
    max_images: int | None = None
    max_cost: Decimal | None = None
    code_version: str | None = None
    plan_number: int = 0
    schema: int = PLAN_SCHEMA

    @property
    def cost(self) -> Decimal | None:
        """What buying it all costs; None if the price is unknown."""
        return cost_of(self.buy_images, self.price)

    def __str__(self) -> str:
        if not (self.buy or self.resume or self.look):
            return "nothing to buy"
        price = "at an unknown price" if self.cost is None else f"for {cost_text(self.cost)}"
        parts = [
            f"{counted(self.buy, 'request')} to buy for {counted(self.buy_images, 'image')} {price}"
        ]
        parts += [f"{self.resume:,} to resume"] if self.resume else []
        parts += [f"{self.look:,} in doubt or lost to look into"] if self.look else []
        return ", ".join(parts)


_PLAN: Final = TypeAdapter(RunPlan)


def write_plan(store: ObjectStore, plan: RunPlan) -> None:
    """Store a plan under its run, and name the run among the unfinished; then it may buy."""
    # A plan that was made from an older version's is written in today's schema.
    body = _PLAN.dump_json(replace(plan, schema=PLAN_SCHEMA), indent=1)
    store.put(run_plan_key(plan.run_id), body)
    store.put(unfinished_key(plan.run_id), b"")


def read_plan(store: ObjectStore, run_id: str) -> RunPlan:
    """The plan of a run.

    Raises:
        StorageError: it is missing, damaged, or of a newer version.
    """
    key = run_plan_key(run_id)
    found = store.get(key)
    if found is None:
        raise StorageError(f"{store.uri(key)} is missing: launch the partition again")
    return parse_json(found.body, store.uri(key), _PLAN.validate_json, PLAN_SCHEMA)


def write_shards(
    store: ObjectStore,
    run_id: str,
    requests: Iterable[PlannedRequest],
    count: int,
    shard_size: int | None,
) -> tuple[str, ...]:
    """Write the run files, equally long but for one request; a few are in memory at once.

    There are `count` requests, at most `shard_size` of them in a shard; None keeps them in one.
    """
    left, shards = iter(requests), math.ceil(count / (shard_size or max(1, count)))
    names = []
    for number in range(shards):
        size = count // shards + (number < count % shards)
        names.append(f"shard-{number:04d}")
        store.put(run_shard_key(run_id, names[-1]), _run_file(itertools.islice(left, size)))
    return tuple(names)


def _run_file(requests: Iterable[PlannedRequest]) -> bytes:
    body = io.BytesIO()
    with pq.ParquetWriter(body, RUN_FILE, compression="zstd") as file:
        rows = ((r.request_key, r.request.model_dump_json(), r.buy) for r in requests)
        while some := list(itertools.islice(rows, REQUESTS_AT_ONCE)):
            columns = [pa.array(column) for column in zip(*some, strict=True)]
            file.write_table(pa.table(columns, schema=RUN_FILE))
    return body.getvalue()


class RunFile:
    """The requests of a shard, in order. Each iteration reads them anew, a few at once.

    Raises:
        ValueError: the body is no Parquet file.
    """

    def __init__(self, body: bytes, model: type[ImageRequest]) -> None:
        self._model = model
        self._body = pa.BufferReader(body)
        self._count: int = pq.ParquetFile(self._body).metadata.num_rows

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[PlannedRequest]:
        for batch in pq.ParquetFile(self._body).iter_batches(REQUESTS_AT_ONCE):
            for row in batch.to_pylist():
                # Files of before the budget say nothing of `buy`: all may be bought.
                request = self._model.model_validate_json(row["request"])
                yield PlannedRequest(row["request_key"], request, row.get("buy", True))


def read_shard(store: ObjectStore, run_id: str, shard: str, model: type[ImageRequest]) -> RunFile:
    """A run file's requests.

    Raises:
        StorageError: it is missing.
        ValueError: it is damaged.
    """
    return RunFile(_read_file(store, run_id, shard), model)


def read_shard_keys(store: ObjectStore, run_id: str, shard: str) -> list[str]:
    """The request keys of a run file, in order.

    Raises:
        StorageError: it is missing.
        ValueError: it is damaged.
    """
    file = pa.BufferReader(_read_file(store, run_id, shard))
    keys: list[str] = pq.read_table(file, columns=["request_key"])["request_key"].to_pylist()
    return keys


def read_request_keys(store: ObjectStore, made: RunPlan) -> Iterator[str]:
    """The keys of all that a run set out to settle, shard after shard.

    Raises:
        StorageError: a run file is missing.
        ValueError: it is damaged.
    """
    for shard in made.shards:
        yield from read_shard_keys(store, made.run_id, shard)


def _read_file(store: ObjectStore, run_id: str, shard: str) -> bytes:
    key = run_shard_key(run_id, shard)
    found = store.get(key)
    if found is None:
        raise StorageError(f"{store.uri(key)} is missing: launch the partition again")
    return found.body


def unfinished_plans(store: ObjectStore) -> Iterator[RunPlan]:
    """The plans of runs that may have left something to rescue: written, and not done.

    Raises:
        StorageError: a plan is damaged, or of a newer version.
    """
    for run_id, keys in itertools.groupby(
        store.keys(Folder.RUNS.prefix), lambda key: key.split("/")[1]
    ):
        names = set(keys)
        if run_plan_key(run_id) in names and run_done_key(run_id) not in names:
            yield read_plan(store, run_id)


def mark_done(store: ObjectStore, run_id: str, bought: int) -> None:
    """Mark a run as finished, with nothing left to rescue."""
    done = {"schema": SCHEMA, "finished": now_iso(), "bought": bought}
    store.put(run_done_key(run_id), json.dumps(done).encode())
    forget_unfinished(store, run_id)


def mark_unfinished(store: ObjectStore, run_id: str) -> None:
    """Undo `mark_done`: the run goes on, and may leave something to rescue."""
    store.put(unfinished_key(run_id), b"")
    store.delete(run_done_key(run_id))


def list_unfinished(store: ObjectStore) -> list[str]:
    """The ids of runs that are under way, or left something to rescue not long ago, sorted.

    One LIST for a thousand of them, however many runs have ever been. Where the end of a run was
    cut off it may be one that is done. Runs of versions that named none are not among them:
    `unfinished_plans` looks through all.

    Raises:
        StorageError: S3 refuses.
    """
    folder = Folder.UNFINISHED.prefix
    return [key.removeprefix(folder) for key in store.keys(folder)]


def forget_unfinished(store: ObjectStore, run_id: str) -> None:
    """Name a run among the unfinished no more: nothing of it can be brought any more."""
    store.delete(unfinished_key(run_id))
