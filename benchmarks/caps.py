"""Budget caps while 8 workers are killed, frozen and started twice; laid beside the books.

``uv run python -m benchmarks caps [--rounds 50] [--seed N]``

In each round 3 runs over 2 partitions are bought by 8 processes, one a shard, under a cap on the
UTC day, on each partition and on each run; each cap is below what is asked for. Workers are killed
(SIGKILL), frozen (SIGSTOP; some for longer than a lease and a heartbeat last) and started a second
time while the first still runs. A shard whose process has ended is started again, so that what is
given back is wanted at once. At the end each run is bought once more, undisturbed. Then the
emulator's books are laid beside the caps and, after a recount, beside the counters. Prints a table,
writes ``artifacts/caps.json``, and exits with 1 where a cap or a counter was wrong; the round's
story is kept there. ``--rounds 1 --seed N`` repeats the one of that seed.
"""

import argparse
import contextlib
import json
import multiprocessing
import random
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from benchmarks.capped_workers import EXPIRED_SECONDS, CappedSite, Kind, Workers, draw_events
from benchmarks.launches import (
    SEED,
    Site,
    keep_prompts,
    read_entries,
    request_keys,
    site,
)
from nanobanana_pipeline.generation.budget.counters import (
    Scope,
    counter_keys,
    day_scope,
    partition_scope,
    run_scope,
)
from nanobanana_pipeline.generation.budget.reclaim import reclaim, recount
from nanobanana_pipeline.generation.launch_steps import plan
from nanobanana_pipeline.generation.planning.planner import Launch
from nanobanana_pipeline.ledger import Attempt, Outcome
from nanobanana_pipeline.money import Budget, Cap
from nanobanana_pipeline.storage import ObjectStore
from nanobanana_pipeline.webhooks.inbox import attempt_id

REQUESTS: Final = 48
"""Of each partition."""
RUNS: Final = {"left-1": ("left", 12), "left-2": ("left", 24), "right-1": ("right", 24)}
"""The partition of each run, and its requests a shard: 8 shards in all."""
PARTITIONS: Final = ("left", "right")
EMULATOR: Final = (
    *("--latency", "0.6:2.0", "--cap", "14", "--retry-after", "0.2"),
    *("--mood", "slow_answer=1", "--slow-answer", "0.2"),
    *("--mood", "http_500_before=0.03", "--mood", "http_500_after=0.03"),
)
LANES: Final = 2
"""Rounds at once, each with servers of its own: half of a round is waiting."""
MOST_SECONDS: Final = 300.0
"""For one round."""
ARTIFACTS: Final = Path("artifacts")


def main() -> None:
    """Run the rounds, print, and write them down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1, help="of the first round")
    args = parser.parse_args()
    seeds = range(args.seed, args.seed + args.rounds)
    with (
        tempfile.TemporaryDirectory(prefix="caps-") as data,
        ProcessPoolExecutor(LANES, multiprocessing.get_context("spawn")) as lanes,
    ):
        parts = [(Path(data, f"lane-{lane}"), seeds[lane::LANES]) for lane in range(LANES)]
        rows = sorted(chain(*lanes.map(run, *zip(*parts, strict=True))), key=itemgetter("seed"))
    found = summed_up(rows)
    ARTIFACTS.mkdir(exist_ok=True)
    (ARTIFACTS / "caps.json").write_text(as_json(found))
    table = Table("what", "count", title=f"{args.rounds} rounds, seeds from {args.seed}")
    for what, count in found["totals"].items():
        table.add_row(what, f"{count:,}")
    Console().print(table)
    if found["problems"]:
        sys.exit("\n".join(found["problems"]))


def run(data: Path, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Run rounds one after the other, and print a line for each.

    Args:
        data: a folder of its own, which it makes.
        seeds: of the rounds.

    Returns:
        A row for each round, with its ``problems`` (a sentence for each way in which a cap or a
        counter was wrong), and its ``story`` where there are any.
    """
    data.mkdir()
    rows = []
    with site(data, EMULATOR, CappedSite) as place:
        for seed in seeds:
            row = _run_round(place, data, seed)
            rows.append(row)
            told = {what: row[what] for what in ("seed", "seconds", "sold", "overrun", "problems")}
            sys.stderr.write(f"{json.dumps(told)}\n")
    return rows


def as_json(found: Mapping[str, Any]) -> str:
    """A result as it is kept: a line a round."""
    lines = ",\n".join(f"  {json.dumps(row)}" for row in found["rounds"])
    rest = json.dumps({k: v for k, v in found.items() if k != "rounds"}, indent=1)
    return f'{rest[:-2]},\n "rounds": [\n{lines}\n ]\n}}\n'


def _run_round(place: Site, data: Path, seed: int) -> dict[str, Any]:
    _pass_midnight()
    began = time.monotonic()
    rng = random.Random(seed)  # noqa: S311 - not for secrets
    own = _with_caps(place, rng, seed)
    run_caps = {run_id: Cap(rng.randint(16, 36)) for run_id in RUNS}
    prompts = {
        name: [f"round {seed}, {name}, picture {number}" for number in range(REQUESTS)]
        for name in PARTITIONS
    }
    store = own.store()
    for name in PARTITIONS:
        keep_prompts(store, data, name, prompts[name])
    with contextlib.closing(Workers(own, _plan_all(store, own, run_caps))) as workers:
        workers.disturb(draw_events(rng))
        workers.finish()
        problems = workers.problems
    found = _judge(own, run_caps, prompts)
    problems += found.pop("problems")
    return {
        "seed": seed,
        "seconds": round(time.monotonic() - began, 1),
        "processes": workers.started,
        **{str(kind): workers.happened[kind] for kind in Kind},
        **found,
        "problems": problems,
        "story": workers.story if problems else [],
    }


def _pass_midnight() -> None:
    """A round has one day: what midnight does is tested by ``tests/ageing``."""
    now = datetime.now(UTC)
    midnight = (now + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
    if (left := (midnight - now).total_seconds()) < MOST_SECONDS:
        time.sleep(left + 2)


def _with_caps(place: Site, rng: random.Random, seed: int) -> CappedSite:
    """Caps below what is asked for, and near enough to each other that each binds now and then."""
    budget = Budget(day=Cap(rng.randint(45, 75)), partition=Cap(rng.randint(28, 46)))
    return CappedSite(**{**asdict(place), "prefix": f"round-{seed}", "budget": budget})


def _plan_all(
    store: ObjectStore, own: CappedSite, run_caps: Mapping[str, Cap]
) -> list[tuple[str, str]]:
    """Plan all runs before any buys; gives their shards."""
    shards = []
    for run_id, (name, size) in RUNS.items():
        asked = Launch(
            name,
            SEED,
            run_id=run_id,
            parameters=own.parameters,
            shard_size=size,
            max_images=run_caps[run_id].images,
        )
        made = plan(store, own.account(), asked)
        shards += [(run_id, shard) for shard in made.shards]
    return shards


def _judge(
    own: CappedSite, run_caps: Mapping[str, Cap], prompts: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    """Lay the emulator's books beside the caps and, after a recount, beside the counters."""
    store = own.store()
    for key in counter_keys(store):
        # As `recount` does it, which waits for the heartbeats of real workers.
        reclaim(store, Scope(store, key, Cap(), key), expired_seconds=EXPIRED_SECONDS)
    changed = list(recount(store))
    partition_of = {prompt: name for name in PARTITIONS for prompt in prompts[name]}
    groups = [g for g in own.admin("purchases")["groups"] if g["prompt"] in partition_of]
    sold = {track: partition_of[g["prompt"]] for g in groups for track in g["track_ids"]}
    attempts = {
        attempt_id(entry.request_key, attempt.nonce): (name, attempt)
        for name in PARTITIONS
        for entry in read_entries(store, request_keys(own, name))
        for attempt in entry.attempts
    }
    is_unsure = {Outcome.SUBMITTING, Outcome.IN_DOUBT}
    doubts = {
        track: found
        for track, found in attempts.items()
        if track not in sold and found[1].outcome in is_unsure
    }
    known = {track: attempts[track] for track in sold if track in attempts}
    scopes = [
        _compare("day", day_scope(store, own.budget), len(sold), len(doubts)),
        *(
            _compare(
                f"partition {name}",
                partition_scope(store, own.budget, name, SEED),
                sum(each == name for each in sold.values()),
                sum(each == name for each, _ in doubts.values()),
            )
            for name in PARTITIONS
        ),
        *(
            _compare(
                f"run {run_id}",
                run_scope(store, run_id, cap),
                _of_run(known, run_id),
                _of_run(doubts, run_id),
            )
            for run_id, cap in run_caps.items()
        ),
    ]
    found = {
        "sold": len(sold),
        "in doubt, never sold": len(doubts),
        "bought twice": sum(group["count"] > 1 for group in groups),
        "sold, and unknown to the ledger": len(sold) - len(known),
        "overrun": sum(max(0, row["sold"] - row["cap"]) for row in scopes),
        "counted over a cap": sum(max(0, row["counted"] - row["cap"]) for row in scopes),
        "counters that differ from the books": sum(
            row["counted"] != row["sold"] + row["in doubt"] for row in scopes
        ),
        "reservations left open": sum(row["open"] for row in scopes),
        "caps that were reached": sum(row["counted"] == row["cap"] for row in scopes),
        "reservations that the recount changed": len(changed),
    }
    return {
        **found,
        "scopes": scopes,
        "problems": [f"{what}: {found[what]}, and it should be 0" for what in NEVER if found[what]],
    }


NEVER: Final = (
    "bought twice",
    "sold, and unknown to the ledger",
    "overrun",
    "counted over a cap",
    "counters that differ from the books",
    "reservations left open",
)


def _of_run(attempts: Mapping[str, tuple[str, Attempt]], run_id: str) -> int:
    return sum(attempt.run_id == run_id for _, attempt in attempts.values())


def _compare(name: str, scope: Scope, sold: int, in_doubt: int) -> dict[str, Any]:
    counter = scope.read()
    return {
        "scope": name,
        "cap": scope.cap.images,
        "sold": sold,
        "in doubt": in_doubt,
        "counted": counter.images_counted,
        "open": len(counter.open),
    }


def summed_up(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """``totals`` (what: count), ``problems`` with their rounds' seeds, and the ``rounds``."""
    apart = {"seed", "seconds", "scopes", "problems", "story"}
    scopes = [scope for row in rows for scope in row["scopes"]]
    totals = {
        "rounds": len(rows),
        "rounds that failed": sum(bool(row["problems"]) for row in rows),
        "seconds a round": round(sum(row["seconds"] for row in rows) / len(rows), 1),
        **{what: sum(row[what] for row in rows) for what in rows[0] if what not in apart},
        "caps": len(scopes),
        "images that they allow": sum(scope["cap"] for scope in scopes),
        "sold under them": sum(scope["sold"] for scope in scopes),
        "in doubt under them": sum(scope["in doubt"] for scope in scopes),
    }
    problems = [f"seed {row['seed']}: {each}" for row in rows for each in row["problems"]]
    return {"totals": totals, "problems": problems, "rounds": rows}


if __name__ == "__main__":
    main()
