"""`docs/provider.md` is held to its word: each row names a test that is there."""

import ast
import functools
import re
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from nanobanana_pipeline.emulator.moods import MOODS
from nanobanana_pipeline.provider import outcomes
from nanobanana_pipeline.provider.modelslab.operations import Operations
from nanobanana_pipeline.provider.modelslab.request import ModelsLabRequest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "provider.md").read_text("utf-8")
PROOF = re.compile(r"`(?P<path>tests/[\w/]+\.py)::(?P<name>test_\w+)(?:\[(?P<case>[^\]]*)\])?`")
METHODS = {"details": "system_details"}
"""What a method of `Operations` calls, where it is not its own name."""
Row = dict[str, str]


def read_tables(page: str) -> list[list[Row]]:
    """Every table of a page, as rows by the names of their columns."""
    found: list[list[Row]] = []
    heads: list[str] | None = None
    for line in page.splitlines():
        if not line.startswith("|"):
            heads = None
            continue
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if heads is None:
            heads = cells
            found.append([])
        elif set(line) - set("|-: "):
            found[-1].append(dict(zip(heads, cells, strict=True)))
    return found


def faults_of(page: str) -> list[str]:
    """What is missing of a page's proofs."""
    faults: list[str] = []
    for table in read_tables(page):
        for row in table:
            shown = next(iter(row.values()))
            proofs = list(PROOF.finditer(row.get("proof", "")))
            if not proofs:
                faults.append(f"{shown} has no proof")
            if PROOF.sub("", row.get("proof", "")).strip(", "):
                faults.append(f"{shown} names something that is no test")
            faults += [
                f"{shown}: {proof[0]} is not there" for proof in proofs if not is_there(proof)
            ]
    return faults


def is_there(proof: re.Match[str]) -> bool:
    """Whether a module has this test, and writes down what the case is called by."""
    tests, constants = names_in(proof["path"])
    parts = proof["case"].split("-") if proof["case"] else []
    return proof["name"] in tests and set(parts) <= constants


@functools.cache
def names_in(path: str) -> tuple[frozenset[str], frozenset[str]]:
    """A module's tests, and its constants as pytest would write them."""
    if not (ROOT / path).is_file():
        return frozenset(), frozenset()
    tree = ast.parse((ROOT / path).read_text("utf-8"))
    tests = (node.name for node in tree.body if isinstance(node, ast.FunctionDef))
    constants = (str(node.value) for node in ast.walk(tree) if isinstance(node, ast.Constant))
    return frozenset(tests), frozenset(constants)


def first_cells(head: str) -> set[str]:
    """The names in the first column of the tables that begin with this head."""
    return {
        name
        for table in read_tables(PAGE)
        for row in table
        if next(iter(row)) == head
        for name in re.findall(r"`([^`]+)`", row[head])
    }


def test_every_row_names_a_test_that_is_there() -> None:
    assert all(read_tables(PAGE))
    assert faults_of(PAGE) == []


def test_every_field_of_a_request_has_a_row() -> None:
    assert {"key", "ref_image", *ModelsLabRequest.model_fields} - first_cells("field") == set()


def test_every_endpoint_of_the_client_has_a_row() -> None:
    generations = get_args(get_type_hints(ModelsLabRequest.endpoint.fget)["return"])  # type: ignore[attr-defined]
    operations = {METHODS.get(each, each) for each in vars(Operations) if not each.startswith("_")}
    assert {*generations, "fetch/{id}", *operations} == first_cells("endpoint")


def test_every_outcome_has_a_row() -> None:
    known: tuple[Any, ...] = (
        *get_args(outcomes.SubmitOutcome),
        *get_args(outcomes.FetchOutcome),
        *get_args(outcomes.OperationOutcome),
    )
    rows = [row["outcome"] for table in read_tables(PAGE) for row in table if "outcome" in row]
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert {each.__name__ for each in known} == named


def test_every_mood_of_the_emulator_has_a_row() -> None:
    assert set(MOODS) == first_cells("mood")


@pytest.mark.parametrize(
    ("proof", "fault"),
    [
        ("", "`a` has no proof"),
        ("to do", "`a` has no proof"),
        ("tests/test_provider_page.py::test_every_mood_of_the_emulator_has_a_row", "has no proof"),
        ("`tests/test_nowhere.py::test_a`", "is not there"),
        ("`tests/test_provider_page.py::test_nothing_like_it`", "is not there"),
        ("`tests/test_imports.py::test_the_domain_imports_without_dagster[case]`", "is not there"),
        ("`tests/test_imports.py::test_the_domain_imports_without_dagster` by hand", "no test"),
        ("`tests/test_imports.py::test_the_domain_imports_without_dagster`", None),
    ],
)
def test_what_is_missing_is_told(proof: str, fault: str | None) -> None:
    faults = faults_of(f"| field | proof |\n|---|---|\n| `a` | {proof} |\n")
    assert [fault in each for each in faults[:1] if fault] == ([True] if fault else [])
    assert bool(faults) == bool(fault)


def test_a_table_without_proofs_is_told() -> None:
    assert faults_of("| field | rule |\n|---|---|\n| `a` | b |\n") == ["`a` has no proof"]
