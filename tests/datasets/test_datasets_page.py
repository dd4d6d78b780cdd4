"""`docs/datasets.md` is held to its word: recipes, keys, defaults, commands, code and proofs."""

import re
import shlex
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel
from typer.testing import CliRunner

from nanobanana_pipeline.cli import app
from nanobanana_pipeline.datasets.layouts import Layout
from nanobanana_pipeline.datasets.recipe import Filter, PerPrompt, Recipe, read_recipe
from nanobanana_pipeline.datasets.release import Format
from tests.datasets.conftest import Published
from tests.test_provider_page import ROOT, faults_of, read_tables

PAGE = (ROOT / "docs" / "datasets.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
RECIPES = [text for kind, text in BLOCKS if kind == "yaml"]
PROGRAMS = [text for kind, text in BLOCKS if kind == "python"]
CALLS = re.findall(r"^(nanobanana [^#\n]+)", PAGE, re.MULTILINE)
NEEDED = {"name": "a", "description": "d", "licence": "l", "prompt_sets": ["a"]}
TABLES = read_tables(PAGE)
KEYS = next(table for table in TABLES if "default" in table[0])


def paths_of(model: type[BaseModel], begins: str = "") -> set[str]:
    """Every key of a recipe, as the page calls it."""
    found = set()
    for name, field in model.model_fields.items():
        path = begins + (field.alias or name)
        parts = (field.annotation, *get_args(field.annotation))
        inner = next((p for p in parts if isinstance(p, type) and issubclass(p, BaseModel)), None)
        if path == "filters":
            found |= {path, *paths_of(Filter, "filters.*.")}
        elif inner is None:
            found.add(path)
        else:
            found |= paths_of(inner, f"{path}.") | ({path} if inner is PerPrompt else set())
    return found


def code(cell: str) -> str:
    return cell.strip("`")


@pytest.mark.parametrize("text", RECIPES)
def test_every_recipe_of_the_page_is_sound(text: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({**NEEDED, **yaml.safe_load(text)}))
    read_recipe(path)


def test_every_key_is_there_with_its_default() -> None:
    assert {code(row["key"]) for row in KEYS} == paths_of(Recipe)
    defaults: Any = Recipe.model_validate(NEEDED).model_dump(mode="json", by_alias=True)
    for row in KEYS:
        path, said = code(row["key"]).split("."), row["default"]
        if path[0] in NEEDED or (path[0] == "per_prompt" and len(path) > 1):
            assert said == "needed"
        elif "*" in path:
            assert said == "not given"
        else:
            value = defaults
            for name in path:
                value = value[name]
            assert yaml.safe_load(code(said)) == value


def test_every_format_and_layout_is_named() -> None:
    layouts = next(table for table in TABLES if "`--as`" in table[0])
    assert [code(row["`--as`"]) for row in layouts] == list(Layout)
    (formats,) = (row["meaning"] for row in KEYS if code(row["key"]) == "formats")
    assert [name for name in Format if f"`{name}`" not in formats] == []


def test_every_row_with_a_proof_names_a_test_that_is_there() -> None:
    proofs = [line for line in PAGE.splitlines() if "::test_" in line]
    assert len(proofs) > 10
    with_proofs = "\n\n".join(
        f"| what | proof |\n|---|---|\n| {line.split('|')[1]} | {line.split('|')[-2]} |"
        for line in proofs
    )
    assert faults_of(with_proofs) == []


@pytest.mark.parametrize("call", sorted(set(CALLS)))
def test_every_command_has_its_options(call: str) -> None:
    _, *words = shlex.split(call)
    asked = CliRunner().invoke(app, [*words[:2], "--help"], env={"COLUMNS": "300"})
    assert asked.exit_code == 0, asked.output
    shown = re.sub(r"\x1b\[[0-9;]*m", "", asked.output)
    assert [word for word in words if word.startswith("--") and word not in shown] == []


@pytest.mark.filterwarnings("ignore")  # the readers' own
@pytest.mark.parametrize("program", PROGRAMS)
def test_every_program_runs_on_a_pulled_release(
    published: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "pets-wds").symlink_to(published.folder / Layout.WEBDATASET)
    (tmp_path / "pets-hf").symlink_to(published.folder / Layout.HUGGINGFACE)
    exec(compile(program, "docs/datasets.md", "exec"), {})  # noqa: S102 - it is the page's
