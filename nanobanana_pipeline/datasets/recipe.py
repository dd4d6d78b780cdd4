"""Recipes: what goes into a dataset, as a YAML file says it.

One file is one dataset. `read_recipe` names everything that is wrong with a file at once, each
fault with its line; ``recipes/sample.yaml`` shows every field.
"""

import difflib
import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

import rfc8785
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    PlainValidator,
    PrivateAttr,
    ValidationError,
    field_serializer,
    model_validator,
)

from nanobanana_pipeline.datasets.recipe_reader import Document, Trail, read_document
from nanobanana_pipeline.datasets.release import Format
from nanobanana_pipeline.errors import PlanError, PromptTableError, RecipeError
from nanobanana_pipeline.generation.planning.cells import check_seed, read_seeds
from nanobanana_pipeline.prompts.prompt_set import valid_name

__all__ = [
    "ALL_SEEDS",
    "Filter",
    "PerPrompt",
    "Recipe",
    "ShardSize",
    "Splits",
    "load_recipes",
    "near_matches",
    "read_recipe",
]

ALL_SEEDS: Final = "all"
MAX_DISTANCE: Final = 10
"""Bits of 64. Farther apart, perceptual hashes say little, and comparing them grows quadratic."""
RATIOS_MAY_MISS: Final = 1e-9

_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")


def near_matches(name: str, known: Iterable[str]) -> str:
    """A hint for a name that is not among the known ones: the nearest of them, or all."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    return f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(names)}"


def _plain_name(value: str) -> str:
    if not _NAME.fullmatch(value):
        raise ValueError("use 1 to 64 of a-z, 0-9 and _, and begin with a letter")
    return value


def _split_name(value: str) -> str:
    # Readers take "all" for every split together.
    if value == "all":
        raise ValueError('"all" cannot name a split: readers take it for all of them together')
    return _plain_name(value)


def _prompt_set(value: str) -> str:
    try:
        return valid_name(value)
    except PromptTableError as error:
        raise ValueError(str(error)) from None


def _seeds(value: object) -> object:
    try:
        if value == ALL_SEEDS:
            return value
        if isinstance(value, str):
            return tuple(read_seeds(value))
        given = value if isinstance(value, list | tuple) else [value]
        seeds = [seed for seed in given if isinstance(seed, int) and not isinstance(seed, bool)]
        if len(seeds) < len(given) or not seeds:
            raise ValueError("give a list of whole numbers, 1-4, or all")
        return tuple(dict.fromkeys(map(check_seed, seeds)))
    except PlanError as error:
        raise ValueError(str(error)) from None


def _not_blank(value: str) -> str:
    if not value.strip():
        raise ValueError("must not be blank")
    return value.strip()


def _distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(set(values)) < len(values):
        raise ValueError("names one twice")
    return values


def _scalar(value: object) -> object:
    if isinstance(value, float) and not abs(value) < float("inf"):
        raise ValueError("must be a finite number")
    if value is not None and not isinstance(value, bool | int | float | str):
        raise ValueError("must be a number, a text, true, false or null")
    return value


NonBlank = Annotated[str, AfterValidator(_not_blank)]
PlainName = Annotated[str, AfterValidator(_plain_name)]
SplitName = Annotated[str, AfterValidator(_split_name)]
SetName = Annotated[str, AfterValidator(_prompt_set)]
Scalar = Annotated[bool | int | float | str | None, PlainValidator(_scalar)]
Scalars = Annotated[tuple[Scalar, ...], Field(min_length=1)]
Distance = Annotated[int, Field(ge=0, le=MAX_DISTANCE)]
Ratio = Annotated[float, Field(ge=0, le=1)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Filter(_Part):
    """What a column's value must be; all that is given must hold.

    Attributes:
        min, max: bounds, themselves allowed: numbers, or texts for a column of text.
        equals: the value itself.
        in_: (``in`` in YAML) one of these; null stands for "no value".
        not_in: none of these; null stands for "no value".
        contains: a text that is part of it, letter by letter.

    A row without a value fails ``min``, ``max``, ``equals`` and ``contains``.
    """

    min: Scalar = None
    max: Scalar = None
    equals: Scalar = None
    in_: Scalars | None = Field(None, alias="in")
    not_in: Scalars | None = None
    contains: Annotated[str, Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not self.model_fields_set:
            raise ValueError("says nothing: give min, max, equals, in, not_in or contains")
        for name in sorted(self.model_fields_set):
            if getattr(self, name) is None:
                raise ValueError(f'{name.strip("_")} is null; for "no value" write in: [null]')
        return self


class Deduplicate(_Part):
    """Which pictures count as the same; of those the first stays.

    Equal bytes (`exact`), and hashes that differ in at most `perceptual` of 64 bits (null: never).
    """

    exact: bool = True
    perceptual: Distance | None = None


class Splits(_Part):
    """How rows are shared out.

    Attributes:
        ratios: each split's share; together 1. A group of rows that belong together is never
            parted, so small datasets come out uneven. 0 keeps a split as it was released.
        salt: another one shares out anew. Recipes with equal salts and ratios put a prompt into the
            same split.
        near: pictures whose perceptual hashes differ in at most so many of 64 bits stay together.
    """

    ratios: Annotated[dict[SplitName, Ratio], Field(min_length=1)] = {"train": 1.0}
    salt: str = ""
    near: Distance = 4

    @model_validator(mode="after")
    def _make_a_whole(self) -> Self:
        total = sum(self.ratios.values())
        if abs(total - 1) > RATIOS_MAY_MISS:
            raise ValueError(f"ratios must be 1 together, and are {total:g}")
        return self


class PerPrompt(_Part):
    """Exactly so many `images` of each prompt that pass, from at most so many `candidates`."""

    images: Annotated[int, Field(ge=1)]
    candidates: Annotated[int, Field(ge=1)]

    @model_validator(mode="after")
    def _enough(self) -> Self:
        if self.candidates < self.images:
            raise ValueError(
                f"{self.candidates} candidates can never give {self.images} images: allow more"
            )
        return self


class ShardSize(_Part):
    """When a shard is full: at so many bytes (in YAML also ``500MB``) or images of its pictures."""

    bytes: Annotated[ByteSize, Field(ge=1)] = ByteSize(500_000_000)
    images: Annotated[int, Field(ge=1)] = 10_000


class Recipe(_Part):
    """One dataset.

    Attributes:
        name: of the dataset, its asset and its folder; a-z, 0-9 and _.
        description: a sentence or more, for the dataset's card.
        licence: an SPDX identifier, or a text.
        prompt_sets: names, in the order of the release.
        seeds: whole numbers (in YAML also ``1-4``), or ``all`` that have a manifest.
        filters: by column of the manifest, the features or the prompt table.
        per_prompt: None takes every picture that passes.
        allow_gaps: cells that may be missing, over all partitions together.
    """

    name: PlainName
    description: NonBlank
    licence: NonBlank
    tags: Annotated[tuple[NonBlank, ...], AfterValidator(_distinct)] = ()
    prompt_sets: Annotated[tuple[SetName, ...], Field(min_length=1), AfterValidator(_distinct)]
    seeds: Annotated[tuple[int, ...] | Literal["all"], BeforeValidator(_seeds)] = "all"
    filters: dict[str, Filter] = {}
    deduplicate: Deduplicate = Deduplicate()
    splits: Splits = Splits()
    formats: Annotated[tuple[Format, ...], Field(min_length=1), AfterValidator(_distinct)] = (
        Format.WEBDATASET,
    )
    shard_size: ShardSize = ShardSize()
    per_prompt: PerPrompt | None = None
    allow_gaps: Annotated[int, Field(ge=0)] = 0

    _document: Document | None = PrivateAttr(default=None)

    @field_serializer("filters")
    def _only_what_is_given(self, filters: dict[str, Filter]) -> dict[str, Any]:
        given = (
            filters[name].model_dump(mode="json", by_alias=True, exclude_unset=True)
            for name in filters
        )
        return dict(zip(filters, given, strict=True))

    @property
    def fingerprint(self) -> str:
        """SHA-256, in hexadecimal, of what the recipe says, however it is laid out and ordered.

        What is left out counts like its default spelt out.
        """
        return hashlib.sha256(rfc8785.dumps(self.model_dump(mode="json"))).hexdigest()

    def where(self, *path: str | int) -> str:
        """A field's place for messages: ``recipes/a.yaml:12: filters.blank``."""
        if self._document is None:
            return f"recipe {self.name}: {'.'.join(map(str, path))}"
        return self._document.place(path)


def read_recipe(path: Path) -> Recipe:
    """Read a recipe.

    Raises:
        RecipeError: names everything that is wrong with it: file, line, field, and how to mend it.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} cannot be read: {error}") from error
    document = read_document(str(path), text)
    faults = dict(document.faults)
    try:
        # By way of JSON, strictness still lets lists be tuples.
        recipe = Recipe.model_validate_json(json.dumps(document.said), strict=True)
    except ValidationError as error:
        faults = _explained(error, document) | faults
    if faults:
        ordered = sorted(faults, key=document.line)
        raise _faulty([f"{document.place(path)}: {faults[path]}" for path in ordered])
    recipe._document = document  # noqa: SLF001 - its own module's
    return recipe


def load_recipes(folder: Path) -> list[Recipe]:
    """All recipes of a folder (``*.yaml``, ``*.yml``), by name; [] if there is none.

    Raises:
        RecipeError: names everything that is wrong with any of them; two with one name too.
    """
    recipes: list[Recipe] = []
    faults: list[str] = []
    for path in sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")]):
        try:
            recipes.append(read_recipe(path))
        except RecipeError as error:
            faults += error.faults
    owners: dict[str, Recipe] = {}
    for recipe in recipes:
        owner = owners.setdefault(recipe.name, recipe)
        if owner is not recipe:
            faults.append(
                f"{recipe.where('name')}: {recipe.name} is also the name of {owner.where('name')}: "
                "call one of them otherwise"
            )
    if faults:
        raise _faulty(faults)
    return sorted(recipes, key=lambda recipe: recipe.name)


def _explained(error: ValidationError, document: Document) -> dict[Trail, str]:
    """What is wrong with each field, by its place."""
    faults: dict[Trail, str] = {}
    for fault in error.errors(include_url=False):
        trail, what = document.nearest(fault["loc"]), fault["msg"]
        if fault["type"] == "missing":
            trail, what = fault["loc"], "is missing"
        elif fault["type"] == "extra_forbidden":
            what = f"is no field; {near_matches(str(trail[-1]), _fields_beside(trail))}"
        elif fault["type"] == "model_type":
            what = f"must be a mapping with {', '.join(_fields_beside((*trail, '')))}"
        elif fault["type"] == "too_short":
            if fault["input"]:
                continue  # its items are what is wrong, and are named themselves
            what = "must not be empty"
        what = what.removeprefix("Value error, ").replace("Input should be", "must be")
        faults.setdefault(trail, what)
    return faults


def _fields_beside(trail: Trail) -> list[str]:
    parts: dict[str, type[BaseModel]] = {
        "deduplicate": Deduplicate,
        "filters": Filter,
        "per_prompt": PerPrompt,
        "shard_size": ShardSize,
        "splits": Splits,
    }
    model = Recipe if len(trail) == 1 else parts[str(trail[0])]
    return [field.alias or name for name, field in model.model_fields.items()]


def _faulty(faults: list[str]) -> RecipeError:
    return RecipeError("\n".join(faults), faults=faults)
