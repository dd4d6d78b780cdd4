"""OpenLineage events against the schemas of their specification, and of our own facet."""

import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from jsonschema import Draft202012Validator, FormatChecker
from referencing import Registry, Resource

from nanobanana_pipeline.lineage.openlineage import facts
from nanobanana_pipeline.storage import ObjectStore

HERE: Final = Path(__file__).parent / "specification"
OWN: Final = Path(facts.__file__).parent / "NanobananaRunFacet.json"
Event = dict[str, Any]


def _documents() -> Iterator[tuple[str, Any]]:
    for path in [*HERE.glob("*.json"), OWN]:
        yield path.name, json.loads(path.read_text())


DOCUMENTS: Final = dict(_documents())
CORES: Final = ["1-0-1", "1-0-2", "1-0-3", "2-0-0", "2-0-2"]
REGISTRY: Final[Registry[Any]] = Registry().with_resources(
    [(document["$id"], Resource.from_contents(document)) for document in DOCUMENTS.values()]
    + [
        (
            f"https://openlineage.io/spec/{version}/OpenLineage.json",
            Resource.from_contents(DOCUMENTS["OpenLineage.json"]),
        )
        for version in CORES
    ]
)


def events_of(store: ObjectStore, run_id: str | None = None, job: str | None = None) -> list[Event]:
    """Every event in the bucket, or of a run or a job, as they lie there; each is valid."""
    found = []
    for key in store.keys("lineage/"):
        stored = store.get(key)
        assert stored is not None
        assert stored.body.endswith(b"\n")
        events = [json.loads(line) for line in stored.body.splitlines()]
        for event in events:
            assert ours(event)["runId"] == key.rpartition("/")[2].removesuffix(".ndjson")
        found += events
    for event in found:
        check_event(event)
    return [
        event
        for event in found
        if run_id in {None, ours(event)["runId"]} and job in {None, event["job"]["name"]}
    ]


def states_of(events: list[Event]) -> list[str]:
    return [event["eventType"] for event in events]


def ours(event: Event) -> dict[str, Any]:
    facet: dict[str, Any] = event["run"]["facets"]["nanobanana_run"]
    return facet


def check_event(event: Event) -> None:
    """The event and each of its facets are as the specification says."""
    _check(event, {"$ref": "https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs/RunEvent"})
    assert datetime.fromisoformat(event["eventTime"]).tzinfo is not None
    for name, facet in _facets(event):
        document = DOCUMENTS[
            facet["_schemaURL"].partition("#")[0].rpartition("/")[2].split(":")[-1]
        ]
        _check({name: facet}, {"$ref": document["$id"]})
        # The specification lets unknown fields pass: one that is misspelt is found here.
        assert set(document["properties"]) == {name}
    known = DOCUMENTS[OWN.name]["$defs"]["NanobananaRunFacet"]["allOf"][1]["properties"]
    assert set(ours(event)) <= {*known, "_producer", "_schemaURL"}


def _check(thing: Any, schema: Any) -> None:
    checker = FormatChecker()
    Draft202012Validator(schema, registry=REGISTRY, format_checker=checker).validate(thing)


def _facets(event: Event) -> Iterator[tuple[str, Any]]:
    yield from event["run"]["facets"].items()
    yield from event["job"]["facets"].items()
    for dataset in event["inputs"]:
        yield from dataset["facets"].items()
        yield from dataset["inputFacets"].items()
    for dataset in event["outputs"]:
        yield from dataset["facets"].items()
        yield from dataset["outputFacets"].items()
