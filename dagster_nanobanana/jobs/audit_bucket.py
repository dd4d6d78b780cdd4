"""The job that audits the whole bucket. It buys nothing."""

from typing import Any

import dagster as dg
from pydantic import Field

from dagster_nanobanana.failures import plain_failures
from dagster_nanobanana.presentation.tables import (
    TABLE_CHARACTERS,
    TABLE_ROWS,
    findings_of,
    sample_table,
)
from dagster_nanobanana.resources import NanobananaResource
from nanobanana_pipeline.audit import audit as audit_bucket
from nanobanana_pipeline.wording import counted

__all__ = ["audit_bucket_job"]


class AuditConfig(dg.Config):
    """How closely to look."""

    sample: int = Field(
        default=1000, ge=0, description="How many pictures are read whole and hashed."
    )


@dg.op(
    description=(
        "Looks whether ledger, pictures, manifests, features, runs and budgets agree, and reads a "
        "sample of the pictures. **Buys nothing**; S3 is asked for each entry of the ledger."
    )
)
def audit_whole_bucket(
    context: dg.OpExecutionContext, config: AuditConfig, nanobanana: NanobananaResource
) -> None:
    """Audit everything, and fail where something disagrees."""
    with plain_failures():
        report = audit_bucket(nanobanana.store(), sample=config.sample)
    metadata: dict[str, Any] = {
        "findings": sample_table(findings_of(report), TABLE_ROWS, TABLE_CHARACTERS),
        "ledger entries": report.states.total(),
        "images": report.images,
        "images read": report.images_read,
    }
    if not report.agrees:
        raise dg.Failure(
            f"{counted(len(report.findings), 'finding')}: see the table; each says what to do",
            metadata=metadata,
            allow_retries=False,
        )
    context.add_output_metadata(metadata)


@dg.job(
    name="audit_bucket",
    description=(
        "Look whether all that lies in the bucket agrees, as `nanobanana audit` does. Buys "
        "nothing; S3 is asked for each entry of the ledger."
    ),
)
def audit_bucket_job() -> None:
    """One op: there is one bucket."""
    audit_whole_bucket()
