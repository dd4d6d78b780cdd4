"""What runs tell, as OpenLineage's events and facets (https://openlineage.io/spec, 2-0-2).

Imported where an event is written, and nowhere else: OpenLineage's client takes 0.2 s to import.
"""

import os
import uuid
from collections.abc import Iterator
from datetime import datetime
from functools import cache
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

from openlineage.client import OpenLineageClient, event_v2
from openlineage.client import facet_v2 as facet
from openlineage.client.git import get_git_repo_url, get_git_version
from openlineage.client.serde import Serde

import nanobanana_pipeline
from nanobanana_pipeline.errors import NanobananaError
from nanobanana_pipeline.lineage.events import Parent, RunState
from nanobanana_pipeline.lineage.told import Dataset, Origin, Told

__all__ = ["FACET", "SCHEMA_URL", "as_line", "job_namespace", "open_run_id", "run_event", "send"]

PACKAGE: Final = "nanobanana-pipeline"
FACET: Final = "nanobanana_run"
"""The name of this project's own run facet; ``NanobananaRunFacet.json`` beside this says it all."""
SCHEMA_URL: Final = (
    "urn:nanobanana-pipeline:facets:1-0-0:NanobananaRunFacet.json#/$defs/NanobananaRunFacet"
)
NAMESPACE: Final = "nanobanana"
RUN_IDS: Final = uuid.uuid5(uuid.NAMESPACE_URL, "urn:nanobanana-pipeline:runs")
DESCRIPTIONS: Final = {
    "prompt_set": "Checks a prompt table and keeps it as a snapshot under its fingerprint.",
    "generated_images": "Buys what is missing of a prompt set under a seed, and stores it.",
    "image_features": "Measures the pictures of a partition.",
    "resolve_doubts": "Settles requests that may have been paid for and are not here.",
    "retry_failed": "Launches partitions again for what they lack, within a budget.",
    "rescue_run": "Brings what a dead run has bought and not stored.",
    "top_up_dataset": "Buys further candidates for prompts of a dataset that miss pictures.",
}


class NanobananaRunFacet(facet.RunFacet):
    """What this project knows of a run beyond OpenLineage's own facets."""

    @staticmethod
    def _get_schema() -> str:
        return SCHEMA_URL


def run_event(
    state: RunState,
    when: datetime,
    job: str,
    run_id: str,
    told: Told,
    parent: Parent | None = None,
    error: BaseException | str | None = None,
) -> event_v2.RunEvent:
    """An event of a run.

    Args:
        state: of the run.
        when: with a time zone.
        job: as `recorded` has it.
        run_id: as the bucket knows the run.
        told: what it reads, writes and came to.
        parent: whose step it is.
        error: why it failed or was ended. Of errors that are not ours only the kind is told: their
            texts may quote addresses and what was sent there.
    """
    return event_v2.RunEvent(
        eventType=event_v2.RunState(state),
        eventTime=when.isoformat(),
        run=event_v2.Run(open_run_id(job, run_id), _run_facets(run_id, told, parent, error)),
        job=event_v2.Job(job_namespace(), job, _job_facets(job, told)),
        inputs=[_input(dataset) for dataset in told.inputs],
        outputs=[_output(dataset) for dataset in told.outputs],
        producer=_producer(),
    )


def open_run_id(job: str, run_id: str) -> str:
    """OpenLineage's id of a job's run: a UUID of version 5, as ours need not be UUIDs."""
    return str(uuid.uuid5(RUN_IDS, f"{job}/{run_id}"))


def job_namespace() -> str:
    """The namespace of all jobs: ``OPENLINEAGE_NAMESPACE``, else ``nanobanana``."""
    return os.environ.get("OPENLINEAGE_NAMESPACE") or NAMESPACE


def as_line(event: event_v2.RunEvent) -> str:
    """An event as one line of JSON."""
    return Serde.to_json(event)


def send(event: event_v2.RunEvent, seconds: float) -> None:
    """Send an event where OpenLineage's own variables say.

    Args:
        event: of `run_event`.
        seconds: how long an asynchronous transport may take to send it.

    Raises:
        Exception: whatever the transport raises.
    """
    # By itself the client adds the address of the working directory's repository, which may hold
    # a token, and environment variables.
    facets = {"source_code_location": {"disabled": True}, "environment_variables": []}
    client = OpenLineageClient(config={"facets": facets})
    client.emit(event)
    client.close(seconds)


def _run_facets(
    run_id: str, told: Told, parent: Parent | None, error: BaseException | str | None
) -> dict[str, facet.RunFacet]:
    fields = {name: value for name, value in told.facet.items() if value is not None}
    code = installed_version(PACKAGE)
    found: dict[str, facet.RunFacet] = {
        FACET: _ours(runId=run_id, codeVersion=code, **fields),
        "processing_engine": facet.processing_engine_run.ProcessingEngineRunFacet(
            version=parent.version if parent else code,
            name=parent.engine if parent else PACKAGE,
            openlineageAdapterVersion=code,
            producer=_producer(),
        ),
    }
    if parent is not None:
        found["parent"] = facet.parent_run.ParentRunFacet(
            run=facet.parent_run.Run(parent.run_id),
            job=facet.parent_run.Job(job_namespace(), parent.job),
            producer=_producer(),
        )
    if error is not None:
        told_in_full = isinstance(error, str | NanobananaError)
        found["errorMessage"] = facet.error_message_run.ErrorMessageRunFacet(
            message=str(error) if told_in_full else type(error).__name__,
            programmingLanguage="python",
            producer=_producer(),
        )
    return found


def _ours(**fields: Any) -> facet.RunFacet:  # noqa: ANN401 - as the schema says
    made: Any = NanobananaRunFacet(producer=_producer()).with_additional_properties(**fields)
    ours: facet.RunFacet = made
    return ours


def _job_facets(job: str, told: Told) -> dict[str, facet.JobFacet]:
    words = DESCRIPTIONS.get(job, "Publishes what a recipe selects as an immutable release.")
    found: dict[str, facet.JobFacet] = {
        "jobType": facet.job_type_job.JobTypeJobFacet(
            processingType="BATCH",
            integration="NANOBANANA",
            jobType="JOB",
            producer=_producer(),
        ),
        "documentation": facet.documentation_job.DocumentationJobFacet(
            description=words, producer=_producer()
        ),
    }
    checkout = Path(nanobanana_pipeline.__file__).parents[1]
    location = _source_location(checkout)
    if location is not None:
        found["sourceCodeLocation"] = location
    if told.source is not None:
        language, text = told.source
        found["sourceCode"] = facet.source_code_job.SourceCodeJobFacet(
            language=language, sourceCode=text, producer=_producer()
        )
    return found


@cache
def _source_location(
    checkout: Path,
) -> facet.source_code_location_job.SourceCodeLocationJobFacet | None:
    """Where this package's code lies, if it runs from a checkout of a repository with an origin.

    A folder of this machine is none: nobody else could look there.
    """
    git = checkout / ".git"
    url = get_git_repo_url(git_dir=git) if git.is_dir() else None
    if url is None or _is_path(url):
        return None
    return facet.source_code_location_job.SourceCodeLocationJobFacet(
        type="git",
        url=_without_secrets(url),
        repoUrl=_without_secrets(url),
        path="nanobanana_pipeline",
        version=get_git_version(git),
        producer=_producer(),
    )


def _is_path(url: str) -> bool:
    """Whether git takes it for a folder: it has no scheme, and no colon before the first slash."""
    return "://" not in url and ":" not in url.partition("/")[0]


def _without_secrets(url: str) -> str:
    """A repository's address without user, password and query; ``git@host:path`` as a URL."""
    if "://" not in url:
        host, _, path = url.rpartition("@")[2].partition(":")
        return f"ssh://{host}/{path}"
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _input(dataset: Dataset) -> event_v2.InputDataset:
    namespace, name = _named(dataset.uri)
    found: dict[str, facet.InputDatasetFacet] = {}
    if dataset.checks:
        found["dataQualityAssertions"] = _assertions(dataset)
    if dataset.metrics:
        metrics = facet.data_quality_metrics_input_dataset
        columns: Any = {
            name: metrics.ColumnMetrics(**vars(figures))
            for name, figures in dataset.metrics.items()
        }
        found["dataQualityMetrics"] = metrics.DataQualityMetricsInputDatasetFacet(
            columnMetrics=columns, rowCount=dataset.rows, producer=_producer()
        )
    return event_v2.InputDataset(
        namespace, name, facets=_dataset_facets(dataset), inputFacets=found
    )


def _output(dataset: Dataset) -> event_v2.OutputDataset:
    namespace, name = _named(dataset.uri)
    facets = _dataset_facets(dataset)
    if dataset.checks:
        # OpenLineage knows assertions of inputs only; of an output it takes them as a facet more.
        facets["dataQualityAssertions"] = _assertions(dataset)  # type: ignore[assignment]
    if dataset.metrics:
        metrics = facet.data_quality_metrics_dataset
        columns: Any = {
            name: metrics.ColumnMetrics(**vars(figures))
            for name, figures in dataset.metrics.items()
        }
        facets["dataQualityMetrics"] = metrics.DataQualityMetricsDatasetFacet(
            columnMetrics=columns, rowCount=dataset.rows, producer=_producer()
        )
    found: dict[str, facet.OutputDatasetFacet] = {}
    if dataset.rows is not None:
        statistics = facet.output_statistics_output_dataset
        found["outputStatistics"] = statistics.OutputStatisticsOutputDatasetFacet(
            rowCount=dataset.rows,
            size=dataset.size,
            fileCount=dataset.files,
            producer=_producer(),
        )
    return event_v2.OutputDataset(namespace, name, facets=facets, outputFacets=found)


def _dataset_facets(dataset: Dataset) -> dict[str, facet.DatasetFacet]:
    found: dict[str, facet.DatasetFacet] = {}
    if dataset.version is not None:
        found["version"] = facet.dataset_version_dataset.DatasetVersionDatasetFacet(
            datasetVersion=dataset.version, producer=_producer()
        )
    if dataset.columns:
        fields = [
            facet.schema_dataset.SchemaDatasetFacetFields(name, kind, words or None)
            for name, (kind, words) in dataset.columns.items()
        ]
        found["schema"] = facet.schema_dataset.SchemaDatasetFacet(
            fields=fields, producer=_producer()
        )
    if dataset.origins:
        lineage = facet.column_lineage_dataset
        found["columnLineage"] = lineage.ColumnLineageDatasetFacet(
            fields={
                name: lineage.Fields(list(_origins(origins)))
                for name, origins in dataset.origins.items()
            },
            producer=_producer(),
        )
    return found


def _origins(
    origins: tuple[Origin, ...],
) -> Iterator[facet.column_lineage_dataset.InputField]:
    lineage = facet.column_lineage_dataset
    for origin in origins:
        how = lineage.Transformation(
            type="DIRECT",
            subtype="TRANSFORMATION" if origin.how else "IDENTITY",
            description=origin.how or None,
            masking=False,
        )
        yield lineage.InputField(*_named(origin.uri), origin.column, [how])


def _assertions(
    dataset: Dataset,
) -> facet.data_quality_assertions_dataset.DataQualityAssertionsDatasetFacet:
    quality = facet.data_quality_assertions_dataset
    return quality.DataQualityAssertionsDatasetFacet(
        assertions=[
            quality.Assertion(
                assertion=check.name,
                success=check.passed,
                column=check.column,
                expected=check.expected,
                actual=check.actual,
            )
            for check in dataset.checks
        ],
        producer=_producer(),
    )


def _named(uri: str) -> tuple[str, str]:
    """A dataset's namespace and name (https://openlineage.io/docs/spec/naming)."""
    if "://" not in uri:
        return "file", uri
    parts = urlsplit(uri)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}", parts.path.lstrip("/")


@cache
def _producer() -> str:
    return f"urn:{PACKAGE}:{installed_version(PACKAGE)}"
