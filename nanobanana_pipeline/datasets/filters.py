"""A recipe's filters, held against the columns that there are."""

from collections.abc import Callable, Iterator
from typing import Any, Final, cast

import numpy as np
import pandas as pd
from pandas.api.types import is_bool_dtype, is_numeric_dtype

from nanobanana_pipeline.datasets.recipe import Filter, Recipe, near_matches

__all__ = ["faults_of_filters", "why_not"]

ValueKind = tuple[str, Callable[[object], bool]]
TRUTHS: Final[ValueKind] = ("true or false", lambda value: isinstance(value, bool))
NUMBERS: Final[ValueKind] = (
    "numbers",
    lambda value: isinstance(value, int | float) and not isinstance(value, bool),
)
TEXTS: Final[ValueKind] = ("text", lambda value: isinstance(value, str))


def faults_of_filters(recipe: Recipe, rows: pd.DataFrame) -> list[str]:
    """Filters that name no column of `rows`, or compare it with what cannot stand there.

    Gives a sentence each, with its place in the recipe.
    """
    faults = []
    for column, rule in recipe.filters.items():
        if column in rows.columns:
            faults += [
                f"{recipe.where('filters', column, name)}: {fault}"
                for name, fault in _misfits(rows[column], rule)
            ]
        else:
            hint = near_matches(column, map(str, rows.columns))
            faults.append(f"{recipe.where('filters', column)}: there is no such column; {hint}")
    return faults


def why_not(values: pd.Series, rule: Filter) -> pd.Series:
    """Why values do not pass a filter: a text each (str), null for those that do.

    The first part of the rule that does not hold is the reason. The column is one that
    `faults_of_filters` finds fit.
    """
    reasons = pd.Series(pd.NA, index=values.index, dtype="str")
    for passes, fault in _tests(values, rule):
        bad = values[~passes.fillna(value=False).astype(bool) & reasons.isna()]
        reasons[bad.index] = [
            f"{values.name} {'has no value' if pd.isna(value) else fault.format(_text(value))}"
            for value in bad
        ]
    return reasons


def _tests(values: pd.Series, rule: Filter) -> Iterator[tuple[pd.Series, str]]:
    """Each test that a filter makes: what passes it, and what is said of the others."""
    if rule.min is not None:
        yield values >= rule.min, f"{{}} is less than {_safe(rule.min)}"
    if rule.max is not None:
        yield values <= rule.max, f"{{}} is more than {_safe(rule.max)}"
    if rule.equals is not None:
        yield values == rule.equals, f"{{}} is not {_safe(rule.equals)}"
    if rule.in_ is not None:
        yield _among(values, rule.in_), f"{{}} is not among {_safe(*rule.in_)}"
    if rule.not_in is not None:
        yield ~_among(values, rule.not_in), "is {}, which not_in excludes"
    if rule.contains is not None:
        found = values.astype("str").str.contains(rule.contains, regex=False)
        yield cast("pd.Series", found), f"{{}} does not contain {_safe(rule.contains)}"


def _among(values: pd.Series, choices: tuple[Any, ...]) -> pd.Series:
    found = pd.Series(data=False, index=values.index)
    for choice in choices:
        same = values.isna() if choice is None else (values == choice)
        found |= same.fillna(value=False).astype(bool)
    return found


def _misfits(values: pd.Series, rule: Filter) -> Iterator[tuple[str, str]]:
    what, fits = kind = _kind(values)
    for name in ("min", "max"):
        if getattr(rule, name) is not None and kind is TRUTHS:
            yield name, f"the column holds {what}; use equals"
    for name, given in (
        ("min", [rule.min]),
        ("max", [rule.max]),
        ("equals", [rule.equals]),
        ("in", rule.in_ or []),
        ("not_in", rule.not_in or []),
    ):
        for value in given:
            if value is not None and not fits(value):
                yield name, f"the column holds {what}, and {value!r} is none"
    if rule.contains is not None and kind is not TEXTS:
        yield "contains", f"the column holds {what}, not text"


def _kind(values: pd.Series) -> ValueKind:
    if is_bool_dtype(values.dtype):
        return TRUTHS
    return NUMBERS if is_numeric_dtype(values.dtype) else TEXTS


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float | np.floating) else str(value)


def _safe(*values: object) -> str:
    """Values for a text that `str.format` will read."""
    shown = ", ".join("null" if value is None else _text(value) for value in values)
    return shown.replace("{", "{{").replace("}", "}}")
