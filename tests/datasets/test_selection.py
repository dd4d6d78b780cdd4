"""What recipes select from real manifests, features and prompt tables."""

import json
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanobanana_pipeline import local
from nanobanana_pipeline.bucket_keys import features_prefix
from nanobanana_pipeline.datasets.filters import why_not
from nanobanana_pipeline.datasets.recipe import Filter, Recipe
from nanobanana_pipeline.datasets.recipe_inputs import ROW_COLUMNS
from nanobanana_pipeline.datasets.release_rows import as_table
from nanobanana_pipeline.datasets.selection import REJECTED_COLUMNS, Selection, select
from nanobanana_pipeline.datasets.splits import find_leaks
from nanobanana_pipeline.emulator import EmulatorConfig, EmulatorThread
from nanobanana_pipeline.errors import RecipeError
from nanobanana_pipeline.features.table import (
    FEATURE_TABLE_SCHEMA,
    CurrentFeatures,
    refresh_features,
)
from nanobanana_pipeline.generation.manifest.manifest import read_current, read_manifest
from nanobanana_pipeline.storage import ObjectStore, s3_client
from nanobanana_pipeline.storage.versioned import packed, write_table
from tests.cli.conftest import Command
from tests.conftest import Emulators, account_for
from tests.launching import keep_prompts, launch

ANIMALS: list[dict[str, Any]] = [
    {"id": "a1", "prompt": "a fox", "kind": "land", "legs": 4, "group": "x"},
    {"id": "a2", "prompt": "an owl", "kind": "air", "legs": 2, "negative_prompt": "night"},
    {"id": "a3", "prompt": "a whale", "legs": 0},
    {"id": "a4", "prompt": "A  FOX", "kind": "land", "legs": 4},
]
THINGS: list[dict[str, Any]] = [
    {"id": "t1", "prompt": "a fox", "kind": "asks for what a1 asks for", "made": True},
    {"id": "t2", "prompt": "a lamp", "legs": 1.5},
]

HALVES = {"ratios": {"train": 0.5, "test": 0.5}}


@dataclass(frozen=True)
class World:
    """A bucket of one's own, with what two prompt sets gave."""

    store: ObjectStore

    def select(self, released: pd.DataFrame | None = None, **changes: Any) -> Selection:
        return select(self.store, recipe(**changes), released)


def recipe(**changes: Any) -> Recipe:
    least = {"name": "cats", "description": "d", "licence": "l", "prompt_sets": ["animals"]}
    return Recipe.model_validate({**least, **changes})


def put_features(store: ObjectStore, name: str, seed: int, **columns: Any) -> None:
    """Features that differ from picture to picture, but for `columns`, in the manifest's order."""
    current, _ = read_current(store, name, seed)
    assert current is not None
    pictures = read_manifest(store, current.manifest).dropna(subset="image_sha256")
    sha256s = pictures["image_sha256"].unique().tolist()
    made = {
        "image_sha256": sha256s,
        "mode": ["RGB"] * len(sha256s),
        "sharpness": [10.0 * seed + place for place in range(len(sha256s))],
        "blank": [False] * len(sha256s),
        "phash": [sha256[:16] for sha256 in sha256s],
        "thumbnail": [b"no picture"] * len(sha256s),
        **columns,
    }
    rows = {
        field.name: made.get(field.name, [None] * len(sha256s)) for field in FEATURE_TABLE_SCHEMA
    }
    folder = features_prefix(name, seed)
    pointer = CurrentFeatures(
        prompt_set=name,
        seed=seed,
        table=f"{folder}made.parquet",
        manifest=current.manifest,
        content="made",
        rows=len(sha256s),
        blank=0,
        errors=0,
        sheet=None,
        created="now",
    )
    write_table(store, pointer.table, packed(pa.table(rows, schema=FEATURE_TABLE_SCHEMA)))
    store.put(f"{folder}current.json", json.dumps(asdict(pointer)).encode())


@pytest.fixture(scope="module")
def made(s3_url: str) -> Iterator[ObjectStore]:
    """Bought once: animals under seeds 1 and 2, things under seed 1."""
    assert s3_url
    store = ObjectStore(s3_client(), local.BUCKET, f"made-{uuid.uuid4().hex}")
    with EmulatorThread(EmulatorConfig(latency_seconds=(0, 0))) as emulator:
        account = account_for(emulator.base_url, store)
        keep_prompts(store, "animals", ANIMALS)
        keep_prompts(store, "things", THINGS)
        for name, seed in (("animals", 1), ("animals", 2), ("things", 1)):
            assert launch(store, account, name, seed=seed).current.gaps == 0
        yield store


@pytest.fixture
def world(made: ObjectStore, store: ObjectStore) -> World:
    """The same again: what is selected from lies in these folders, pictures do not matter."""
    for key in [*made.keys("prompt_sets/"), *made.keys("manifests/")]:
        found = made.get(key)
        assert found is not None
        store.put(key, found.body)
    for name, seed in (("animals", 1), ("animals", 2), ("things", 1)):
        put_features(store, name, seed)
    return World(store)


def places(rows: pd.DataFrame) -> list[tuple[str, int]]:
    return list(zip(rows["prompt_id"], rows["seed"].astype(int), strict=True))


def test_every_row_has_what_releases_need(world: World) -> None:
    selection = world.select(prompt_sets=["things", "animals"])
    rows = selection.rows
    attributes = ["kind", "legs", "made", "prompt_group"]
    assert list(rows.columns) == [*ROW_COLUMNS, *attributes, "group", "split"]
    assert {name: str(rows[name].dtype) for name in ROW_COLUMNS} == ROW_COLUMNS
    assert rows["row_id"].is_unique
    assert as_table(rows).num_rows == len(rows) == 9
    # The order of the recipe's sets; of rows with one request the first.
    assert places(rows) == [
        *(("t1", 1), ("t2", 1), ("a1", 2)),
        *((name, seed) for name in ("a2", "a3", "a4") for seed in (1, 2)),
    ]
    owl = rows[rows["prompt_id"] == "a2"].iloc[0]
    assert owl["negative_prompt"] == "night"
    assert owl["row_id"] == f"{owl['request_key']}-0"
    assert owl["image_key"] == f"images/{owl['image_sha256'][:2]}/{owl['image_sha256']}.png"
    assert owl["digital_source_type"] == "trainedAlgorithmicMedia"
    assert (owl["kind"], owl["legs"], owl["sharpness"]) == ("air", 2.0, 11.0)
    fox = rows[(rows["prompt_id"] == "a1") & (rows["seed"] == 2)].iloc[0]
    assert fox["negative_prompt"] == ""
    assert fox["prompt_group"] == "x"
    assert pd.isna(fox["made"])
    assert str(rows["legs"].dtype) == "Float64"
    assert [(m.prompt_set, m.seed) for m in selection.manifests] == [
        ("things", 1),
        ("animals", 1),
        ("animals", 2),
    ]


def test_what_measuring_gives_is_what_selection_reads(made: ObjectStore) -> None:
    for seed in (1, 2):
        refresh_features(made, "animals", seed)
    rows = select(made, recipe(filters={"mode": {"in": ["RGB"]}, "error": {"in": [None]}})).rows
    assert len(rows) == 8
    assert rows[["mean", "entropy", "sharpness", "blank", "phash"]].notna().all(axis=None)


def test_each_rejected_row_has_its_reason(world: World) -> None:
    selection = world.select(
        filters={
            "legs": {"min": 1},
            "kind": {"not_in": ["air"], "contains": "an"},
            "sharpness": {"max": 19.5},
        },
    )
    assert places(selection.rows) == [("a1", 1), ("a4", 1)]
    assert selection.steps.set_index("step")["rows"].to_dict() == {
        "settled": 8,
        "can be decoded": 8,
        "filter legs": 6,
        "filter kind": 4,
        "filter sharpness": 2,
        "distinct requests": 2,
        "distinct pictures": 2,
        "joins no two splits": 2,
    }
    rejected = selection.rejected
    assert list(rejected.columns) == REJECTED_COLUMNS
    reasons = dict(zip(places(rejected), rejected["reason"], strict=True))
    assert reasons == {
        ("a1", 2): "sharpness 20 is more than 19.5",
        ("a2", 1): "kind is air, which not_in excludes",
        ("a2", 2): "kind is air, which not_in excludes",
        ("a3", 1): "legs 0 is less than 1",
        ("a3", 2): "legs 0 is less than 1",
        ("a4", 2): "sharpness 23 is more than 19.5",
    }


def test_unknown_columns_and_what_cannot_stand_there_are_named_at_once(
    world: World,
) -> None:
    with pytest.raises(RecipeError) as caught:
        world.select(
            filters={
                "sharpnes": {"min": 1},
                "blank": {"min": 0},
                "legs": {"equals": "four", "contains": "4"},
                "kind": {"in": ["land", 7]},
                "thumbnail": {"contains": "x"},
            }
        )
    assert list(caught.value.faults) == [
        "recipe cats: filters.sharpnes: there is no such column; did you mean sharpness?",
        "recipe cats: filters.blank.min: the column holds true or false; use equals",
        "recipe cats: filters.blank.min: the column holds true or false, and 0 is none",
        "recipe cats: filters.legs.equals: the column holds numbers, and 'four' is none",
        "recipe cats: filters.legs.contains: the column holds numbers, not text",
        "recipe cats: filters.kind.in: the column holds text, and 7 is none",
        caught.value.faults[-1],
    ]
    assert "filters.thumbnail: there is no such column; " in caught.value.faults[-1]


def test_equal_pictures_count_once_and_released_ones_stay(world: World) -> None:
    everything = world.select()
    assert len(everything.rows) == 8
    # Two cells whose pictures are equal byte for byte.
    key = read_current(world.store, "animals", 2)[0]
    assert key is not None
    cells = read_manifest(world.store, key.manifest)
    cells["image_sha256"] = cells["image_sha256"].where(
        cells["prompt_id"] != "a3", cells.loc[cells["prompt_id"] == "a2", "image_sha256"].item()
    )
    write_table(
        world.store, key.manifest, packed(pa.Table.from_pandas(cells, preserve_index=False))
    )
    selection = world.select()
    assert ("a3", 2) not in places(selection.rows)
    owl = selection.rows[selection.rows["prompt_id"] == "a2"].iloc[1]["row_id"]
    assert selection.rejected["reason"].tolist() == [f"the same picture as {owl}"]
    released = everything.rows[everything.rows["prompt_id"] == "a3"]
    again = world.select(released)
    assert ("a3", 2) in places(again.rows)
    assert ("a2", 2) not in places(again.rows)
    both = world.select(deduplicate={"exact": False}, splits=HALVES).rows
    assert len(both) == 8
    assert find_leaks(both).empty


def test_pictures_that_look_alike_count_once_where_a_recipe_says_so(world: World) -> None:
    looks = ["0000000000000000", "000000000000000f", "00000000000000ff", "ffffffffffffffff"]
    put_features(world.store, "animals", 1, phash=looks)
    selection = world.select(seeds="1", deduplicate={"perceptual": 4})
    assert places(selection.rows) == [("a1", 1), ("a3", 1), ("a4", 1)]
    assert selection.rejected["reason"].tolist() == [f"looks like {selection.rows['row_id'][0]}"]
    assert len(world.select(seeds="1", deduplicate={"perceptual": 3}).rows) == 4


def test_pictures_that_cannot_be_decoded_are_left_out(world: World) -> None:
    put_features(
        world.store,
        "animals",
        1,
        error=["cut off", None, None, None],
        phash=[None, *(f"{number:016x}" for number in (0xFF, 0xFF00, 0xFF0000))],
    )
    selection = world.select(seeds="1")
    assert places(selection.rejected) == [("a1", 1)]
    assert selection.rejected["reason"].tolist() == ["cannot be decoded: cut off"]


def test_a_request_that_rows_share_counts_once(world: World) -> None:
    selection = world.select(prompt_sets=["animals", "things"])
    assert places(selection.rejected) == [("t1", 1)]
    assert selection.rejected["reason"].tolist() == ["the same request as that of prompt a1"]
    # Where a filter takes the first of them out, the other one is there.
    only = world.select(prompt_sets=["animals", "things"], filters={"kind": {"contains": "asks"}})
    assert places(only.rows) == [("t1", 1)]


def test_exactly_n_of_each_prompt_and_the_shortfall(world: World) -> None:
    selection = world.select(
        per_prompt={"images": 1, "candidates": 3}, filters={"sharpness": {"min": 12}}
    )
    assert places(selection.rows) == [("a1", 2), ("a2", 2), ("a3", 1), ("a4", 1)]
    surplus = selection.rejected[selection.rejected["step"] == "per prompt"]
    assert places(surplus) == [("a3", 2), ("a4", 2)]
    assert set(surplus["reason"]) == {"beyond the 1 picture of its prompt"}
    assert selection.shortfall.empty
    short = world.select(
        per_prompt={"images": 2, "candidates": 3}, filters={"sharpness": {"min": 22}}
    )
    assert places(short.rows) == [("a3", 2), ("a4", 2)]
    assert short.shortfall.drop(columns="prompt").to_dict("records") == [
        {
            "prompt_set": "animals",
            "prompt_id": name,
            "wanted": 2,
            "accepted": accepted,
            "missing": 2 - accepted,
            "candidates": 2,
            "candidates_left": 1,
        }
        for name, accepted in (("a1", 0), ("a2", 0), ("a3", 1), ("a4", 1))
    ]


def test_of_more_than_n_the_released_ones_stay(world: World) -> None:
    one = {"images": 1, "candidates": 3}
    late = world.select(per_prompt=one, filters={"seed": {"min": 2}}).rows
    assert set(late["seed"]) == {2}
    early = world.select(per_prompt=one).rows
    assert set(early["seed"]) == {1}
    assert world.select(late, per_prompt=one).rows["row_id"].tolist() == late["row_id"].tolist()
    # What later releases took goes before what only earlier ones had.
    chain = pd.concat([late[late["prompt_id"] != "a2"], early, late]).drop_duplicates("row_id")
    again = world.select(chain, per_prompt=one).rows
    assert places(again) == [("a1", 2), ("a2", 1), ("a3", 2), ("a4", 2)]


def test_a_prompt_that_the_recipe_leaves_out_misses_nothing(world: World) -> None:
    asked = {"images": 3, "candidates": 3}
    by_table = world.select(per_prompt=asked, filters={"kind": {"equals": "land"}})
    assert by_table.shortfall["prompt_id"].tolist() == ["a1", "a4"]
    assert by_table.excluded["prompt_id"].tolist() == ["a2", "a3"]
    negative = world.select(per_prompt=asked, filters={"negative_prompt": {"equals": "night"}})
    assert negative.shortfall["prompt_id"].tolist() == ["a2"]
    by_looks = world.select(per_prompt=asked, filters={"sharpness": {"min": 1000}})
    assert by_looks.shortfall["accepted"].tolist() == [0, 0, 0, 0]
    assert by_looks.excluded.empty


def test_nothing_leaks_whatever_the_seed_and_released_rows_stay(world: World) -> None:
    first = world.select(seeds="1", splits=HALVES).rows
    grown = world.select(first, prompt_sets=["animals", "things"], splits=HALVES)
    assert find_leaks(grown.rows).empty
    old = grown.rows.set_index("row_id").loc[first["row_id"], "split"]
    assert old.tolist() == first["split"].tolist()
    foxes = grown.rows[grown.rows["prompt"].isin(["a fox", "A  FOX"])]
    assert foxes["split"].nunique() == foxes["group"].nunique() == 1
    # A new picture that looks like released ones of both splits.
    sides = first.drop_duplicates("split")
    assert len(sides) == 2
    ends = ["0000000000000000", "00000000000000ff"]
    parent = first.assign(phash=[f"{1 << 32 + 8 * n:016x}" for n in range(len(first))])
    parent.loc[sides.index, "phash"] = ends
    looks = ["000000000000000f", *(f"{number << 40:016x}" for number in (1, 0xFF00, 0xFF0000))]
    put_features(world.store, "animals", 2, phash=looks)
    put_features(world.store, "animals", 1, phash=parent["phash"].tolist())
    bridged = world.select(parent, splits=HALVES)
    left = bridged.rejected[bridged.rejected["step"] == "joins no two splits"]
    assert ("a1", 2) in places(left)
    assert set(left["reason"]) == {"belongs with released rows of the splits test and train"}
    assert find_leaks(bridged.rows).empty


def test_gaps_are_refused_and_named_unless_they_are_allowed(
    world: World, emulators: Emulators
) -> None:
    account = account_for(emulators().base_url, world.store, max_images_per_run=1)
    assert launch(world.store, account, "animals", seed=3).current.gaps == 3
    put_features(world.store, "animals", 3)
    with pytest.raises(RecipeError) as caught:
        world.select(seeds="1-4")
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("recipe cats: allow_gaps: 7 cells are missing, and 0 may be. Launch")
    assert lines[1].startswith("  - 4 cells of animals seed=4: never generated")
    assert lines[2].startswith("  - 3 cells of animals seed=3: 3 over budget")
    selection = world.select(seeds="1-4", allow_gaps=7, per_prompt={"images": 3, "candidates": 4})
    assert len(selection.rows) == 9
    assert sorted(selection.shortfall["candidates"]) == [2, 2, 2]
    assert {m.seed for m in world.select(allow_gaps=3).manifests} == {1, 2, 3}


def test_what_is_not_there_is_refused(world: World) -> None:
    with pytest.raises(
        RecipeError, match=r"prompt_sets\.0: there is no prompt set 'animal'; did you"
    ):
        world.select(prompt_sets=["animal"])
    keep_prompts(world.store, "late", ["a bear"])
    with pytest.raises(RecipeError, match="1 cell of late: never generated under any seed"):
        world.select(prompt_sets=["animals", "late"])
    with pytest.raises(RecipeError, match="nothing was generated yet"):
        world.select(prompt_sets=["late"], allow_gaps=9)
    world.store.delete("features/animals/seed=2/current.json")
    put_features(world.store, "animals", 1)
    with pytest.raises(
        RecipeError, match=r"materialize image_features.*\n  - animals seed=2: 4 pict"
    ):
        world.select()
    with pytest.raises(RecipeError) as caught:
        world.select(filters={"leg": {"min": 1}, "sharpness": {"min": 1}})
    unknown, unmeasured = caught.value.faults
    assert unknown == "recipe cats: filters.leg: there is no such column; did you mean legs?"
    assert "animals seed=2: 4 pictures" in unmeasured
    world.store.delete("features/animals/seed=1/current.json")
    with pytest.raises(RecipeError) as caught:
        world.select(filters={"sharpness": {"min": 1}, "blank": {"equals": False}})
    (unmeasured,) = caught.value.faults
    assert "animals seed=1: 4 pictures" in unmeasured


def test_a_recipe_may_leave_nothing(world: World) -> None:
    selection = world.select(filters={"kind": {"equals": "none such"}})
    assert selection.rows.empty
    assert len(selection.rejected) == 8
    assert "split" in selection.rows


def test_preview_says_what_would_be_selected_and_writes_nothing(
    world: World, nanobanana: Command, tmp_path: Path
) -> None:
    path = tmp_path / "cats.yaml"
    path.write_text(
        "name: cats\ndescription: d\nlicence: l\nprompt_sets: [animals]\n"
        "splits: {ratios: {train: 0.5, test: 0.5}}\n"
        "per_prompt: {images: 3, candidates: 3}\nfilters: {legs: {min: 1}}\n"
    )
    before = list(world.store.keys(""))
    done = nanobanana("recipe", "preview", path)
    assert done.exit_code == 0, done.output
    assert list(world.store.keys("")) == before
    for text in (
        *("filter legs", "legs 0 is less than 1", "an owl", "train", "test", "candidates_left"),
        "6 pictures would be released, of 3 prompts (rows of the prompt tables) with 3 different",
    ):
        assert text in done.output
    path.write_text(path.read_text().replace("legs:", "leg:"))
    wrong = nanobanana("recipe", "preview", path)
    assert wrong.exit_code == 2
    assert f"{path}:7: filters.leg: there is no such column; did you mean legs?" in wrong.output


def test_check_names_every_fault_and_needs_no_settings(
    nanobanana: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("NANOBANANA_BUCKET")
    text = "name: cats\ndescription: d\nlicence: l\nprompt_sets: [animals]\n"
    good, bad = tmp_path / "a.yaml", tmp_path / "b.yaml"
    good.write_text(text)
    done = nanobanana("recipe", "check", good)
    assert (done.exit_code, "cats" in done.output) == (0, True)
    bad.write_text(text + "seed: 1\nlicense: x\n")
    for path in (bad, tmp_path):
        wrong = nanobanana("recipe", "check", path)
        assert wrong.exit_code == 2
        assert f"{bad}:5: seed: is no field; did you mean seeds?" in wrong.output
        assert f"{bad}:6: license: is no field; did you mean licence?" in wrong.output
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "holds no recipe" in nanobanana("recipe", "check", empty).output


numbers = st.none() | st.integers(-3, 3)
values = st.lists(numbers, max_size=20)
# A bound is compared in the column's own type: in a float32 column 1e-100 is 0.
bounds = st.integers(-3, 3) | st.floats(-3, 3, width=32)
rules = st.fixed_dictionaries(
    {},
    optional={
        "min": bounds,
        "max": st.integers(-3, 3),
        "equals": bounds,
        "in": st.lists(numbers, min_size=1),
        "not_in": st.lists(numbers, min_size=1),
    },
).filter(bool)


def passes(value: Any, rule: dict[str, Any]) -> bool:
    """A filter as its documentation says it."""
    there = value is not None
    return (
        ("min" not in rule or (there and value >= rule["min"]))
        and ("max" not in rule or (there and value <= rule["max"]))
        and ("equals" not in rule or (there and value == rule["equals"]))
        and ("in" not in rule or value in rule["in"])
        and ("not_in" not in rule or value not in rule["not_in"])
        and ("contains" not in rule or (there and rule["contains"] in value))
    )


@given(values, rules)
@settings(deadline=None)
def test_filters_on_numbers_do_as_they_say(given: list[int | None], rule: dict[str, Any]) -> None:
    for dtype in ("Int64", "Float32"):
        column = pd.Series(given, dtype=dtype, name="legs")
        reasons = why_not(column, Filter.model_validate(rule))
        assert reasons.isna().tolist() == [passes(value, rule) for value in given]
        assert reasons.dropna().str.startswith("legs ").all()


words = st.none() | st.text(st.sampled_from("aAbB.*{}"), max_size=3)


@given(
    st.lists(words, max_size=20),
    st.fixed_dictionaries(
        {},
        optional={
            "min": st.text(st.sampled_from("aAbB.*{}"), max_size=3),
            "max": st.text(st.sampled_from("aAbB.*{}"), max_size=3),
            "equals": st.text(st.sampled_from("aAbB.*{}"), max_size=3),
            "in": st.lists(words, min_size=1),
            "not_in": st.lists(words, min_size=1),
            "contains": st.text(st.sampled_from("aAbB.*{}"), min_size=1, max_size=2),
        },
    ).filter(bool),
)
@settings(deadline=None)
def test_filters_on_text_do_as_they_say(given: list[str | None], rule: dict[str, Any]) -> None:
    column = pd.Series(given, dtype="str", name="kind")
    reasons = why_not(column, Filter.model_validate(rule))
    assert reasons.isna().tolist() == [passes(value, rule) for value in given]


def test_filters_on_truths_do_as_they_say() -> None:
    column = pd.Series([True, False, None], dtype="boolean", name="blank")
    fits = {
        "equals": Filter(equals=False),
        "in": Filter.model_validate({"in": [None, True]}),
        "not_in": Filter(not_in=(True,)),
    }
    found = {name: why_not(column, rule).isna().tolist() for name, rule in fits.items()}
    assert found == {
        "equals": [False, True, False],
        "in": [True, False, True],
        "not_in": [False, True, True],
    }
