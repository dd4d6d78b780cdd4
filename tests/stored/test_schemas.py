"""A stored model's fields change only with its schema number.

The golden file holds the fields of every schema number that was ever released. Renew it with
``python -m tests.stored.test_schemas``: that adds what is new, and changes nothing that is there.
"""

import gzip
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import TypeAdapter

from nanobanana_pipeline.datasets import release
from nanobanana_pipeline.datasets.formats.webdataset import INDEX_SCHEMA
from nanobanana_pipeline.datasets.release import Release, ReleaseFile
from nanobanana_pipeline.datasets.release_rows import KINDS as RELEASE_COLUMNS
from nanobanana_pipeline.features import table as features
from nanobanana_pipeline.features.table import CurrentFeatures
from nanobanana_pipeline.generation.budget import counters
from nanobanana_pipeline.generation.budget.counters import Counter
from nanobanana_pipeline.generation.manifest import manifest
from nanobanana_pipeline.generation.manifest.manifest import CurrentManifest
from nanobanana_pipeline.generation.planning import partition_plan, run_files
from nanobanana_pipeline.generation.planning.partition_plan import PartitionPlan
from nanobanana_pipeline.generation.planning.run_files import RUN_FILE, RunPlan
from nanobanana_pipeline.ledger import Entry
from nanobanana_pipeline.ledger import entry as ledger
from nanobanana_pipeline.lineage.trace import index_reader as index
from nanobanana_pipeline.lineage.trace.index_reader import SCHEMAS as INDEX_COLUMNS
from nanobanana_pipeline.lineage.trace.index_reader import StoredIndex
from nanobanana_pipeline.prompts import prompt_set
from nanobanana_pipeline.prompts.prompt_set import PromptSet
from nanobanana_pipeline.provider.modelslab import own_bucket
from nanobanana_pipeline.provider.modelslab.own_bucket import Places
from nanobanana_pipeline.provider.modelslab.request import ModelsLabRequest
from nanobanana_pipeline.storage import bucket_check
from nanobanana_pipeline.storage.bucket_check import BucketVerdict
from tests.stored.frozen import KINDS, SHORT_LIVED, FrozenBucket, archives

GOLDEN: Final = Path(__file__).parents[1] / "golden" / "stored_schemas.json"
RENEW: Final = "python -m tests.stored.test_schemas"
NO_NUMBER: Final = "none"
"""In place of a schema number: lineage has OpenLineage's own."""
ADVICE: Final = (
    "give it a new schema number, keep a reader for the old one, freeze a bucket that holds the "
    f"new one (tests/stored/README.md), and renew the golden file: {RENEW}"
)

MODELS: Final[Mapping[str, tuple[int, Any]]] = {
    "bucket verdict": (bucket_check.SCHEMA, BucketVerdict),
    "counter": (counters.SCHEMA, Counter),
    "delivery": (own_bucket.SCHEMA, Places),
    "features pointer": (features.SCHEMA, CurrentFeatures),
    "index pointer": (index.SCHEMA, StoredIndex),
    "ledger entry": (ledger.SCHEMA, Entry),
    "manifest pointer": (manifest.SCHEMA, CurrentManifest),
    "partition plan": (partition_plan.SCHEMA, PartitionPlan),
    "prompt set pointer": (prompt_set.SCHEMA, PromptSet),
    "release": (release.SCHEMA, Release),
    "release receipt": (release.SCHEMA, list[ReleaseFile]),
    "request of a run file": (run_files.SCHEMA, ModelsLabRequest),
    "run plan": (run_files.PLAN_SCHEMA, RunPlan),
}
"""Stored JSON that a model describes: its schema number, and the model."""
TABLES: Final[Mapping[str, tuple[int, pa.Schema]]] = {
    "features": (features.SCHEMA, features.FEATURE_TABLE_SCHEMA),
    "manifest": (manifest.TABLE_SCHEMA, manifest.MANIFEST_TABLE_SCHEMA),
    "release row": (release.SCHEMA, pa.schema(list(RELEASE_COLUMNS.items()))),
    "release tar index": (1, INDEX_SCHEMA),
    "run file": (run_files.SCHEMA, RUN_FILE),
    **{f"index {each.value}": (index.SCHEMA, columns) for each, columns in INDEX_COLUMNS.items()},
}
"""Stored tables whose columns the code declares."""
BY_HAND: Final = (
    *("bucket marker", "changelog", "dataset pointer", "lineage", "quarantine", "rejected"),
    *("release claim", "run done"),
)
"""Kinds that no public model describes: their fields are those of the frozen buckets."""

ADDED: Final[Mapping[str, frozenset[str]]] = {"ledger entry": frozenset({"unsent"})}
"""Fields that a kind got without a new number, since workers of every version share its objects.

Older readers ignore them and write the objects without them, so nothing may depend on them; where
they say nothing they are left out.
"""
NUMBERED_BY_WHAT_NAMES_THEM: Final = frozenset(
    {"release receipt", *(f"index {each.value}" for each in INDEX_COLUMNS)}
)
"""Kinds that hold no number: it is that of the release, or of the index pointer."""


def fields_of(schema: Mapping[str, Any], names: Mapping[str, Any]) -> Any:
    """The fields and types of a JSON schema, without the names and texts of our own classes."""
    if "$ref" in schema:
        return fields_of(names[schema["$ref"].rpartition("/")[2]], names)
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"]))
    if "anyOf" in schema:
        return " | ".join(str(fields_of(each, names)) for each in schema["anyOf"])
    if schema.get("type") == "array":
        return [fields_of(schema["items"], names)]
    if "properties" in schema:
        return {name: fields_of(each, names) for name, each in schema["properties"].items()}
    if isinstance(schema.get("additionalProperties"), dict):
        return {"*": fields_of(schema["additionalProperties"], names)}
    return schema.get("type", schema.get("const", "any"))


def model_fields(model: Any) -> Any:
    schema = TypeAdapter(model).json_schema(mode="serialization")
    fields = fields_of(schema, schema.get("$defs", {}))
    if model is Entry:
        # An entry keeps the fields of the provider's own model, and is read without it.
        fields["request"] = model_fields(ModelsLabRequest)
    return fields


def columns_of(schema: pa.Schema) -> dict[str, str]:
    return {field.name: str(field.type) for field in schema}


def stored_number(kind: str, body: bytes) -> str:
    """The schema number that an object bears."""
    if body.startswith(b"PAR1"):
        metadata = pq.read_schema(io.BytesIO(body)).metadata or {}
        return str(metadata.get(b"nanobanana.schema", NO_NUMBER.encode()), "ascii")
    if kind == "settled entries":
        body = gzip.decompress(body).splitlines()[0]
    if kind in {"lineage", "release receipt"}:
        return NO_NUMBER
    return str(json.loads(body)["layout" if kind == "bucket marker" else "schema"])


def stored_fields(kind: str, body: bytes) -> dict[str, str]:
    """The fields of an object that no model describes, as its own bytes tell them."""
    if body.startswith(b"PAR1"):
        return columns_of(pq.read_schema(io.BytesIO(body)))
    if kind == "lineage":
        return dict.fromkeys(sorted(json.loads(body.splitlines()[0])), "any")
    return {name: type(value).__name__ for name, value in json.loads(body).items()}


def without_added(kind: str, fields: Any) -> Any:
    added = ADDED.get(kind)
    return {n: each for n, each in fields.items() if n not in added} if added else fields


def today() -> dict[str, dict[str, Any]]:
    """The fields of every kind under the schema number that this version writes."""
    found = {
        kind: {str(number): without_added(kind, model_fields(model))}
        for kind, (number, model) in MODELS.items()
    }
    found |= {kind: {str(number): columns_of(schema)} for kind, (number, schema) in TABLES.items()}
    for kind in BY_HAND:
        found[kind] = {}
        for archive in archives():
            _, body = max(FrozenBucket.read(archive).objects(kind), default=("", None))
            if body is None:  # a later bucket need not hold every kind
                continue
            found[kind][stored_number(kind, body)] = stored_fields(kind, body)
    return dict(sorted(found.items()))


def golden() -> dict[str, dict[str, Any]]:
    read: dict[str, dict[str, Any]] = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    return read


@pytest.mark.parametrize("kind", [*MODELS, *TABLES, *BY_HAND])
def test_fields_change_only_with_the_schema_number(kind: str) -> None:
    for number, fields in today()[kind].items():
        known = golden().get(kind, {})
        assert number in known, f"{kind} has the new schema number {number}: {ADVICE}"
        assert fields == known[number], f"{kind} has other fields than schema {number}: {ADVICE}"


def test_an_added_field_is_optional_left_out_and_ignored_by_readers_without_it() -> None:
    (_, body), *_ = FrozenBucket.read(archives()[0]).objects("ledger entry")
    entry = Entry.from_json(body, "here")
    for name in ADDED["ledger entry"]:
        assert name not in json.loads(entry.to_json())
        assert name in json.loads(entry.model_copy(update={name: 3}).to_json())
    # As 0.1.0's reader meets `unsent`: a field that its model does not have.
    unknown = json.dumps(json.loads(body) | {"field_of_tomorrow": 3}).encode()
    assert Entry.from_json(unknown, "here") == entry


def test_every_kind_of_the_golden_file_is_compared() -> None:
    assert golden().keys() == today().keys()


def test_every_schema_number_lies_in_a_frozen_bucket() -> None:
    frozen = {
        (kind, stored_number(kind, body))
        for bucket in map(FrozenBucket.read, archives())
        for kind in golden().keys() & KINDS.keys() - NUMBERED_BY_WHAT_NAMES_THEM
        for _, body in bucket.objects(kind)
    }
    for kind, number in frozen:
        assert number in golden()[kind]
    for kind, numbers in golden().items():
        if kind in KINDS and kind not in NUMBERED_BY_WHAT_NAMES_THEM | SHORT_LIVED:
            missing = {number for number in numbers if (kind, number) not in frozen}
            assert not missing, f"no frozen bucket holds {kind} of schema {missing}"


if __name__ == "__main__":
    merged = golden()
    for name, numbers in today().items():
        for its_number, its_fields in numbers.items():
            before = merged.setdefault(name, {}).setdefault(its_number, its_fields)
            if before != its_fields:
                raise SystemExit(f"{name} has other fields than schema {its_number}: {ADVICE}")
    GOLDEN.write_text(json.dumps(dict(sorted(merged.items())), indent=1, ensure_ascii=False) + "\n")
