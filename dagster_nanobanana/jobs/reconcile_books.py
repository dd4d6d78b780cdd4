"""The job that compares the ledger with the vendor's own books. It buys nothing."""

from datetime import UTC, date, datetime, timedelta
from typing import Any

import dagster as dg
import pandas as pd
from pydantic import Field

from dagster_nanobanana.failures import plain_failures
from dagster_nanobanana.presentation.tables import TABLE_CHARACTERS, TABLE_ROWS, sample_table
from dagster_nanobanana.resources import NanobananaResource
from nanobanana_pipeline.audit.reconcile import Reconciliation, reconcile
from nanobanana_pipeline.errors import PlanError
from nanobanana_pipeline.wording import counted

__all__ = ["reconcile_books"]


class BooksConfig(dg.Config):
    """Which day is compared."""

    day: str | None = Field(
        default=None, description="A UTC day as YYYY-MM-DD. Left out: yesterday."
    )


@dg.op(
    description=(
        "Compares the ledger with the vendor's list of what it sold on a UTC day. **Buys "
        "nothing**; S3 is asked for each entry of the ledger. Needs NANOBANANA_VENDOR_BOOKS=assets."
    )
)
def reconcile_day(
    context: dg.OpExecutionContext, config: BooksConfig, nanobanana: NanobananaResource
) -> None:
    """Compare one day, and fail where the two differ."""
    with plain_failures():
        report = reconcile(nanobanana.store(), nanobanana.account(), _day(config.day))
    metadata: dict[str, Any] = {
        "day": str(report.day),
        "differences": sample_table(_differences(report), TABLE_ROWS, TABLE_CHARACTERS),
        "in both": report.sold_in_both,
        "in doubt": report.in_doubt,
        "being drawn": report.being_drawn,
        "sales read": report.sales_read,
        "ids not read": report.not_asked,
    }
    if not report.agrees:
        raise dg.Failure(
            f"{counted(len(report.differences), 'difference')}: see the table",
            metadata=metadata,
            allow_retries=False,
        )
    context.add_output_metadata(metadata)


@dg.job(
    description=(
        "Compare the ledger with the vendor's list of what it sold on a UTC day, as `nanobanana "
        "reconcile` does. Buys nothing; S3 is asked for each entry of the ledger."
    )
)
def reconcile_books() -> None:
    """One op: there is one account."""
    reconcile_day()


def _day(text: str | None) -> date:
    if text is None:
        return datetime.now(UTC).date() - timedelta(days=1)
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise PlanError(f"day {text!r} is no date: write it as 2026-08-31") from None


def _differences(report: Reconciliation) -> pd.DataFrame:
    return pd.DataFrame(
        [
            (each.kind.value, each.provider_id, each.request_key, each.text)
            for each in report.differences
        ],
        columns=["kind", "provider id", "request", "what differs, and what to do"],
    )
