"""Recipes: what they say, and that every fault is named where it stands."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from nanobanana_pipeline.datasets.recipe import Filter, Recipe, load_recipes, read_recipe
from nanobanana_pipeline.datasets.release import Format
from nanobanana_pipeline.errors import RecipeError

SAMPLE = Path(__file__).parents[2] / "recipes" / "sample.yaml"
LEAST = """\
name: cats
description: Cats of all sorts.
licence: CC-BY-4.0
prompt_sets: [animals]
"""


def written(folder: Path, text: str, name: str = "cats.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def faults_of(folder: Path, text: str) -> list[str]:
    """Each fault without the folder: ``5: field: what``."""
    with pytest.raises(RecipeError) as caught:
        read_recipe(written(folder, text))
    assert str(caught.value) == "\n".join(caught.value.faults)
    return [fault.removeprefix(f"{folder}/cats.yaml:") for fault in caught.value.faults]


def test_what_is_left_out_has_its_default(tmp_path: Path) -> None:
    recipe = read_recipe(written(tmp_path, LEAST))
    assert recipe.seeds == "all"
    assert recipe.formats == (Format.WEBDATASET,)
    assert recipe.deduplicate.exact
    assert recipe.deduplicate.perceptual is None
    assert recipe.splits.ratios == {"train": 1.0}
    assert recipe.splits.near == 4
    assert (recipe.per_prompt, recipe.allow_gaps, recipe.filters) == (None, 0, {})


def test_the_sample_recipe_has_every_field() -> None:
    recipe = read_recipe(SAMPLE)
    text = SAMPLE.read_text()
    assert all(re.search(rf"^(# )?{name}:", text, re.MULTILINE) for name in Recipe.model_fields)
    assert recipe.seeds == (1, 2)
    assert recipe.filters["blank"] == Filter(equals=False)
    assert recipe.shard_size.bytes == 500_000_000


@pytest.mark.parametrize(
    ("said", "seeds"),
    [
        ("all", "all"),
        ("1-3", (1, 2, 3)),
        ("1,7,9-10", (1, 7, 9, 10)),
        ("5", (5,)),
        ("[3, 1, 3]", (3, 1)),
    ],
)
def test_seeds_are_a_list_a_range_or_all(tmp_path: Path, said: str, seeds: object) -> None:
    assert read_recipe(written(tmp_path, f"{LEAST}seeds: {said}\n")).seeds == seeds


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("seeds: 0-2", "seeds: seed 0 asks the provider for a random seed"),
        ("seeds: [4294967296]", "seeds: seed 4294967296 is out of range"),
        ("seeds: []", "seeds: give a list of whole numbers, 1-4, or all"),
        ("seeds: [true]", "seeds: give a list of whole numbers, 1-4, or all"),
        ("seeds: some", "seeds: wants 1-4 or 1,7,9-12, not 'some'"),
        ("tags: [a, a]", "tags: names one twice"),
        ("tags: a", "tags: must be a valid array"),
        ("tags: [1]", "tags.0: must be a valid string"),
        ("allow_gaps: true", "allow_gaps: must be a valid integer"),
        ("allow_gaps: -1", "allow_gaps: must be greater than or equal to 0"),
        ("formats: []", "formats: must not be empty"),
        ("formats: [tar]", "formats.0: must be 'webdataset', 'parquet'"),
        ("filter: {}", "filter: is no field; did you mean filters?"),
        ("filters: {blank: {equal: 1}}", "filters.blank.equal: is no field; did you mean equals?"),
        ("filters: {blank: {}}", "filters.blank: says nothing: give min, max, equals"),
        ("filters: {blank: false}", "filters.blank: must be a mapping with min, max, equals, in"),
        (
            "filters: {mark: {equals: null}}",
            'filters.mark: equals is null; for "no value" write in',
        ),
        ("filters: {mean: {min: .nan}}", "filters.mean.min: must be a finite number"),
        (
            "filters: {mean: {in: [[1]]}}",
            "filters.mean.in.0: must be a number, a text, true, false",
        ),
        ("filters: {mean: {not_in: []}}", "filters.mean.not_in: must not be empty"),
        (
            "splits: {ratios: {train: 0.5, test: 0.4}}",
            "splits: ratios must be 1 together, and are 0.9",
        ),
        ("splits: {ratios: {all: 1}}", 'splits.ratios.all: "all" cannot name a split'),
        ("splits: {near: 11}", "splits.near: must be less than or equal to 10"),
        (
            "deduplicate: {perceptual: -1}",
            "deduplicate.perceptual: must be greater than or equal to 0",
        ),
        (
            "per_prompt: {images: 4, candidates: 3}",
            "per_prompt: 3 candidates can never give 4 images",
        ),
        ("per_prompt: {images: 4}", "per_prompt.candidates: is missing"),
        ("shard_size: {bytes: 10 stones}", "shard_size.bytes: could not interpret byte unit"),
        ("licence: MIT", "licence: is given twice"),
        ("tags: [!!binary aGk=]", "tags.0: 'aGk=' is no valid binary"),
        ("tags: [!!int x]", "tags.0: 'x' is no valid int"),
        ("? [a]\n: 1", "has a key that is no text"),
    ],
)
def test_a_fault_is_named_with_its_line_and_field(tmp_path: Path, line: str, fault: str) -> None:
    found = faults_of(tmp_path, f"{LEAST}{line}\n")
    assert len(found) == 1
    at = "1" if fault.startswith("has a key") else "5"
    assert found[0].startswith(f"{at}: {fault}")


def test_all_faults_are_named_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = (
        "name: Cats!\nlicence: ' '\nprompt_sets:\n  - a/b\n  - ok\nsplits:\n  near: x\n  nea: 4\n"
    )
    assert [fault.split(": ")[:2] for fault in faults_of(tmp_path, text)] == [
        ["1", "name"],
        ["1", "description"],
        ["2", "licence"],
        ["4", "prompt_sets.0"],
        ["7", "splits.near"],
        ["8", "splits.nea"],
    ]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "1: must be a mapping of fields, from name: on"),
        ("- a\n", "1: must be a mapping of fields, from name: on"),
        ("name: a\ntags: [a\nseeds: b}\n", "3: no valid YAML: "),
        ("name: a\ntags: *x\n", "2: no valid YAML: aliases (*) have no place in a recipe"),
        ("name: a\n---\nname: b\n", "2: no valid YAML: "),
    ],
)
def test_what_is_no_yaml_or_no_mapping_says_where(tmp_path: Path, text: str, fault: str) -> None:
    found = faults_of(tmp_path, text)
    assert len(found) == 1
    assert found[0].startswith(fault)


def test_what_cannot_be_read_is_a_fault(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"none\.yaml cannot be read"):
        read_recipe(tmp_path / "none.yaml")
    path = tmp_path / "latin.yaml"
    path.write_bytes(b"name: \xe9\n")
    with pytest.raises(RecipeError, match=r"latin\.yaml cannot be read"):
        read_recipe(path)
    written(tmp_path, "name: \x01\n")
    with pytest.raises(RecipeError, match=r"cats\.yaml: no valid YAML"):
        read_recipe(tmp_path / "cats.yaml")


def test_columns_are_called_as_they_stand_there(tmp_path: Path) -> None:
    text = f"{LEAST}filters:\n  no: {{in: [null, 1]}}\n  2024: {{min: 2024-01-31}}\n"
    filters = read_recipe(written(tmp_path, text)).filters
    assert filters["no"].in_ == (None, 1)
    assert filters["2024"].min == "2024-01-31"


def test_a_place_in_the_recipe_can_be_named_later(tmp_path: Path) -> None:
    path = written(tmp_path, f"{LEAST}filters:\n  blank:\n    equals: false\n")
    recipe = read_recipe(path)
    assert recipe.where("filters", "blank", "equals") == f"{path}:7: filters.blank.equals"
    assert recipe.where("allow_gaps") == f"{path}:1: allow_gaps"
    made = Recipe(name="a", description="b", licence="c", prompt_sets=("d",))
    assert made.where("seeds") == "recipe a: seeds"


def test_a_folder_gives_its_recipes_by_name(tmp_path: Path) -> None:
    assert load_recipes(tmp_path) == []
    written(tmp_path, LEAST.replace("cats", "owls"), "a.yaml")
    written(tmp_path, LEAST, "b.yml")
    written(tmp_path, "no recipe", "README.md")
    assert [recipe.name for recipe in load_recipes(tmp_path)] == ["cats", "owls"]


def test_a_folder_names_the_faults_of_all_its_files(tmp_path: Path) -> None:
    written(tmp_path, LEAST, "a.yaml")
    written(tmp_path, f"\n{LEAST}", "b.yaml")
    written(tmp_path, f"{LEAST}seed: 1\n", "c.yaml")
    with pytest.raises(RecipeError) as caught:
        load_recipes(tmp_path)
    first = f"{tmp_path}/a.yaml:1: name"
    assert list(caught.value.faults) == [
        f"{tmp_path}/c.yaml:5: seed: is no field; did you mean seeds?",
        f"{tmp_path}/b.yaml:2: name: cats is also the name of {first}: call one of them otherwise",
    ]


def fingerprint(**changes: Any) -> str:
    fields: dict[str, Any] = {**yaml.safe_load(LEAST), **changes}
    return Recipe.model_validate(fields).fingerprint


def test_the_fingerprint_is_that_of_the_content() -> None:
    assert fingerprint() == fingerprint(seeds="all", allow_gaps=0, deduplicate={"exact": True})
    # Another one makes every dataset release again: change it only on purpose.
    assert fingerprint() == "6db4843b8e7213ac0b2de2df24a4580662d6556bbb6272c6ba03e4d4b96ae766"
    ratios = [("train", 0.5), ("test", 0.5)]
    assert fingerprint(splits={"ratios": dict(ratios)}) == fingerprint(
        splits={"ratios": dict(reversed(ratios))}
    )
    others = [
        fingerprint(**change)
        for change in (
            {},
            {"description": "Dogs."},
            {"seeds": "1-2"},
            {"filters": {"blank": {"equals": False}}},
            {"filters": {"blank": {"in": [False]}}},
            {"filters": {"mark": {"in": [None]}}},
            {"shard_size": {"images": 5}},
            {"splits": {"salt": "x"}},
        )
    ]
    assert len(set(others)) == len(others)


def test_a_recipe_is_frozen_and_takes_no_unknown_field() -> None:
    recipe = Recipe(name="a", description="b", licence="c", prompt_sets=("d",))
    with pytest.raises(ValidationError):
        recipe.name = "b"  # type: ignore[misc]
    with pytest.raises(ValidationError):
        fingerprint(unknown=1)
