"""Tables as Dagster shows them."""

from collections.abc import Mapping
from typing import Any

import dagster as dg
import pandas as pd

__all__ = ["column_schema", "sample_table"]

SAMPLE_ROWS = 10
MAX_CELL_CHARACTERS = 120


def sample_table(
    frame: pd.DataFrame, rows: int = SAMPLE_ROWS, longest: int = MAX_CELL_CHARACTERS
) -> dg.TableMetadataValue:
    """The first rows of a table, texts cut at `longest` characters, for the asset's page."""
    records = [
        dg.TableRecord({str(name): _shown(value, longest) for name, value in row.items()})
        for row in frame.head(rows).to_dict("records")
    ]
    schema = dg.TableSchema([dg.TableColumn(str(name)) for name in frame.columns])
    return dg.MetadataValue.table(records, schema=schema)


def column_schema(columns: Mapping[str, tuple[str, str]]) -> dg.TableSchema:
    """A table's columns: name → (type, description)."""
    return dg.TableSchema(
        [
            dg.TableColumn(name, kind, description=description)
            for name, (kind, description) in columns.items()
        ]
    )


def _shown(value: Any, longest: int) -> str | int | float | bool | None:  # noqa: ANN401 - any cell
    if value is None or value is pd.NA or (isinstance(value, float) and pd.isna(value)):
        return None
    if isinstance(value, bool | int | float):
        return value
    text = str(value)
    return text if len(text) <= longest else f"{text[:longest]}…"
