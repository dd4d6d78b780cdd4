"""Facts of a run before they become an OpenLineage event: `RunFacts`, with its `Dataset`s.

Facts of datasets are the fields of OpenLineage's facets, as plain values. `facets` makes the
client's classes of them where an event is written, since the client takes 0.2 s to import.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final
from urllib.parse import urlsplit

__all__ = [
    "Dataset",
    "EventType",
    "Parent",
    "RunFacts",
    "column_metrics",
    "dataset",
    "dataset_name",
    "origin",
    "output_statistics",
]

EMPTY: Final[Mapping[str, Any]] = MappingProxyType({})


class EventType(StrEnum):
    """OpenLineage's states of a run; a run ends with one of the last three."""

    START = "START"
    RUNNING = "RUNNING"
    COMPLETE = "COMPLETE"
    FAIL = "FAIL"
    ABORT = "ABORT"


@dataclass(frozen=True)
class Parent:
    """The run of an orchestrator (`engine`, such as ``dagster``) that this run is a step of.

    `run_id` is a UUID; `version` is the orchestrator's.
    """

    run_id: str
    job: str
    engine: str
    version: str


@dataclass(frozen=True)
class Dataset:
    """A table that a run reads or writes: ``s3://bucket/key``, or the path of a local file.

    `facets` are the fields of each facet, all by OpenLineage's names.
    """

    uri: str
    facets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class RunFacts:
    """Facts of a run at one moment.

    Attributes:
        inputs, outputs: datasets that the run reads and writes.
        facet: fields of the facet ``nanobanana_run``; None values are left out.
        failure: why the run counts as failed although nothing was raised.
        source: language and text of code that the run executed besides this package's.
    """

    inputs: tuple[Dataset, ...] = ()
    outputs: tuple[Dataset, ...] = ()
    facet: Mapping[str, Any] = field(default_factory=dict)
    failure: str | None = None
    source: tuple[str, str] | None = None


def dataset(
    uri: str,
    *,
    version: str,
    columns: Mapping[str, tuple[str, str]] = EMPTY,
    origins: Mapping[str, Sequence[Mapping[str, Any]]] = EMPTY,
    metrics: Mapping[str, Mapping[str, Any]] = EMPTY,
    counts: Mapping[str, int] = EMPTY,
    zeros: Mapping[str, tuple[int, str | None]] = EMPTY,
) -> Dataset:
    """A dataset with the facets that these facts fill.

    Args:
        uri: of the dataset.
        version: of its content.
        columns: each column's type and description.
        origins: `origin`s of each column that is derived from others.
        metrics: `column_metrics` of some columns.
        counts: `output_statistics`, or only ``rowCount``.
        zeros: assertions that a count is 0, by name: the count, and its column if there is one.
    """
    facets: dict[str, Mapping[str, Any]] = {"version": {"datasetVersion": version}}
    if columns:
        fields: list[dict[str, Any]] = [
            {"name": name, "type": kind, "description": text or None, "fields": []}
            for name, (kind, text) in columns.items()
        ]
        facets["schema"] = {"fields": fields}
    if origins:
        inputs = {name: {"inputFields": list(each)} for name, each in origins.items()}
        facets["columnLineage"] = {"fields": inputs}
    if metrics:
        rows = counts.get("rowCount")
        facets["dataQualityMetrics"] = {"columnMetrics": metrics, "rowCount": rows}
    if zeros:
        assertions = [
            {"assertion": name, "success": count == 0, "expected": "0", "actual": str(count)}
            | {"column": column, "params": {}}
            for name, (count, column) in zeros.items()
        ]
        facets["dataQualityAssertions"] = {"assertions": assertions}
    if counts:
        facets["outputStatistics"] = counts
    return Dataset(uri, facets)


def origin(uri: str, column: str, transformation: str = "") -> dict[str, Any]:
    """A column that another is derived from; `transformation` is "" for an unchanged copy."""
    namespace, name = dataset_name(uri)
    how = {
        "type": "DIRECT",
        "subtype": "TRANSFORMATION" if transformation else "IDENTITY",
        "description": transformation or None,
        "masking": False,
    }
    return {"namespace": namespace, "name": name, "field": column, "transformations": [how]}


def column_metrics(
    count: int | None = None, nulls: int | None = None, distinct: int | None = None
) -> dict[str, Any]:
    """Counts of a column's values, nulls and distinct values; None if unknown."""
    return {"count": count, "nullCount": nulls, "distinctCount": distinct, "quantiles": {}}


def output_statistics(rows: int, size: int, files: int) -> dict[str, int]:
    """Counts of an output's rows, bytes and files."""
    return {"rowCount": rows, "size": size, "fileCount": files}


def dataset_name(uri: str) -> tuple[str, str]:
    """A dataset's namespace and name (https://openlineage.io/docs/spec/naming)."""
    if "://" not in uri:
        return "file", uri
    parts = urlsplit(uri)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}", parts.path.lstrip("/")
