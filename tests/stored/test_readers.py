"""Every object of a frozen bucket is read whole by today's readers, and written as it was."""

import gzip
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import pyarrow.parquet as pq
import pytest
from pydantic import TypeAdapter

from nanobanana_pipeline.datasets.release import (
    CHANGELOG,
    MANIFEST,
    REJECTED,
    Release,
    ReleaseFile,
    all_releases,
    read_latest,
    read_release,
    read_release_table,
)
from nanobanana_pipeline.errors import NanobananaError
from nanobanana_pipeline.features.table import CurrentFeatures, read_current_features, read_features
from nanobanana_pipeline.generation.budget.counters import Counter, partition_scope
from nanobanana_pipeline.generation.manifest.manifest import (
    CurrentManifest,
    read_all_current,
    read_current,
    read_manifest,
)
from nanobanana_pipeline.generation.manifest.shard_log import read_shard_log
from nanobanana_pipeline.generation.planning.partition_plan import (
    PartitionPlan,
    read_partition_plan,
)
from nanobanana_pipeline.generation.planning.run_files import RunPlan, read_plan, read_request_keys
from nanobanana_pipeline.ledger import Entry, Ledger
from nanobanana_pipeline.lineage.trace.index_reader import StoredIndex, read_index
from nanobanana_pipeline.money import Budget
from nanobanana_pipeline.prompts import prompt_set
from nanobanana_pipeline.prompts.checked_prompts import fingerprint
from nanobanana_pipeline.prompts.prompt_set import PromptSet
from nanobanana_pipeline.provider.modelslab.own_bucket import read_places
from nanobanana_pipeline.provider.modelslab.request import ModelsLabRequest
from nanobanana_pipeline.request import request_key
from nanobanana_pipeline.storage import ObjectStore
from nanobanana_pipeline.storage.bucket import check_bucket
from tests.stored.conftest import Command
from tests.stored.frozen import KINDS, SHORT_LIVED, FrozenBucket, archives, kind_of
from tests.stored.test_schemas import ADVICE, golden, stored_fields, stored_number

RUN = "a7ff553233ab42b3be6c5a471abc6793"


def all_frozen(kind: str) -> Iterator[tuple[str, bytes]]:
    for archive in archives():
        yield from FrozenBucket.read(archive).objects(kind)


def as_json(found: Any) -> bytes:
    return json.dumps(found, indent=1).encode()


ROUND_TRIPS: Final[dict[str, Callable[[bytes], bytes]]] = {
    "counter": lambda body: (
        Counter.model_validate_json(body).model_dump_json(by_alias=True, exclude_none=True).encode()
    ),
    "features pointer": lambda body: as_json(asdict(CurrentFeatures(**json.loads(body)))),
    "index pointer": lambda body: as_json(asdict(TypeAdapter(StoredIndex).validate_json(body))),
    "ledger entry": lambda body: Entry.from_json(body, "here").to_json(),
    "manifest pointer": lambda body: as_json(asdict(CurrentManifest(**json.loads(body)))),
    "partition plan": lambda body: TypeAdapter(PartitionPlan).dump_json(
        TypeAdapter(PartitionPlan).validate_json(body), indent=1
    ),
    "prompt set pointer": lambda body: as_json(
        {"schema": 1, **asdict(TypeAdapter(PromptSet).validate_json(body))}
    ),
    "release": lambda body: TypeAdapter(Release).validate_json(body).to_json(),
    "release receipt": lambda body: json.dumps(
        [asdict(ReleaseFile(**said)) for said in json.loads(body)]
    ).encode(),
    "run plan": lambda body: TypeAdapter(RunPlan).dump_json(
        TypeAdapter(RunPlan).validate_json(body), indent=1
    ),
    "settled entries": lambda body: b"".join(
        Entry.from_json(line, "here").to_json() + b"\n" for line in body.splitlines()
    ),
}


@pytest.mark.parametrize("kind", ROUND_TRIPS)
def test_a_model_writes_what_it_has_read_to_the_byte(kind: str) -> None:
    """What an older schema has is read too, and may be written otherwise."""
    numbers = [stored_number(kind, body) for _, body in all_frozen(kind)]
    assert numbers
    for key, body in all_frozen(kind):
        plain = gzip.decompress(body) if key.endswith(".gz") else body
        written = ROUND_TRIPS[kind](plain)
        if stored_number(kind, body) == max(numbers):
            assert written == plain, f"{key}: {ADVICE}"


def test_a_run_file_holds_requests_as_they_are_written_today(frozen: FrozenBucket) -> None:
    for _, body in frozen.objects("run file"):
        for row in pq.read_table(io.BytesIO(body)).to_pylist():
            request = ModelsLabRequest.model_validate_json(row["request"])
            assert request.model_dump_json() == row["request"]
            assert request_key(request, realm="emulator") == row["request_key"]


def test_every_manifest_and_its_features_are_read(held: ObjectStore) -> None:
    manifests = list(read_all_current(held))
    assert len(manifests) == 9
    for current in manifests:
        rows = read_manifest(held, current.manifest)
        assert len(rows) == current.rows
        assert rows["image_sha256"].nunique() == current.images
        features, _ = read_current_features(held, current.prompt_set, current.seed)
        assert features is not None
        measured = read_features(held, current.prompt_set, current.seed)
        assert measured is not None
        assert set(measured["image_sha256"]) == set(rows["image_sha256"].dropna())


def test_every_prompt_set_is_read(held: ObjectStore) -> None:
    found = {}
    for name in ("birds", "signs", "birds.top-up.birds.9ab326cdb0b2"):
        current = prompt_set.current(held, name)
        assert current is not None
        prompts = prompt_set.load(held, name, current.fingerprint)
        assert fingerprint(prompts) == current.fingerprint
        quarantine = prompt_set.load_quarantine(held, name, current.fingerprint)
        found[name] = (current.rows, len(prompts), current.quarantined, len(quarantine))
    assert found == {
        "birds": (9, 9, 2, 2),
        "signs": (5, 5, 0, 0),
        "birds.top-up.birds.9ab326cdb0b2": (2, 2, 0, 0),
    }


def test_every_plan_and_its_run_files_are_read(held: ObjectStore, frozen: FrozenBucket) -> None:
    settled = 0
    for key, said in frozen.json("run plan"):
        run_id = key.split("/")[1]
        made = read_plan(held, run_id)
        assert len(list(read_request_keys(held, made))) == said["buy"]
        for shard in made.shards:
            settled += len(list(read_shard_log(held, run_id, shard)))
    bodies = (gzip.decompress(body) for _, body in frozen.objects("settled entries"))
    assert settled == sum(len(body.splitlines()) for body in bodies)


def test_every_release_and_its_tables_are_read(held: ObjectStore) -> None:
    found = [release for name in ("birds", "signs") for release in all_releases(held, name)]
    assert [(each.name, each.version) for each in found] == [
        ("birds", "v1"),
        ("signs", "v2"),
        ("signs", "v1"),
    ]
    for release in found:
        assert len(read_release_table(held, release, MANIFEST)) == release.rows
        assert {"row_id", "reason"} <= set(read_release_table(held, release, REJECTED))
        if release.parent:
            changes = read_release_table(held, release, CHANGELOG)["change"].value_counts()
            assert changes.to_dict() == release.changes


NEWER: Final[dict[str, tuple[str, Callable[[ObjectStore], object]]]] = {
    "counter": (
        "budget/partitions/birds/seed=1.json",
        lambda store: partition_scope(store, Budget(), "birds", 1).read(),
    ),
    "dataset pointer": (
        "datasets/signs/latest.json",
        lambda store: read_latest(store, "signs"),
    ),
    "delivery": ("delivery.json", read_places),
    "bucket marker": ("nanobanana.json", lambda store: check_bucket(store, "emulator")),
    "features pointer": (
        "features/birds/seed=1/current.json",
        lambda store: read_current_features(store, "birds", 1),
    ),
    "index pointer": ("index/current.json", read_index),
    "ledger entry": (
        "ledger/8c/8c4b3b65291e64b4d5593d1b8157db253b5a6c71129e4a519433c1628df6f45f.json",
        lambda store: Ledger(store).read(
            "8c4b3b65291e64b4d5593d1b8157db253b5a6c71129e4a519433c1628df6f45f"
        ),
    ),
    "manifest pointer": (
        "manifests/birds/seed=1/current.json",
        lambda store: read_current(store, "birds", 1),
    ),
    "partition plan": (
        "manifests/birds/seed=1/plan.json",
        lambda store: read_partition_plan(store, "birds", 1),
    ),
    "prompt set pointer": (
        "prompt_sets/birds/current.json",
        lambda store: prompt_set.current(store, "birds"),
    ),
    "release": (
        "datasets/signs/v1/release.json",
        lambda store: read_release(store, "signs", "v1"),
    ),
    "run plan": (f"runs/{RUN}/plan.json", lambda store: read_plan(store, RUN)),
}


def test_a_newer_schema_is_refused(copy: ObjectStore) -> None:
    copy.create("delivery.json", b'{"schema": 1, "places": []}')
    first = {"schema": 1, "number": 1, "fingerprint": "f", "parameters": {}, "limit": None}
    copy.create("manifests/birds/seed=1/plan.json", json.dumps(first).encode())
    for kind, (key, read) in NEWER.items():
        read(copy)
        found = copy.get(key)
        assert found is not None
        said, number = json.loads(found.body), "layout" if kind == "bucket marker" else "schema"
        newest = int(max(golden()[kind], key=int)) if kind in golden() else said[number]
        copy.put(key, json.dumps(said | {number: newest + 1}).encode())
        with pytest.raises(NanobananaError, match="upgrade nanobanana-pipeline"):
            read(copy)
        copy.put(key, found.body)


MAPS: Final = frozenset(
    {
        *("cells", "changes", "columns", "datasets", "filters", "kinds", "parameters"),
        *("partitions", "ratios", "reservations", "reserved", "splits", "states"),
    }
)
"""Objects in JSON whose keys are data."""
ALSO: Final = ("prompt set", "release manifest", "release parquet", "settled entries")
"""Kinds that are compared beside those of the golden file; their columns follow the table."""


def names_in(value: Any, path: str = "") -> Iterator[str]:
    """The path of every field in JSON."""
    if isinstance(value, dict):
        for name, each in value.items():
            below = f"{path}/{'*' if path.rpartition('/')[2] in MAPS else name}"
            yield below
            yield from names_in(each, below)
    elif isinstance(value, list):
        for each in value:
            yield from names_in(each, path)


def fields(kind: str, body: bytes) -> set[str]:
    """The fields of a JSON object, or the columns and types of a table."""
    if body.startswith(b"PAR1"):
        return {f"{name}: {type_}" for name, type_ in stored_fields(kind, body).items()}
    if kind == "lineage":
        return {name for line in body.splitlines() for name in json.loads(line)}
    lines = gzip.decompress(body).splitlines() if kind == "settled entries" else [body]
    return {name for line in lines for name in names_in(json.loads(line))}


def test_what_is_written_today_has_the_same_fields(
    writing: Command, copy: ObjectStore, frozen: FrozenBucket, tmp_path: Path
) -> None:
    recipe = tmp_path / "signs.yaml"
    recipe.write_bytes(frozen.files["signs.yaml"].replace(b"seeds: 1-3", b"seeds: 1-4"))
    birds, signs = (copy.uri(f"prompts/{name}") for name in ("birds.csv", "signs.jsonl"))
    for words, code in (
        (("generate", birds, "--name", "again", "--seeds", "1", "--max-images", "0"), 1),
        (("generate", signs, "--seeds", "4", "--max-cost", "10"), 0),
        (("features", "signs"), 0),
        (("release", "build", recipe), 0),
        (("index", "refresh", "--rebuild"), 0),
    ):
        done = writing(*words)
        assert done.exit_code == code, done.output
    before = {each["key"] for each in frozen.index}
    written = [key for key in copy.keys("") if key not in before]
    written += ["datasets/signs/latest.json", "index/current.json"]
    compared = {*golden(), *ALSO} & {*KINDS} - {"bucket marker", "delivery", *SHORT_LIVED}
    seen, faults = set(), []
    for key in written:
        stored, kind = copy.get(key), kind_of(key)
        assert stored is not None
        if kind in compared:
            seen.add(kind)
            now, number = fields(kind, stored.body), stored_number(kind, stored.body)
            then = [
                fields(kind, body)
                for there, body in all_frozen(kind)
                # The attributes of a prompt table are columns of its releases.
                if stored_number(kind, body) == number and "datasets/birds/" not in there
            ]
            assert then, f"no frozen bucket holds {kind} of schema {number}: {ADVICE}"
            faults += [f"{kind} lost {name}" for name in set[str].intersection(*then) - now]
            faults += [f"{kind} has the new {name}" for name in now - set[str]().union(*then)]
    assert not faults, f"{'; '.join(sorted(set(faults)))}: {ADVICE}"
    assert seen == compared
