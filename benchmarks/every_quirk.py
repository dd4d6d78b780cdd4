"""Every quirk of the provider at once, each at 5 %, launched again until nothing changes.

``uv run python -m benchmarks.every_quirk``

Every mood of the emulator is on, with webhooks and their receiver. Of 500 requests at 1024² four
fifths come by the provider's links, as text of base64 and in pairs among them, and one fifth by
one's own bucket. The three moods that halt an account get a fifth as many more, in launches of
their own. Prints the cells by state and reason, and what was bought. Ends with 1 if a cell is
pending or has no reason, a stored picture is not what its name says, or anything was bought twice.
Writes ``artifacts/every_quirk.json``.
"""

import argparse
import hashlib
import json
import os
import re
import secrets
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pandas as pd
import requests
from pydantic import SecretStr
from rich.console import Console

from nanobanana_pipeline.cli.show import table_of
from nanobanana_pipeline.cli.terminal import make_console
from nanobanana_pipeline.emulator.moods import MOODS
from nanobanana_pipeline.generation.engine.engine import Report
from nanobanana_pipeline.generation.engine.timing import DEFAULT_TIMING, Timing
from nanobanana_pipeline.generation.launch_steps import collect, plan, settle_shard
from nanobanana_pipeline.generation.manifest.manifest import CellState, read_manifest
from nanobanana_pipeline.generation.planning.planner import Launch
from nanobanana_pipeline.ledger import new_nonce, now_iso
from nanobanana_pipeline.local import child, free_port, local_profile
from nanobanana_pipeline.prompts import prompt_set
from nanobanana_pipeline.prompts.table import read_prompt_table
from nanobanana_pipeline.prompts.validation import check_prompts
from nanobanana_pipeline.provider.account import Account
from nanobanana_pipeline.provider.modelslab.operations import Operations, S3Details
from nanobanana_pipeline.provider.modelslab.own_bucket import Place, change_places
from nanobanana_pipeline.settings import Settings
from nanobanana_pipeline.storage import ObjectStore, s3_client
from nanobanana_pipeline.storage.bucket import open_bucket

RATE: Final = 0.05
REQUESTS: Final = 500
HALTING: Final = frozenset({"unauthorized", "no_credit", "plan_too_small"})
OUTAGES: Final = frozenset(
    {"bad_gateway", "never_ready", "shared_id", "fetch_other", "webhook_other_id"}
)
"""Not a quirk of one answer: these last, or bring another request's picture."""
ENDS: Final = frozenset(CellState) - {
    CellState.PENDING,
    CellState.OVER_BUDGET,
    CellState.NOT_REQUESTED,
}
CALM: Final = 2
"""So many launches in a row must change nothing: a late webhook may come between two."""
MOST_LAUNCHES: Final = 40
DETAILS_ASKED: Final = 40
PUBLIC: Final = "https://cdn.invalid/deliveries"
"""No such host: what is delivered into one's own bucket is read from S3 or not at all."""
ARTIFACTS: Final = Path("artifacts")

_VARYING = re.compile(
    r"(https?|s3)://[^\s,;)]*[^\s,;:)]|\d+ h \d+ min|[0-9a-f]{16,}|(?<=sample )\d"
)


@dataclass(frozen=True)
class Provider:
    """The emulator, and the account at it.

    Attributes:
        root_url: the emulator's, for its admin.
        account: who buys.
        operations: its server and its account.
        timing: of the launches.
    """

    root_url: str
    account: Account
    operations: Operations
    timing: Timing = DEFAULT_TIMING

    def moods(self, *chosen: str) -> None:
        """Have these moods at `RATE`, and no others."""
        rates = {name: RATE if name in chosen else 0.0 for name in MOODS}
        url = f"{self.root_url}/admin/moods"
        requests.post(url, json=rates, timeout=60).raise_for_status()

    def purchases(self) -> dict[str, Any]:
        """The emulator's own record of what was bought."""
        found: dict[str, Any] = requests.get(f"{self.root_url}/admin/purchases", timeout=60).json()
        return found


@dataclass(frozen=True)
class Found:
    """What a rehearsal came to.

    Attributes:
        rows: of all manifests, one a cell and sample.
        launches: how many it took, by prompt set.
        flat_details: so many of the answers to `system_details` came in the other shape.
        record: the emulator's, of purchases.
        faults: what must not be, in a sentence each.
    """

    rows: pd.DataFrame
    launches: dict[str, int]
    flat_details: int
    record: dict[str, Any]
    faults: list[str]

    @property
    def doubts_sold(self) -> int:
        """How many of the requests in doubt the emulator did sell, and did not fail."""
        groups = [each for each in self.record["groups"] if each["count"] > each["failed"]]
        sold = {track_id.partition(".")[0] for each in groups for track_id in each["track_ids"]}
        doubtful = self.rows.loc[self.rows["state"] == CellState.IN_DOUBT, "request_key"]
        return len(sold & set(doubtful))

    def reasons(self) -> pd.DataFrame:
        """Cells by state and reason, most first; what differs from cell to cell is left out."""
        cells = self.rows.drop_duplicates(["prompt_set", "prompt_id"])
        told = cells["reason"].fillna("").map(lambda reason: _VARYING.sub("…", reason)[:110])
        counted = Counter(zip(cells["state"], told, strict=True))
        ordered = sorted(counted.items(), key=lambda item: (item[0][0] != "settled", -item[1]))
        return pd.DataFrame([(*key, n) for key, n in ordered], columns=["state", "reason", "cells"])


def rehearse(store: ObjectStore, provider: Provider, count: int) -> Found:
    """Launch everything until nothing changes.

    Args:
        store: an empty bucket or prefix.
        provider: with nothing bought yet.
        count: requests beside those for the halting moods; a multiple of 5.
    """
    launches: dict[str, int] = {}
    frames: dict[str, pd.DataFrame] = {}
    provider.moods(*(name for name in MOODS if name not in HALTING | OUTAGES))
    details = [provider.operations.details() for _ in range(DETAILS_ASKED)]
    parts = {"links": 4 * count // 5, "bucket": count // 5, "account": count // 5}
    for name, size in parts.items():
        _keep_prompts(store, name, size)
        if name == "bucket":
            _deliver_into(store, provider.operations)
        if name == "account":
            provider.moods(*HALTING)
        launches[name], frames[name] = _launch_until_calm(store, provider, name)
    rows = pd.concat(frames.values(), ignore_index=True)
    record = provider.purchases()
    return Found(
        rows=rows,
        launches=launches,
        flat_details=sum("model_count" in each for each in details),
        record=record,
        faults=[*_faults(rows), *_unlike_their_names(store, rows), *_twice(record)],
    )


def _keep_prompts(store: ObjectStore, name: str, count: int) -> None:
    """Most are one picture by its link; some are texts of base64, in pairs, or cleaned daily."""
    rows = [
        {
            "prompt": f"{name}: quirk number {number}",
            "base64": "yes" if number % 4 == 0 else "no",
            "temp": "yes" if number % 7 == 0 else "no",
            "samples": 2 if number % 11 == 0 else 1,
        }
        for number in range(count)
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "prompts.jsonl")
        path.write_text("\n".join(map(json.dumps, rows)))
        prompt_set.snapshot(store, name, check_prompts(read_prompt_table(path)))


def _deliver_into(store: ObjectStore, operations: Operations) -> None:
    place = Place(public_url=PUBLIC, uri=store.uri("deliveries"), since=now_iso())
    change_places(store, lambda places: places.add(place))
    own = s3_client().meta
    operations.update_s3(
        S3Details(
            public_url=PUBLIC,
            region=own.region_name,
            endpoint_url=f"{own.endpoint_url}/{store.bucket}",
            directory=f"{store.prefix}deliveries",
            access_key_id=SecretStr(os.environ["AWS_ACCESS_KEY_ID"]),
            secret_access_key=SecretStr(os.environ["AWS_SECRET_ACCESS_KEY"]),
        )
    )


def _launch_until_calm(
    store: ObjectStore, provider: Provider, name: str
) -> tuple[int, pd.DataFrame]:
    """Launch again and again; how often it took, and the last manifest's rows."""
    account, before, calm = provider.account, "", 0
    small = {"width": 1024, "height": 1024}
    for number in range(1, MOST_LAUNCHES + 1):
        run_id = f"{name}-{number}-{new_nonce()}"
        launch = Launch(name, 1, run_id=run_id, parameters=small)
        made = plan(store, account, launch)
        report = Report()
        for shard in made.shards:
            report += settle_shard(store, account, run_id, shard, timing=provider.timing)
        current = collect(store, account, made, report)
        calm = calm + 1 if current.content == before and not report.bought else 0
        before = current.content
        if calm == CALM:
            break
    return number, read_manifest(store, current.manifest)


def _faults(rows: pd.DataFrame) -> Iterator[str]:
    for row in rows.to_dict("records"):
        where = f"{row['prompt']!r}, sample {row['sample']}"
        if row["state"] not in ENDS:
            yield f"{where} is {row['state']}: {row['reason']}"
        elif row["state"] != CellState.SETTLED and not row["reason"]:
            yield f"{where} is {row['state']} without a reason"
        elif row["state"] == CellState.SETTLED and not row["image_sha256"]:
            yield f"{where} is settled without a picture"


def _unlike_their_names(store: ObjectStore, rows: pd.DataFrame) -> Iterator[str]:
    kept = rows[rows["image_sha256"].notna()]
    for row in kept.to_dict("records"):
        body = store.open_url(row["image_uri"])
        if hashlib.sha256(body).hexdigest() != row["image_sha256"]:
            yield f"{row['image_uri']} is not what its name says"


def _twice(record: dict[str, Any]) -> Iterator[str]:
    if record["bought_twice"]:
        yield f"{record['bought_twice']} pictures were bought twice"


def main() -> None:
    """Run it and print what it came to."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, default=REQUESTS, help="A multiple of 5.")
    count = parser.parse_args().requests
    data = Path(tempfile.mkdtemp(prefix="every-quirk-"))
    emulator = ["--latency", "0.2:0.6", "--late-webhook", "5", "--slow-answer", "2"]
    with local_profile(data, emulator=emulator) as profile:
        os.environ.update(profile.environment)
        with _receiver(data):
            settings = Settings.load()
            key = settings.api_key
            if key is None:
                raise AssertionError  # Settings.load refuses that
            provider = Provider(
                profile.base_url.partition("/api/")[0],
                Account.open(settings),
                Operations(settings.base_url, key),
            )
            found = rehearse(open_bucket(settings), provider, count)
    _show(make_console(), found)
    ARTIFACTS.mkdir(exist_ok=True)
    (ARTIFACTS / "every_quirk.json").write_text(
        json.dumps(
            {
                "cells": found.reasons().to_dict("records"),
                "launches": found.launches,
                "bought": found.record["total"],
                "failed at the provider": found.record["failed"],
                "bought twice": found.record["bought_twice"],
                "bought of those in doubt": found.doubts_sold,
                "faults": found.faults,
            },
            indent=1,
            ensure_ascii=False,
        )
    )
    sys.exit(1 if found.faults else 0)


@contextmanager
def _receiver(data: Path) -> Iterator[None]:
    """The command that receives webhooks, and the settings that lead to it."""
    port = free_port()
    os.environ["NANOBANANA_WEBHOOK_URL"] = f"http://127.0.0.1:{port}"
    os.environ["NANOBANANA_WEBHOOK_SECRET"] = secrets.token_hex(32)
    program = "from nanobanana_pipeline.cli import app; app()"
    command = [sys.executable, "-c", program, "webhooks", "serve", "--port", str(port)]

    def ready() -> bool:
        try:
            return requests.get(f"http://127.0.0.1:{port}/healthz", timeout=2).ok
        except requests.RequestException:
            return False

    with child("the receiver", command, log=data / "receiver.log", ready=ready):
        yield


def _show(console: Console, found: Found) -> None:
    by_state = found.rows.drop_duplicates(["prompt_set", "prompt_id"])["state"].value_counts()
    cells = ", ".join(f"{count:,} {state}" for state, count in by_state.items())
    console.print(table_of(found.reasons(), "cells by state and reason"))
    console.print(
        f"{by_state.sum():,} cells: {cells}\n"
        f"launches: {', '.join(f'{name} {number}' for name, number in found.launches.items())}\n"
        f"{found.record['total']:,} bought, of which {found.record['failed']:,} failed at the "
        f"provider; {found.record['bought_twice']} bought twice\n"
        f"{found.doubts_sold} of those in doubt were bought\n"
        f"system_details: {found.flat_details} of {DETAILS_ASKED} in the other shape",
        highlight=False,
    )
    for fault in found.faults:
        console.print(fault, style="bold red", markup=False)


if __name__ == "__main__":
    main()
