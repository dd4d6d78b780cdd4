"""How long it takes to trace one picture among a million, cold.

    uv run python -m benchmarks.trace

Synthetic: 20 prompt sets of 5,000 prompts under 10 seeds, which makes 200 manifests and 1,000,000
pictures, and 5 releases of 200,000 to 1,000,000 of them. Manifests and releases are written as
`collect` and `release build` write them; pictures, ledger entries and plans only where something is
traced. The index is made in a process of its own; each lookup runs in a new one, so nothing that
this package keeps is warm. The S3 server is the local profile's, on the same machine.
Writes ``benchmarks/results/trace.json``.
"""

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil
import pyarrow as pa
from rich.console import Console

from nanobanana_pipeline import local
from nanobanana_pipeline.bucket_keys import (
    image_key,
    index_key,
    latest_release_key,
    ledger_key,
    release_key,
)
from nanobanana_pipeline.datasets.release import (
    MANIFEST,
    EveryRelease,
    Release,
    ReleaseFile,
    table_bytes,
)
from nanobanana_pipeline.generation.manifest.manifest import (
    MANIFEST_COLUMNS,
    CurrentManifest,
    manifest_key,
    publish,
    read_current,
)
from nanobanana_pipeline.generation.planning.run_files import RunPlan, write_plan
from nanobanana_pipeline.ledger import Entry, StoredImage, new_nonce, now_iso
from nanobanana_pipeline.lineage.trace.index_writer import refresh_index
from nanobanana_pipeline.lineage.trace.trace import trace
from nanobanana_pipeline.prompts import prompt_set
from nanobanana_pipeline.prompts.table import read_prompt_table
from nanobanana_pipeline.prompts.validation import check_prompts
from nanobanana_pipeline.provider.modelslab.request import ModelsLabRequest
from nanobanana_pipeline.storage import ObjectStore, s3_client
from nanobanana_pipeline.storage.bucket import claim_bucket
from nanobanana_pipeline.storage.versioned import packed

REALM: Final = "emulator"
SETS, SEEDS, PROMPTS, RELEASES = 20, 10, 5_000, 5
RESULTS: Final = Path(__file__).parent / "results" / "trace.json"
LOOKUPS: Final = 9
"""Of each kind; of a run, which is large, fewer."""
RUNS: Final = 3


def main() -> None:
    """Make the bucket, the index and the lookups; or do one of them when called for that."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", type=int, default=SETS)
    parser.add_argument("--refresh", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--lookup", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.refresh:
        sys.stdout.write(json.dumps(_refresh(_store())))
    elif given.lookup:
        sys.stdout.write(json.dumps(_lookup(_store(), given.lookup)))
    else:
        with tempfile.TemporaryDirectory() as folder, local.s3_server(Path(folder, "s3")) as url:
            os.environ |= local.s3_environment(url)
            os.environ |= {
                "NANOBANANA_BUCKET": local.BUCKET,
                "NANOBANANA_BASE_URL": "http://127.0.0.1:9/",
            }
            found = _measure(Path(folder), given.sets)
        if given.sets == SETS:
            RESULTS.write_text(json.dumps(found, indent=1) + "\n")
        Console().print_json(data=found)


def _measure(folder: Path, sets: int) -> dict[str, Any]:
    store = _store()
    claim_bucket(store, REALM)
    _say("writing manifests")
    hashes = [_put_set(store, folder, number) for number in range(sets)]
    _say("writing releases")
    _put_releases(store, hashes)
    _say("making the index")
    made = _child("--refresh")
    size = sum(found.size for found in store.listing(index_key("")))
    _put_partition(store, 0, 1, again=True)
    again = _child("--refresh")
    _say("looking up")
    lookups = {
        kind: _times(_ask(store, folder, hashes, kind), RUNS if kind == "run" else LOOKUPS)
        for kind in ("file", "prompt id", "request key", "provider id", "run")
    }
    return {
        "pictures": sets * SEEDS * PROMPTS,
        "partitions": sets * SEEDS,
        "releases": RELEASES,
        "released rows": sum(_released(sets)),
        "machine": "2 cores, shared with the S3 server and with other work",
        "load average": [round(load, 1) for load in os.getloadavg()],
        "index": {"MB": round(size / 1e6, 1), **made},
        "index after one partition has changed": again,
        "lookups": lookups,
    }


def _ask(
    store: ObjectStore, folder: Path, hashes: list[list[bytes]], kind: str
) -> Callable[[int], str]:
    """What is asked for, by number: another thing each time."""

    def ask(number: int) -> str:
        set_number, seed, row = number % len(hashes), 2 + number % (SEEDS - 1), 17 * number
        sha256 = hashes[set_number][(seed - 1) * PROMPTS + row].hex()
        _put_history(store, set_number, seed, row, sha256)
        path = folder / f"renamed-{number}"
        path.write_bytes(_bytes(set_number, seed, row))
        return {
            "file": str(path),
            "prompt id": f"set-{set_number:02d}-{row:05d}",
            "request key": _request_key(set_number, seed, row),
            "provider id": _provider_id(set_number, seed, row),
            "run": _run_id(set_number, seed),
        }[kind]

    return ask


def _times(ask: Callable[[int], str], count: int) -> dict[str, float]:
    """Seconds of the lookup alone, and of the whole command, each in a new process."""
    inside, whole = [], []
    command = str(Path(sys.executable).with_name("nanobanana"))
    for number in range(count):
        asked = ask(number)
        inside.append(_child("--lookup", asked))
        before, start = _cpu_of_children(), time.perf_counter()
        subprocess.run(  # noqa: S603 - our own command
            [command, "trace", asked, "--json"], check=True, stdout=subprocess.DEVNULL
        )
        seconds = time.perf_counter() - start
        whole.append({"seconds": seconds, "cpu": _cpu_of_children() - before})
    return {
        f"{what}, {figure}": round(how([each[key] for each in found]), 3)
        for what, found in (("lookup", inside), ("whole command", whole))
        for figure, key, how in (
            ("median s", "seconds", statistics.median),
            ("best s", "seconds", min),
            ("worst s", "seconds", max),
            ("median CPU s", "cpu", statistics.median),
        )
    }


def _cpu_of_children() -> float:
    used = os.times()
    return used.children_user + used.children_system


def _child(*arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.trace", *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)  # noqa: S603 - ours
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _refresh(store: ObjectStore) -> dict[str, Any]:
    start = time.perf_counter()
    done = refresh_index(store)
    return {
        "seconds": round(time.perf_counter() - start, 1),
        "rows read": done.read,
        "rows": done.rows,
        "segments": done.segments,
        "peak MB": round(_peak_bytes() / 1e6),
    }


def _peak_bytes() -> int:
    """This process's own peak; Linux tells it in /proc."""
    status = Path(f"/proc/{psutil.Process().pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def _lookup(store: ObjectStore, asked: str) -> dict[str, float]:
    start, used = time.perf_counter(), time.process_time()
    found = trace(store, asked)
    told = {"seconds": time.perf_counter() - start, "cpu": time.process_time() - used}
    if not found.matches or (found.notes and "first" not in found.notes[0]):
        raise RuntimeError(f"{asked}: {found.matches} {found.notes}")
    return told


def _store() -> ObjectStore:
    return ObjectStore(s3_client(), local.BUCKET, "")


def _put_set(store: ObjectStore, folder: Path, number: int) -> list[bytes]:
    """A prompt set, its manifests, and the hashes of its pictures by seed and row."""
    path = folder / "prompts.jsonl"
    rows = (
        {"id": f"set-{number:02d}-{row:05d}", "prompt": _prompt(number, row), "mood": "calm"}
        for row in range(PROMPTS)
    )
    path.write_text("\n".join(map(json.dumps, rows)))
    prompt_set.snapshot(store, _name(number), check_prompts(read_prompt_table(path)))
    return [sha for seed in range(1, SEEDS + 1) for sha in _put_partition(store, number, seed)]


def _put_partition(
    store: ObjectStore, number: int, seed: int, *, again: bool = False
) -> list[bytes]:
    name, run_id = _name(number), _run_id(number, seed)
    hashes = [hashlib.sha256(_bytes(number, seed, row)).digest() for row in range(PROMPTS)]
    texts = [digest.hex() for digest in hashes]
    kept = prompt_set.current(store, name)
    if kept is None:
        raise RuntimeError(f"{name} is missing")
    said: dict[str, Any] = {
        "prompt_set": [name] * PROMPTS,
        "prompt_id": [f"set-{number:02d}-{row:05d}" for row in range(PROMPTS)],
        "prompt": [_prompt(number, row) for row in range(PROMPTS)],
        "seed": np.full(PROMPTS, seed),
        "seed_asked": np.full(PROMPTS, seed),
        "sample": np.zeros(PROMPTS, np.int32),
        "request_key": [_request_key(number, seed, row) for row in range(PROMPTS)],
        "state": ["settled"] * PROMPTS,
        "image_sha256": texts,
        "image_uri": [store.uri(image_key(text, "png")) for text in texts],
        "format": ["png"] * PROMPTS,
        "width": np.full(PROMPTS, 1024, np.int32),
        "height": np.full(PROMPTS, 1024, np.int32),
        "bytes": np.full(PROMPTS, 1_300_000),
        "provider_id": [_provider_id(number, seed, row) for row in range(PROMPTS)],
        "attempts": np.ones(PROMPTS, np.int32),
        "run_id": [run_id] * PROMPTS,
        "accepted": [now_iso()] * PROMPTS,
    }
    columns = {
        column: pa.array(said[column], kind) if column in said else pa.nulls(PROMPTS, kind)
        for column, (kind, _) in MANIFEST_COLUMNS.items()
    }
    current = CurrentManifest(
        prompt_set=name,
        seed=seed,
        manifest=manifest_key(name, seed, run_id),
        fingerprint=kept.fingerprint,
        parameters={"width": 1024, "height": 1024},
        limit=None,
        cells={"settled": PROMPTS},
        images=PROMPTS,
        size=PROMPTS * 1_300_000,
        content=f"again {again}",
        rows=PROMPTS,
        run_id=run_id,
        created=now_iso(),
    )
    if not publish(store, packed(pa.table(columns)), current, read_current(store, name, seed)[1]):
        raise RuntimeError(f"{name} seed={seed} was not published")
    _put_plan(store, number, seed)
    return hashes


def _put_plan(store: ObjectStore, number: int, seed: int) -> None:
    made = RunPlan(
        prompt_set=_name(number),
        seed=seed,
        run_id=_run_id(number, seed),
        fingerprint="",
        parameters={},
        limit=None,
        cells=PROMPTS,
        states={},
        buy=PROMPTS,
        buy_images=PROMPTS,
        resume=0,
        look=0,
    )
    write_plan(store, made)


def _put_releases(store: ObjectStore, hashes: list[list[bytes]]) -> None:
    """Releases that grow, each the parent of the next."""
    parent, body = None, b""
    for number, rows in enumerate(_released(len(hashes)), 1):
        version = f"v{number}"
        manifest = table_bytes(pa.table(dict(_release_columns(hashes, rows))))
        key = release_key("pets", version, MANIFEST)
        store.put(key, manifest)
        sha256 = hashlib.sha256(manifest).hexdigest()
        file = ReleaseFile(MANIFEST, key, len(manifest), sha256, EveryRelease.MANIFEST)
        release = Release(
            name="pets",
            version=version,
            fingerprint=hashlib.sha256(manifest).hexdigest(),
            parent=parent,
            created=now_iso(),
            code_version="0",
            recipe={},
            rows=rows,
            images=rows,
            size=rows * 1_300_000,
            splits={"train": rows},
            kinds={"png": rows},
            columns={},
            changes={},
            next_key=rows,
            files=(file,),
        )
        body, parent = release.to_json(), version
        store.put(release_key("pets", version, "release.json"), body)
    pointer = {
        "schema": 1,
        "version": parent,
        "fingerprint": "",
        "release": "",
        "sha256": hashlib.sha256(body).hexdigest(),
    }
    store.put(latest_release_key("pets"), json.dumps(pointer).encode())


def _release_columns(hashes: list[list[bytes]], rows: int) -> Iterator[tuple[str, Any]]:
    """What a release's manifest has, as far as it matters here."""
    every = (digest for each in hashes for digest in each)
    yield "key", [f"{row:09d}" for row in range(rows)]
    yield "image_sha256", [next(every).hex() for _ in range(rows)]
    yield "prompt", [f"a prompt of some length, number {row % PROMPTS}" for row in range(rows)]
    yield "split", ["train"] * rows
    yield "shard", pa.array(np.arange(rows) // 10_000, pa.int32())


def _released(sets: int) -> list[int]:
    """Rows of each release."""
    return [sets * SEEDS * PROMPTS * number // RELEASES for number in range(1, RELEASES + 1)]


def _put_history(store: ObjectStore, number: int, seed: int, row: int, sha256: str) -> None:
    """A ledger entry."""
    request = ModelsLabRequest(prompt=_prompt(number, row), seed=seed, width=1024, height=1024)
    run_id, nonce = _run_id(number, seed), new_nonce()
    entry = Entry.new(request, _request_key(number, seed, row), realm=REALM)
    entry = entry.claim(run_id=run_id, nonce=nonce, lease_seconds=150)
    entry = entry.accept(nonce, _provider_id(number, seed, row))
    image = StoredImage(
        sample=0,
        sha256=sha256,
        size=1_300_000,
        format="png",
        width=1024,
        height=1024,
        key=image_key(sha256, "png"),
    )
    store.put(ledger_key(entry.request_key), entry.settle(nonce, [image]).to_json())


def _name(number: int) -> str:
    return f"set-{number:02d}"


def _prompt(number: int, row: int) -> str:
    return f"animal {row} of kind {number}, sitting by a river in soft light"


def _bytes(number: int, seed: int, row: int) -> bytes:
    return f"picture {number} {seed} {row}".encode()


def _request_key(number: int, seed: int, row: int) -> str:
    return hashlib.sha256(f"request {number} {seed} {row}".encode()).hexdigest()


def _provider_id(number: int, seed: int, row: int) -> str:
    return str(10_000_000 + (number * SEEDS + seed) * PROMPTS + row)


def _run_id(number: int, seed: int) -> str:
    return hashlib.sha256(f"run {number} {seed}".encode()).hexdigest()[:32]


def _say(what: str) -> None:
    sys.stderr.write(f"{what}\n")


if __name__ == "__main__":
    main()
