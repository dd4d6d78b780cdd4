"""Translates `RunFacts` to OpenLineage's events and facets (https://openlineage.io/spec, 2-0-2).

Only `recorder` imports this, where it writes an event: OpenLineage's client takes 0.2 s to import.
"""

import os
import uuid
from collections.abc import Callable, Mapping
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
from nanobanana_pipeline.lineage.openlineage.facts import (
    Dataset,
    EventType,
    Parent,
    RunFacts,
    dataset_name,
)

__all__ = ["as_line", "run_event", "send"]

PACKAGE: Final = "nanobanana-pipeline"
PACKAGE_VERSION: Final = installed_version(PACKAGE)
PRODUCER: Final = f"urn:{PACKAGE}:{PACKAGE_VERSION}"
FACET: Final = "nanobanana_run"
"""The name of this project's own run facet; ``NanobananaRunFacet.json`` is its schema."""
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

DATASET_FACETS: Final = {
    "version": facet.dataset_version_dataset.DatasetVersionDatasetFacet,
    "schema": facet.schema_dataset.SchemaDatasetFacet,
    "columnLineage": facet.column_lineage_dataset.ColumnLineageDatasetFacet,
}
ASSERTIONS: Final = facet.data_quality_assertions_dataset.DataQualityAssertionsDatasetFacet
INPUT_FACETS: Final = {
    "dataQualityMetrics": (
        facet.data_quality_metrics_input_dataset.DataQualityMetricsInputDatasetFacet
    ),
    "dataQualityAssertions": ASSERTIONS,
}
OUTPUT_QUALITY_FACETS: Final = {
    "dataQualityMetrics": facet.data_quality_metrics_dataset.DataQualityMetricsDatasetFacet,
    # OpenLineage has assertions of inputs only, and accepts any facet of an output.
    "dataQualityAssertions": ASSERTIONS,
}
OUTPUT_FACETS: Final = {
    "outputStatistics": facet.output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet
}


class NanobananaRunFacet(facet.RunFacet):
    """Facts of a run for which OpenLineage has no facet."""

    @staticmethod
    def _get_schema() -> str:
        return SCHEMA_URL


def run_event(
    event_type: EventType,
    when: datetime,
    job: str,
    run_id: str,
    facts: RunFacts,
    parent: Parent | None = None,
    error: BaseException | str | None = None,
) -> event_v2.RunEvent:
    """An event of a run, by its id in the bucket; `when` has a time zone.

    Of a foreign exception only the class is written: its text may quote addresses and what was
    sent there.
    """
    return event_v2.RunEvent(
        eventType=event_v2.RunState(event_type),
        eventTime=when.isoformat(),
        run=event_v2.Run(
            # OpenLineage's run ids are UUIDs; ours need not be.
            str(uuid.uuid5(RUN_IDS, f"{job}/{run_id}")),
            _run_facets(run_id, facts, parent, error),
        ),
        job=event_v2.Job(_job_namespace(), job, _job_facets(job, facts)),
        inputs=[_input(dataset) for dataset in facts.inputs],
        outputs=[_output(dataset) for dataset in facts.outputs],
        producer=PRODUCER,
    )


def _job_namespace() -> str:
    """The namespace of all jobs: ``OPENLINEAGE_NAMESPACE``, else ``nanobanana``."""
    return os.environ.get("OPENLINEAGE_NAMESPACE") or NAMESPACE


def as_line(event: event_v2.RunEvent) -> str:
    """An event as one line of JSON."""
    return Serde.to_json(event)


def send(event: event_v2.RunEvent, seconds: float) -> None:
    """Send an event where OpenLineage's own variables say.

    An asynchronous transport may take so many seconds.

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
    run_id: str, facts: RunFacts, parent: Parent | None, error: BaseException | str | None
) -> dict[str, facet.RunFacet]:
    fields = {name: value for name, value in facts.facet.items() if value is not None}
    own: Any = NanobananaRunFacet(producer=PRODUCER)
    facets: dict[str, facet.RunFacet] = {
        FACET: own.with_additional_properties(runId=run_id, codeVersion=PACKAGE_VERSION, **fields),
        "processing_engine": facet.processing_engine_run.ProcessingEngineRunFacet(
            version=parent.version if parent else PACKAGE_VERSION,
            name=parent.engine if parent else PACKAGE,
            openlineageAdapterVersion=PACKAGE_VERSION,
            producer=PRODUCER,
        ),
    }
    if parent is not None:
        facets["parent"] = facet.parent_run.ParentRunFacet(
            run=facet.parent_run.Run(parent.run_id),
            job=facet.parent_run.Job(_job_namespace(), parent.job),
            producer=PRODUCER,
        )
    if error is not None:
        is_ours = isinstance(error, str | NanobananaError)
        facets["errorMessage"] = facet.error_message_run.ErrorMessageRunFacet(
            message=str(error) if is_ours else type(error).__name__,
            programmingLanguage="python",
            producer=PRODUCER,
        )
    return facets


def _job_facets(job: str, facts: RunFacts) -> dict[str, facet.JobFacet]:
    description = DESCRIPTIONS.get(job, "Publishes what a recipe selects as an immutable release.")
    facets: dict[str, facet.JobFacet] = {
        "jobType": facet.job_type_job.JobTypeJobFacet(
            processingType="BATCH", integration="NANOBANANA", jobType="JOB", producer=PRODUCER
        ),
        "documentation": facet.documentation_job.DocumentationJobFacet(
            description=description, producer=PRODUCER
        ),
    }
    checkout = Path(nanobanana_pipeline.__file__).parents[1]
    location = _source_location(checkout)
    if location is not None:
        facets["sourceCodeLocation"] = location
    if facts.source is not None:
        language, text = facts.source
        facets["sourceCode"] = facet.source_code_job.SourceCodeJobFacet(
            language=language, sourceCode=text, producer=PRODUCER
        )
    return facets


@cache
def _source_location(
    checkout: Path,
) -> facet.source_code_location_job.SourceCodeLocationJobFacet | None:
    """Repository and commit of this package; None outside a checkout, or without a remote origin.

    An origin that is a local path means nothing on other machines.
    """
    git = checkout / ".git"
    url = get_git_repo_url(git_dir=git) if git.is_dir() else None
    # Git takes for a path what has no scheme, and no colon before the first slash.
    if url is None or ("://" not in url and ":" not in url.partition("/")[0]):
        return None
    return facet.source_code_location_job.SourceCodeLocationJobFacet(
        type="git",
        url=_without_secrets(url),
        repoUrl=_without_secrets(url),
        path="nanobanana_pipeline",
        version=get_git_version(git),
        producer=PRODUCER,
    )


def _without_secrets(url: str) -> str:
    """A repository's address without user, password and query; ``git@host:path`` as a URL."""
    if "://" not in url:
        host, _, path = url.rpartition("@")[2].partition(":")
        return f"ssh://{host}/{path}"
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _input(dataset: Dataset) -> event_v2.InputDataset:
    return event_v2.InputDataset(
        *dataset_name(dataset.uri),
        facets=_facets(dataset, DATASET_FACETS),
        inputFacets=_facets(dataset, INPUT_FACETS),
    )


def _output(dataset: Dataset) -> event_v2.OutputDataset:
    return event_v2.OutputDataset(
        *dataset_name(dataset.uri),
        facets=_facets(dataset, DATASET_FACETS | OUTPUT_QUALITY_FACETS),
        outputFacets=_facets(dataset, OUTPUT_FACETS),
    )


def _facets(dataset: Dataset, classes: Mapping[str, Callable[..., Any]]) -> dict[str, Any]:
    return {
        name: classes[name](**fields, producer=PRODUCER)
        for name, fields in dataset.facets.items()
        if name in classes
    }
