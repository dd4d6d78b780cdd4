"""Launches killed by SIGKILL at random instants, and what that lost, bought twice or left in doubt.

``uv run python -m benchmarks.kills [--kills 200] [--minutes 15] [--seed N] [--plain]``

Every launch has 30 requests at 10 slots. The emulator answers a POST 0.2 s after it has sold it,
and draws for 0.2 to 0.6 s. Each launch is killed at an instant drawn evenly from its expected life,
every fourth partition twice in a row, and brought to its end by another while the next ones are
being killed. Then the emulator's books are laid beside the ledger, and every image is read again.
``--plain`` does the same to `benchmarks.plain_script`. Prints a table, writes
``artifacts/kills.json`` (or ``plain_kills.json``), and exits with 1 where the promise was broken.
"""

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from benchmarks import plain_script
from benchmarks.killer import REQUESTS, Partition, Subject, kill_launches, prompts_of
from benchmarks.launches import (
    LEASE_SECONDS,
    SLOTS,
    Site,
    keep_prompts,
    launch,
    manifest_of,
    read_entries,
    request_keys,
    site,
    wrong_images,
)
from nanobanana_pipeline import local
from nanobanana_pipeline.bucket_keys import run_plan_key, run_shard_key
from nanobanana_pipeline.generation.manifest.manifest import CellState
from nanobanana_pipeline.ledger import Entry, Outcome, State
from nanobanana_pipeline.webhooks.inbox import attempt_id

EMULATOR: Final = (
    *("--latency", "0.2:0.6", "--cap", str(SLOTS), "--retry-after", "0.2"),
    *("--mood", "slow_answer=1", "--slow-answer", "0.2"),
)
ARTIFACTS: Final = Path("artifacts")


def main() -> None:
    """Kill, judge, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--plain", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kills-") as data:
        found = run(
            Path(data), args.kills, seconds=60 * args.minutes, seed=args.seed, plain=args.plain
        )
    ARTIFACTS.mkdir(exist_ok=True)
    name = "plain_kills.json" if args.plain else "kills.json"
    (ARTIFACTS / name).write_text(as_json(found))
    table = Table("what", "count", title=f"{args.kills} kills, seed {args.seed}")
    for what, count in found["totals"].items():
        table.add_row(what, f"{count:,}")
    Console().print(table)
    if found["problems"]:
        sys.exit("\n".join(found["problems"]))


def run(
    data: Path,
    kills: int,
    *,
    seconds: float,
    seed: int,
    plain: bool = False,
    site_type: type[Site] = Site,
    options: Sequence[str] = EMULATOR,
) -> dict[str, Any]:
    """Kill launches, and judge what came of it.

    Args:
        data: an empty folder.
        kills: how many.
        seconds: none is killed after so long.
        seed: of the instants.
        plain: kill the plain script instead.
        site_type: whose provider.
        options: of its server.

    Returns:
        ``totals`` (what: count), ``problems`` (a sentence for each way in which the promise was
        broken) and ``partitions`` (a row for each).

    Raises:
        RuntimeError: a launch that was let live failed.
    """
    with site(data, options, site_type) as place:
        subject: Subject = _Plain(place) if plain else _Pipeline(place, data)
        partitions = kill_launches(place, subject, kills, seconds, seed)
        found = subject.judge(partitions)
    made = sum(len(partition.kills) for partition in partitions)
    if made < kills:
        found["problems"].append(f"there was time for {made} of {kills} kills only")
    found["totals"] = {"kills": made, **found["totals"]}
    return {"seed": seed, **found}


def as_json(found: Mapping[str, Any]) -> str:
    """A result as it is kept: a line a partition."""
    lines = ",\n".join(f"  {json.dumps(row)}" for row in found["partitions"])
    rest = json.dumps({k: v for k, v in found.items() if k != "partitions"}, indent=1)
    return f'{rest[:-2]},\n "partitions": [\n{lines}\n ]\n}}\n'


class _Pipeline:
    """This project's launches."""

    target = staticmethod(launch)
    # S3 tells times in whole seconds: with two more, every claim's lease has run out.
    rest_seconds = LEASE_SECONDS + 2

    def __init__(self, place: Site, data: Path) -> None:
        self._place = place
        self._data = data
        self._store = place.store()
        self._keys: dict[str, list[str]] = {}

    def prepare(self, partition: Partition) -> None:
        keep_prompts(self._store, self._data, partition.name, partition.prompts)
        self._keys[partition.name] = request_keys(self._place, partition.name)

    def note(self, partition: Partition) -> None:
        """What is being sent now is what the dead were sending: its lease has run out."""
        entries = read_entries(self._store, self._keys[partition.name])
        for kill in partition.kills:
            kill.doubts = sorted(
                entry.request_key
                for entry in entries
                if any(
                    attempt.run_id == kill.run_id
                    and attempt.outcome in {Outcome.SUBMITTING, Outcome.IN_DOUBT}
                    for attempt in entry.attempts
                )
            )
            kill.planned = self._store.get(run_plan_key(kill.run_id)) is not None
        partition.found = Counter(str(entry.state) for entry in entries)

    def is_ended(self, partition: Partition) -> bool:
        return not manifest_of(self._store, partition.name).cells.get(CellState.PENDING, 0)

    def judge(self, partitions: Sequence[Partition]) -> dict[str, Any]:
        """Lay the provider's books beside the ledger, and read every image again."""
        record = self._place.admin("purchases")
        bought = {group["prompt"]: group for group in record["groups"]}
        sold = {
            track_id: moment
            for group in record["groups"]
            for track_id, moment in zip(group["track_ids"], group["times"], strict=True)
        }
        rows, everything, told_wrong = [], list[Entry](), 0
        for partition in partitions:
            entries = read_entries(self._store, self._keys[partition.name])
            everything += entries
            groups = [bought[prompt] for prompt in partition.prompts if prompt in bought]
            rows.append(_row(partition, entries, groups, set(sold)))
            cells = manifest_of(self._store, partition.name).cells
            told_wrong += cells.get(CellState.SETTLED, 0) != rows[-1]["settled"]
            told_wrong += cells.get(CellState.IN_DOUBT, 0) != REQUESTS - rows[-1]["settled"]
        wrong = wrong_images(self._store, everything)
        doubts = [len(kill.doubts) for partition in partitions for kill in partition.kills]
        totals = {
            "of them before the launch had a plan": sum(
                not kill.planned for partition in partitions for kill in partition.kills
            ),
            "partitions": len(partitions),
            "requests": REQUESTS * len(partitions),
            "bought": record["total"],
            "bought twice": sum(row["bought twice"] for row in rows),
            "lost": sum(row["lost"] for row in rows),
            "settled": sum(row["settled"] for row in rows),
            "images read again": sum(len(entry.images) for entry in everything),
            "images that are not what their hash says": len(wrong),
            "in doubt after a kill": sum(doubts),
            "most in doubt after one kill": max(doubts, default=0),
            "in doubt, sold: settled by webhook": sum(row["doubts settled"] for row in rows),
            "in doubt, sold: not settled": sum(row["doubts not settled"] for row in rows),
            "in doubt, never sold: held": sum(row["held"] for row in rows),
            "in doubt, but not by a kill": sum(row["strange doubts"] for row in rows),
            "manifests that say otherwise": told_wrong,
            "bought before its run file was written": self._bought_unplanned(everything, sold),
        }
        return {"totals": totals, "problems": _problems(totals), "partitions": rows}

    def _bought_unplanned(self, entries: Sequence[Entry], sold: Mapping[str, float]) -> int:
        """Purchases that nobody could have found, had their run died right then."""
        written: dict[str, float] = {}
        found = 0
        for entry in entries:
            for attempt in entry.attempts:
                moment = sold.get(attempt_id(entry.request_key, attempt.nonce))
                if moment is None:
                    continue
                if attempt.run_id not in written:
                    written[attempt.run_id] = max(
                        self._written(run_plan_key(attempt.run_id)),
                        self._written(run_shard_key(attempt.run_id, "shard-0000")),
                    )
                found += written[attempt.run_id] > moment
        return found

    def _written(self, key: str) -> float:
        stored = self._store.get(key)
        return float("inf") if stored is None else stored.last_modified.timestamp()


def _row(
    partition: Partition,
    entries: Sequence[Entry],
    groups: Sequence[Mapping[str, Any]],
    sold: set[str],
) -> dict[str, Any]:
    """One partition in figures.

    Args:
        partition: with its kills' doubts.
        entries: its ledger.
        groups: the provider's books on its prompts.
        sold: every attempt that the provider has sold, by its track id.
    """

    def was_sold(entry: Entry) -> bool:
        return any(attempt_id(entry.request_key, a.nonce) in sold for a in entry.attempts)

    by_key = {entry.request_key: entry for entry in entries}
    doubts = {key for kill in partition.kills for key in kill.doubts}
    in_doubt = [entry for entry in entries if entry.state is State.IN_DOUBT]
    settled = sum(entry.state is State.SETTLED for entry in entries)
    known = {attempt_id(e.request_key, a.nonce) for e in entries for a in e.attempts}
    unknown = sum(track not in known for group in groups for track in group["track_ids"])
    return {
        "partition": partition.name,
        "killed after": [kill.seconds for kill in partition.kills],
        "planned": [kill.planned for kill in partition.kills],
        "found": partition.found,
        "doubts": [len(kill.doubts) for kill in partition.kills],
        "resumes": partition.resumes,
        "settled": settled,
        "bought": sum(group["count"] for group in groups),
        "bought twice": sum(group["count"] > 1 for group in groups),
        # Whatever is neither here nor said to be in doubt; and what was sold and nobody knows of.
        "lost": REQUESTS - settled - len(in_doubt) + unknown,
        "doubts settled": sum(by_key[key].state is State.SETTLED for key in doubts),
        "doubts not settled": sum(map(was_sold, in_doubt)),
        "held": sum(not was_sold(entry) for entry in in_doubt),
        "strange doubts": sum(entry.request_key not in doubts for entry in in_doubt),
    }


def _problems(totals: Mapping[str, int]) -> list[str]:
    never = (
        "bought twice",
        "lost",
        "images that are not what their hash says",
        "in doubt, sold: not settled",
        "in doubt, but not by a kill",
        "manifests that say otherwise",
        "bought before its run file was written",
    )
    found = [f"{what}: {totals[what]}, and it should be 0" for what in never if totals[what]]
    if totals["most in doubt after one kill"] > SLOTS:
        found.append(f"one kill left more in doubt than the {SLOTS} slots")
    return found


class _Plain:
    """The script that one writes first."""

    rest_seconds = 0.0

    def __init__(self, place: Site) -> None:
        self._place = place
        self._s3 = place.client()

    @staticmethod
    def target(place: Site, name: str, _: str) -> None:
        plain_script.draw_all(
            place.base_url,
            local.API_KEY,
            place.client(),
            local.BUCKET,
            f"{name}/",
            prompts_of(name),
        )

    def prepare(self, partition: Partition) -> None:
        """It needs nothing."""

    def note(self, partition: Partition) -> None:
        partition.found = {"stored": self._stored(partition)}

    def is_ended(self, partition: Partition) -> bool:
        return self._stored(partition) == REQUESTS

    def _stored(self, partition: Partition) -> int:
        found = self._s3.list_objects_v2(Bucket=local.BUCKET, Prefix=f"{partition.name}/")
        return found["KeyCount"]

    def judge(self, partitions: Sequence[Partition]) -> dict[str, Any]:
        groups = {group["prompt"]: group for group in self._place.admin("purchases")["groups"]}
        rows = []
        for partition in partitions:
            counts = [groups[prompt]["count"] for prompt in partition.prompts]
            stored = self._stored(partition)
            rows.append(
                {
                    "partition": partition.name,
                    "killed after": [kill.seconds for kill in partition.kills],
                    "found": partition.found,
                    "stored": stored,
                    "bought": sum(counts),
                    "bought twice": sum(count > 1 for count in counts),
                    "paid for and never stored": sum(counts) - stored,
                }
            )
        summed = ("stored", "bought", "bought twice", "paid for and never stored")
        totals = {"partitions": len(rows), "requests": REQUESTS * len(rows)}
        totals |= {what: sum(row[what] for row in rows) for what in summed}
        return {"totals": totals, "problems": [], "partitions": rows}


if __name__ == "__main__":
    main()
