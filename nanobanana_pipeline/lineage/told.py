"""What a run can tell of itself, in this project's words; `facets` has OpenLineage's."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Check", "Dataset", "Figures", "Origin", "Told"]


@dataclass(frozen=True)
class Origin:
    """A column that another one is made of.

    Attributes:
        uri: its dataset's.
        column: its name.
        how: what is done to it; "" where it is taken over as it is.
    """

    uri: str
    column: str
    how: str = ""


@dataclass(frozen=True)
class Check:
    """Something that must hold of a dataset, and whether it does."""

    name: str
    passed: bool
    expected: str
    actual: str
    column: str | None = None


@dataclass(frozen=True)
class Figures:
    """Figures of a column, as OpenLineage names them; None if unknown.

    Attributes:
        count: values that are there.
        nullCount: values that are not.
        distinctCount: different ones.
    """

    count: int | None = None
    nullCount: int | None = None  # noqa: N815 - OpenLineage's name
    distinctCount: int | None = None  # noqa: N815


@dataclass(frozen=True)
class Dataset:
    """A table that a run reads or writes.

    Attributes:
        uri: ``s3://bucket/key``, or the path of a local file.
        version: which of its versions; None if unknown.
        columns: each column's type and description.
        origins: what columns are made of.
        metrics: figures of some columns.
        rows, size, files: how many there are, and their bytes; None if unknown.
        checks: what was looked at.
    """

    uri: str
    version: str | None = None
    columns: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    origins: Mapping[str, tuple[Origin, ...]] = field(default_factory=dict)
    metrics: Mapping[str, Figures] = field(default_factory=dict)
    rows: int | None = None
    size: int | None = None
    files: int | None = None
    checks: tuple[Check, ...] = ()


@dataclass(frozen=True)
class Told:
    """What is known of a run at one moment.

    Attributes:
        inputs, outputs: what it reads and writes.
        facet: fields of this project's own facet; those that are None are left out.
        failure: why the run counts as failed though nothing was raised; None if it does not.
        source: the code that it ran beside this package's: language and text.
    """

    inputs: tuple[Dataset, ...] = ()
    outputs: tuple[Dataset, ...] = ()
    facet: Mapping[str, Any] = field(default_factory=dict)
    failure: str | None = None
    source: tuple[str, str] | None = None
