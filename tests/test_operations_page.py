"""`docs/operations.md` is held to its word: tests, commands and variables that it names exist."""

import re
import shlex

import pytest
from typer.testing import CliRunner

from nanobanana_pipeline.cli import app
from nanobanana_pipeline.generation.engine.metrics import COUNTERS, DURATIONS, GAUGES
from nanobanana_pipeline.settings import Settings
from tests.test_provider_page import ROOT, faults_of, read_tables

PAGE = (ROOT / "docs" / "operations.md").read_text("utf-8")
CALLS = re.findall(r"(?:^|`)(nanobanana [^`#\n]+)", PAGE, re.MULTILINE)


def test_every_row_names_a_test_that_is_there() -> None:
    assert all(read_tables(PAGE))
    assert faults_of(PAGE) == []


@pytest.mark.parametrize("call", sorted(set(CALLS)))
def test_every_command_has_its_options(call: str) -> None:
    _, *words = shlex.split(call)
    options = [word for word in words if word.startswith("--")]
    names = words[: 2 if words[0] in {"bucket", "doubts", "webhooks"} else 1]
    asked = CliRunner().invoke(app, [*names, "--help"], env={"COLUMNS": "300"})
    assert asked.exit_code == 0, asked.output
    shown = re.sub(r"\x1b\[[0-9;]*m", "", asked.output)
    assert [option for option in options if option not in shown] == []


def test_every_variable_is_a_setting() -> None:
    known = {f"NANOBANANA_{name.upper()}" for name in Settings.model_fields}
    assert set(re.findall(r"NANOBANANA_[A-Z_]+", PAGE)) - known == set()


def test_every_metric_has_a_row_and_every_link_leads_somewhere() -> None:
    told = {*COUNTERS, *GAUGES, *DURATIONS}
    assert set(re.findall(r"`(nanobanana\.[a-z_.]+)`", PAGE)) - {"nanobanana.json"} == told
    headings = {
        re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^## (.+)$", PAGE, re.MULTILINE)
    }
    assert set(re.findall(r"\]\(#([\w-]+)\)", PAGE)) <= headings
    files = re.findall(r"\]\(([\w./-]+)(?:#[\w-]+)?\)", PAGE)
    assert [name for name in files if not (ROOT / "docs" / name).exists()] == []
