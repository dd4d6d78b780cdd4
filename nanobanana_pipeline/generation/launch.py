"""One launch of one partition, in the three steps that Dagster's graph and the CLI share.

`plan` finds what is missing and writes it down under the run; `settle_shard` buys and brings a
shard of it; `collect` publishes the manifest. Only S3 passes between them, so that each may run in
a process or on a machine of its own.
"""

import io
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from nanobanana_pipeline.errors import PlanError, StorageError, StorageUnavailable
from nanobanana_pipeline.generation.cells import Cells, check_seed, draw_cells
from nanobanana_pipeline.generation.engine import Engine, Progress, Report
from nanobanana_pipeline.generation.manifest import (
    CellState,
    CurrentManifest,
    content_hash,
    count_cells,
    count_images,
    manifest_key,
    manifest_table,
    publish,
    read_current,
    read_manifest,
)
from nanobanana_pipeline.generation.transfer import Transfer
from nanobanana_pipeline.generation.work import PlannedRequest
from nanobanana_pipeline.layout import run_done_key, run_plan_key, run_shard_key
from nanobanana_pipeline.ledger import Entry, Held, Ledger, State, now_iso
from nanobanana_pipeline.prompts import prompt_set
from nanobanana_pipeline.provider.account import Account
from nanobanana_pipeline.provider.slots import Slots
from nanobanana_pipeline.request import ImageRequest, PictureParameters
from nanobanana_pipeline.storage import ObjectStore

__all__ = ["Launch", "Plan", "collect", "plan", "settle_shard"]

SCHEMA: Final = 1
READERS: Final = 16
RUN_FILE: Final = pa.schema(
    [("request_key", pa.string()), ("request", pa.string())],
    metadata={b"nanobanana.schema": str(SCHEMA).encode()},
)


@dataclass(frozen=True)
class Launch:
    """What somebody asked for.

    Attributes:
        prompt_set: its name.
        seed: 1 to 2^32-1.
        run_id: names everything that this launch writes.
        parameters: those that were named; the others stay as they are.
        change_parameters: accept parameters other than those the partition was made with.
        limit: a pilot's number of rows.
        shard_size: most requests a shard; None keeps them in one.
    """

    prompt_set: str
    seed: int
    run_id: str
    parameters: PictureParameters = field(default_factory=PictureParameters)
    change_parameters: bool = False
    limit: int | None = None
    shard_size: int | None = None


@dataclass(frozen=True)
class Plan:
    """What a launch will do; stored under its run, before anything is bought.

    Attributes:
        fingerprint: of the prompt set as it is now.
        parameters: in force, all of them.
        cells: how many cells the partition has.
        states: how many distinct requests the launch finds in each ledger state.
        buy: requests that it will send.
        buy_images: pictures that these ask for.
        resume: requests that were sent before and are brought to their end.
        shards: names of the run files.
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
    shards: tuple[str, ...]
    schema: int = SCHEMA


def plan(store: ObjectStore, realm: str, launch: Launch) -> Plan:
    """Find what is missing, and write run files for it.

    Settled rows of the current manifest are trusted; the ledger is read for the rest only.

    Raises:
        PlanError: the launch must not start; the text says why and what to do.
        StorageError: S3 refuses or holds damaged objects.
    """
    check_seed(launch.seed)
    for name, least in (("limit", launch.limit), ("shard_size", launch.shard_size)):
        if least is not None and least < 1:
            raise PlanError(f"{name} {least} is out of range: use 1 or more, or leave it out")
    snapshot = prompt_set.current(store, launch.prompt_set)
    if snapshot is None:
        raise PlanError(
            f"there is no prompt set {launch.prompt_set!r} in {store.uri('')}: materialize "
            "prompt_set first"
        )
    current, _ = read_current(store, launch.prompt_set, launch.seed)
    parameters, changes = _parameters(current, launch.parameters)
    cells = draw_cells(
        prompt_set.load(store, launch.prompt_set, snapshot.fingerprint),
        seed=launch.seed,
        parameters=parameters,
        realm=realm,
        limit=launch.limit,
    )
    asked = cells.frame[cells.frame["requested"]].drop_duplicates("request_key")
    known = _known_rows(store, current, asked["request_key"])
    settled = known[known["state"] == CellState.SETTLED]
    rest = asked[~asked["request_key"].isin(settled["request_key"])]
    missing_keys = rest["request_key"].to_list()
    held = _read_ledger(Ledger(store), missing_keys)
    states = {key: held[key].entry.state if key in held else State.OPEN for key in missing_keys}
    buy = [key for key in missing_keys if key not in held or held[key].entry.may_claim()]
    resume = {key for key, state in states.items() if state in {State.ACCEPTED, State.SUBMITTING}}
    buy_images = int(asked.loc[asked["request_key"].isin(buy), "samples"].sum())
    if changes and not launch.change_parameters:
        raise PlanError(_refusal(current, changes, len(buy), buy_images))
    counted = Counter(state.value for state in states.values())
    counted["settled"] += settled["request_key"].nunique()
    missing = rest.index[rest["request_key"].isin([*buy, *resume])].to_list()
    made = Plan(
        prompt_set=launch.prompt_set,
        seed=launch.seed,
        run_id=launch.run_id,
        fingerprint=snapshot.fingerprint,
        parameters=parameters,
        limit=launch.limit,
        cells=len(cells.frame),
        states=dict(sorted((+counted).items())),
        buy=len(buy),
        buy_images=buy_images,
        resume=len(resume),
        shards=_write_shards(store, launch, cells, missing),
    )
    store.put(run_plan_key(launch.run_id), json.dumps(asdict(made), indent=1).encode())
    return made


def settle_shard(
    store: ObjectStore,
    account: Account,
    run_id: str,
    shard: str,
    *,
    slots: int | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    progress_seconds: float = 10.0,
) -> Report:
    """Settle the requests of one run file.

    Args:
        store: the bucket.
        account: who buys.
        run_id: the launch.
        shard: one of `Plan.shards`.
        slots: most requests at the provider at once; the account's if None.
        on_progress: called now and then from this thread.
        progress_seconds: how often.

    Raises:
        PlanError: fewer than one slot.
        StorageError: S3 refuses, or the run file is missing.
        BaseException: what interrupted this thread, after what is under way has had its grace.
    """
    if slots is not None and slots < 1:
        raise PlanError(f"slots {slots} is out of range: use 1 or more, or leave it out")
    ledger = Ledger(store)
    engine = Engine(
        ledger,
        account.client,
        Transfer(store, ledger, account.client, account.downloader, run_id=run_id),
        Slots(slots or account.slots),
        realm=account.realm,
        run_id=run_id,
        on_progress=on_progress,
        progress_seconds=progress_seconds,
    )
    return engine.settle(_read_shard(store, run_id, shard))


def collect(store: ObjectStore, realm: str, made: Plan, report: Report) -> CurrentManifest:
    """Publish the manifest of a launched partition, from what the ledger says now.

    Raises:
        StorageError: S3 refuses or holds damaged objects.
    """
    cells = draw_cells(
        prompt_set.load(store, made.prompt_set, made.fingerprint),
        seed=made.seed,
        parameters=made.parameters,
        realm=realm,
        limit=made.limit,
    )
    keys = cells.frame["request_key"].drop_duplicates()
    ledger = Ledger(store)
    while True:
        before, etag = read_current(store, made.prompt_set, made.seed)
        known = _known_rows(store, before, keys)
        settled = known[known["state"] == CellState.SETTLED]
        # A smaller limit does not make unseen what was asked for under a larger one.
        asked = [
            cells.frame.loc[cells.frame["requested"], "request_key"],
            known.loc[known["state"] != CellState.NOT_REQUESTED, "request_key"],
        ]
        rest = pd.concat(asked).drop_duplicates()
        held = _read_ledger(ledger, rest[~rest.isin(settled["request_key"])].to_list())
        table = manifest_table(
            cells, made.prompt_set, settled, [h.entry for h in held.values()], store.uri
        )
        images, size = count_images(table)
        current = CurrentManifest(
            prompt_set=made.prompt_set,
            seed=made.seed,
            manifest=manifest_key(made.prompt_set, made.seed, made.run_id),
            fingerprint=made.fingerprint,
            parameters=made.parameters,
            limit=made.limit,
            cells=count_cells(table),
            images=images,
            size=size,
            content=content_hash(table),
            rows=table.num_rows,
            run_id=made.run_id,
            created=now_iso(),
        )
        if _published(store, table, current, etag):
            break
    if not any(_needs_rescue(h.entry, made.run_id) for h in held.values()):
        done = {"schema": SCHEMA, "finished": now_iso(), "bought": report.bought}
        store.put(run_done_key(made.run_id), json.dumps(done).encode())
    return current


def _needs_rescue(entry: Entry, run_id: str) -> bool:
    """Whether a run has bought something that is neither here nor given up."""
    unfinished = {State.SUBMITTING, State.ACCEPTED, State.IN_DOUBT}
    return entry.state in unfinished and any(a.run_id == run_id for a in entry.attempts)


def _published(
    store: ObjectStore, table: pa.Table, current: CurrentManifest, etag: str | None
) -> bool:
    try:
        won = publish(store, table, current, etag)
    except StorageUnavailable:
        won = False
    if won:
        return True
    # A write whose answer was lost looks like a defeat; the manifest's own name tells.
    now, _ = read_current(store, current.prompt_set, current.seed)
    return now is not None and now.manifest == current.manifest


def _parameters(
    current: CurrentManifest | None, named: PictureParameters
) -> tuple[dict[str, Any], dict[str, tuple[Any, Any]]]:
    """The parameters in force, and those that differ from what the partition was made with."""
    before = {**PictureParameters.defaults(), **(current.parameters if current else {})}
    given = named.given()
    changes = {
        name: (before[name], value) for name, value in given.items() if before[name] != value
    }
    return {**before, **given}, changes if current else {}


def _refusal(
    current: CurrentManifest | None,
    changes: Mapping[str, tuple[Any, Any]],
    requests: int,
    images: int,
) -> str:
    partition = f"{current.prompt_set}, seed {current.seed}" if current else "this partition"
    named = ", ".join(f"{name} {old!r} → {new!r}" for name, (old, new) in changes.items())
    return (
        f"{partition} was made with other parameters ({named}); going on would buy {requests:,} "
        f"requests for {images:,} new images at an unknown price. Leave the parameters out to keep "
        "those in force, or set change_parameters to buy the new ones"
    )


def _known_rows(
    store: ObjectStore, current: CurrentManifest | None, keys: pd.Series
) -> pd.DataFrame:
    """The current manifest's rows for these requests."""
    if current is None:
        return pd.DataFrame({"request_key": [], "state": []}, dtype="str")
    rows = read_manifest(store, current.manifest)
    return rows[rows["request_key"].isin(keys)]


def _read_ledger(ledger: Ledger, keys: list[str]) -> dict[str, Held]:
    """The entries of those requests that were ever tried."""
    readers = ThreadPoolExecutor(READERS)
    try:
        found = readers.map(ledger.read, keys)
        return {key: held for key, held in zip(keys, found, strict=True) if held is not None}
    finally:
        # Whoever is interrupted here must not wait for a million reads.
        readers.shutdown(cancel_futures=True)


def _write_shards(
    store: ObjectStore, launch: Launch, cells: Cells, positions: list[int]
) -> tuple[str, ...]:
    """Write the run files: the requests at these positions, dealt out evenly."""
    names = []
    count = math.ceil(len(positions) / (launch.shard_size or max(1, len(positions))))
    for number in range(count):
        mine = positions[number::count]
        keys = cells.frame["request_key"].iloc[mine].to_list()
        requests = [request.model_dump_json() for request in cells.requests(mine)]
        body = io.BytesIO()
        table = pa.table({"request_key": keys, "request": requests}, schema=RUN_FILE)
        pq.write_table(table, body, compression="zstd")
        name = f"shard-{number:04d}"
        store.put(run_shard_key(launch.run_id, name), body.getvalue())
        names.append(name)
    return tuple(names)


def _read_shard(store: ObjectStore, run_id: str, shard: str) -> list[PlannedRequest]:
    key = run_shard_key(run_id, shard)
    found = store.get(key)
    if found is None:
        raise StorageError(f"{store.uri(key)} is missing: launch the partition again")
    rows = pq.read_table(io.BytesIO(found.body)).to_pydict()
    return [
        PlannedRequest(request_key, ImageRequest.model_validate_json(request))
        for request_key, request in zip(rows["request_key"], rows["request"], strict=True)
    ]
