"""Tables as Dagster shows them: it breaks no long word, and each text of a row is in the event."""

from typing import Any

import dagster as dg
import pandas as pd

from nanobanana_pipeline.audit.report import AuditReport
from nanobanana_pipeline.wording import shortened

__all__ = [
    "SAMPLE_ROWS",
    "TABLE_CHARACTERS",
    "TABLE_ROWS",
    "findings_of",
    "named_pictures",
    "sample_table",
]

SAMPLE_ROWS = 10
TABLE_ROWS, TABLE_CHARACTERS = 100, 1000
"""Of a table that somebody opened to read it all."""
MAX_CELL_CHARACTERS = 120
NAME_DIGITS = 12


def sample_table(
    frame: pd.DataFrame, rows: int = SAMPLE_ROWS, longest: int = MAX_CELL_CHARACTERS
) -> dg.TableMetadataValue:
    """The first rows of a table, texts in one line each: prompts of 60 characters at most."""
    first = frame.head(rows)
    if "prompt" in first:
        first = first.assign(prompt=first["prompt"].map(shortened, na_action="ignore"))
    records = [
        dg.TableRecord({str(name): _shown(value, longest) for name, value in row.items()})
        for row in first.to_dict("records")
    ]
    schema = dg.TableSchema([dg.TableColumn(str(name)) for name in frame.columns])
    return dg.MetadataValue.table(records, schema=schema)


def named_pictures(frame: pd.DataFrame) -> tuple[pd.DataFrame, dg.JsonMetadataValue]:
    """Name pictures by the first digits of their SHA-256; whole addresses would stretch the page.

    Columns such as ``image_uri``, null where there is no picture, become columns such as ``image``.
    The addresses come by these names, which Dagster shows behind a link.
    """
    ends = {str(name): str(name)[:-4] for name in frame if str(name).endswith("_uri")}
    addresses: dict[str, str] = {}
    for column in ends:
        known = frame[column].dropna()
        addresses |= {str(uri).rpartition("/")[2][:NAME_DIGITS]: str(uri) for uri in known}
    names = {uri: name for name, uri in addresses.items()}
    short = {column: frame[column].map(names) for column in ends}
    return frame.assign(**short).rename(columns=ends), dg.MetadataValue.json(addresses)


def findings_of(report: AuditReport) -> pd.DataFrame:
    """All that an audit lists, each with its remedy."""
    return pd.DataFrame(
        [(each.kind.value, each.key, each.text) for each in report.findings],
        columns=["kind", "key", "what is wrong, and what to do"],
    )


def _shown(value: Any, longest: int) -> str | int | float | bool | None:  # noqa: ANN401 - any cell
    if value is None or value is pd.NA or (isinstance(value, float) and pd.isna(value)):
        return None
    if isinstance(value, bool | int | float):
        return value
    return shortened(str(value), longest)
