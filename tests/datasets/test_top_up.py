"""A dataset gets exactly the pictures it asks for, or says what stood in the way."""

from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from nanobanana_pipeline.datasets import top_up as module
from nanobanana_pipeline.datasets.publish import build_release
from nanobanana_pipeline.datasets.recipe import Recipe
from nanobanana_pipeline.datasets.release import read_latest
from nanobanana_pipeline.datasets.selection import Selection, released_rows, select
from nanobanana_pipeline.datasets.top_up import Drawn, Standing, stand, top_up
from nanobanana_pipeline.datasets.topup_sets import origin_of
from nanobanana_pipeline.emulator import EmulatorThread
from nanobanana_pipeline.errors import PlanError, PromptTableError, RecipeError
from nanobanana_pipeline.features.table import refresh_features
from nanobanana_pipeline.generation import launch_steps
from nanobanana_pipeline.ledger import State
from nanobanana_pipeline.money import Cap
from nanobanana_pipeline.prompts import prompt_set
from nanobanana_pipeline.provider.account import Account
from nanobanana_pipeline.storage import ObjectStore
from tests.cli.conftest import Command
from tests.conftest import account_for
from tests.launching import bought, entries, keep_prompts, launch, states, tell

ANIMALS: list[dict[str, Any]] = [
    {"id": "a1", "prompt": "a fox", "kind": "land", "legs": 4},
    {"id": "a2", "prompt": "an owl", "kind": "air", "negative_prompt": "night"},
    {"id": "a3", "prompt": "a whale", "legs": 0, "width": 1056},
]


@dataclass
class World:
    """A bucket, and a provider whose books are read."""

    store: ObjectStore
    emulator: EmulatorThread
    account: Account
    rounds: list[Standing] = field(default_factory=list)

    def draw(self, name: str = "animals", *seeds: int, **more: Any) -> None:
        for seed in seeds or (1,):
            launch(self.store, self.account, name, seed=seed, **more)
            refresh_features(self.store, name, seed)

    def top_up(self, recipe: Recipe, cap: Cap | None = None) -> list[Drawn]:
        self.rounds = []
        steps = top_up(self.store, self.account, recipe, cap or Cap(), on_round=self.rounds.append)
        return list(steps)

    def stand(self, recipe: Recipe) -> Standing:
        return stand(self.store, recipe)

    def select(self, recipe: Recipe) -> Selection:
        latest = read_latest(self.store, recipe.name)
        return select(self.store, recipe, released_rows(self.store, latest))

    @property
    def bought(self) -> int:
        return bought(self.emulator)


@pytest.fixture
def world(store: ObjectStore, emulator: EmulatorThread) -> World:
    """Three animals, drawn under seed 1."""
    world = World(store, emulator, account_for(emulator.base_url, store))
    keep_prompts(store, "animals", ANIMALS)
    world.draw()
    return world


def recipe(images: int = 3, candidates: int = 6, **changes: Any) -> Recipe:
    said = {
        "name": "cats",
        "description": "d",
        "licence": "l",
        "prompt_sets": ["animals"],
        "seeds": [1],
        "per_prompt": {"images": images, "candidates": candidates},
        **changes,
    }
    return Recipe.model_validate(said)


def seeds_of(rows: pd.DataFrame) -> dict[str, list[int]]:
    return {str(name): found.tolist() for name, found in rows.groupby("prompt_id")["seed"]}


def test_every_prompt_gets_its_pictures_and_no_more_are_bought(world: World) -> None:
    wanted = recipe(filters={"seed": {"not_in": [2]}})
    before = world.stand(wanted)
    assert (before.complete, before.most) == (0, 15)
    drawn = world.top_up(wanted)
    # Two are missing, so two seeds; one of them is refused, so one more.
    assert [step.current.seed for step in drawn] == [2, 3, 4]
    assert [len(each.short) for each in world.rounds] == [3, 3, 0]
    assert world.bought == 12
    after = world.stand(wanted)
    assert (after.complete, len(after.short), after.most) == (3, 0, 0)
    assert seeds_of(after.rejected) == {"a1": [2], "a2": [2], "a3": [2]}
    assert set(after.rejected["reason"]) == {"seed is 2, which not_in excludes"}
    rows = world.select(wanted).rows
    assert seeds_of(rows) == {name: [1, 3, 4] for name in ("a1", "a2", "a3")}
    assert set(rows["prompt_set"]) == {"animals"}
    assert world.top_up(wanted) == []
    assert world.bought == 12


def test_a_derived_prompt_set_asks_for_what_its_origin_would(world: World) -> None:
    (step,) = world.top_up(recipe(images=2))
    assert origin_of("cats", step.current.prompt_set) == "animals"
    assert origin_of("dogs", step.current.prompt_set) is None
    derived = prompt_set.current(world.store, step.current.prompt_set)
    origin = prompt_set.current(world.store, "animals")
    assert derived is not None
    assert origin is not None
    # All its rows are short, so it is the very same table.
    assert (derived.fingerprint, derived.quarantined) == (origin.fingerprint, 0)
    assert derived.source.endswith(f"prompt_sets/animals/{origin.fingerprint}.parquet")
    world.draw("animals", 2)
    assert world.bought == 6
    found = world.select(recipe(images=2, seeds=[1, 2]))
    assert len(found.rows) == 6
    assert found.rejected.empty
    assert world.top_up(recipe(images=2, seeds=[1, 2])) == []


def test_pictures_that_others_have_bought_cost_nothing(world: World) -> None:
    world.draw("animals", 2, 3)
    assert world.bought == 9
    world.top_up(recipe(images=3))
    assert world.bought == 9
    world.top_up(recipe(images=4, name="dogs"))
    assert world.bought == 12


def test_prompts_are_asked_for_by_what_each_still_needs(world: World) -> None:
    rows: list[dict[str, Any]] = [
        {"id": "two", "prompt": "a pair", "samples": 2},
        {"id": "own", "prompt": "a single", "seed": 7},
        {"id": "out", "prompt": "a stranger", "kind": "strange"},
        {"id": "one", "prompt": "a solo"},
    ]
    keep_prompts(world.store, "mixed", rows)
    world.draw("mixed")
    paid = world.bought
    wanted = recipe(
        images=4,
        candidates=5,
        prompt_sets=["mixed"],
        filters={"kind": {"not_in": ["strange"]}},
    )
    drawn = world.top_up(wanted)
    # One request brings the pair; only the solo goes on. Neither stranger nor pinned seed is asked.
    assert [step.current.cells for step in drawn] == [
        {"settled": 2},
        {"settled": 1},
        {"settled": 1},
    ]
    assert world.bought - paid == 4
    standing = world.stand(wanted)
    assert standing.complete == 2
    (left,) = standing.short.to_dict("records")
    assert (left["prompt_id"], left["missing"]) == ("own", 3)
    assert left["why_none"] == "its row names the seed itself"
    assert seeds_of(world.select(wanted).rows)["two"] == [1, 1, 2, 2]


def test_a_request_that_prompts_share_is_bought_once_and_a_candidate_of_each(
    world: World,
) -> None:
    twins = [{"id": "t1", "prompt": "a fox"}, {"id": "t2", "prompt": "a fox"}]
    keep_prompts(world.store, "twins", twins)
    world.draw("twins", 1, 2)
    paid = world.bought
    wanted = recipe(images=3, candidates=5, prompt_sets=["twins"], seeds=[1, 2])
    world.top_up(wanted)
    standing = world.stand(wanted)
    # The first of them has all that can be told apart.
    assert standing.short["prompt_id"].tolist() == ["t2"]
    assert standing.short["candidates"].tolist() == [5]
    assert set(standing.rejected["reason"]) == {"the same request as that of prompt t1"}
    assert world.bought - paid == 3


def test_it_ends_where_no_candidate_is_left(world: World) -> None:
    wanted = recipe(images=2, candidates=4, filters={"mean": {"max": 0}})
    world.top_up(wanted)
    assert world.bought == 12
    standing = world.stand(wanted)
    assert standing.short["candidates"].tolist() == [4, 4, 4]
    assert standing.short["missing"].tolist() == [2, 2, 2]
    assert set(standing.short["why_none"]) == {"no candidate is left"}
    assert len(standing.rejected) == 12
    assert set(standing.rejected["step"]) == {"filter mean"}
    assert standing.rejected["reason"].str.endswith("is more than 0").all()
    assert world.top_up(wanted) == []


def test_a_budget_ends_it_and_the_same_call_goes_on(world: World) -> None:
    wanted = recipe()
    first = world.top_up(wanted, Cap(images=4))
    assert world.bought == 3 + 4
    assert sum(step.report.spent for step in first) == 4
    assert first[-1].report.over_budget == 2
    standing = world.stand(wanted)
    assert standing.short["missing"].sum() == 2
    # What a budget kept from being bought is no candidate yet, and no gap of the recipe.
    assert standing.short["candidates"].tolist() == [2, 2]
    assert standing.rejected.empty
    with pytest.raises(PlanError, match="while the price is unknown"):
        world.top_up(wanted, Cap(cost=Decimal(1)))
    world.top_up(wanted)
    assert world.bought == 9
    assert world.stand(wanted).complete == 3
    assert world.top_up(recipe(images=4), Cap(images=0)) == []


def test_what_does_not_come_is_a_candidate_used_with_its_reason(world: World) -> None:
    wanted = recipe(images=2, candidates=3)
    tell(world.emulator, "moods", lost_answer_after=1.0)
    world.top_up(wanted)
    assert world.bought == 9
    assert states(world.store) == {State.SETTLED: 3, State.IN_DOUBT: 6}
    standing = world.stand(wanted)
    assert standing.short["candidates_left"].tolist() == [0, 0, 0]
    assert set(standing.rejected["step"]) == {"settled"}
    assert standing.rejected["image_sha256"].isna().all()
    assert standing.rejected["reason"].str.startswith("in doubt: ").all()
    assert seeds_of(standing.rejected) == {name: [2, 3] for name in ("a1", "a2", "a3")}
    tell(world.emulator, "moods", lost_answer_after=0, failed=1.0)
    world.top_up(recipe(images=2, candidates=4))
    kinds = world.stand(wanted).rejected["reason"].str.partition(":")[0].value_counts()
    assert kinds.to_dict() == {"in doubt": 6, "failed": 3}
    built = world.select(wanted)
    release = build_release(world.store, wanted, built.rows, built.rejected, parent=None)
    assert release.rows == 3


@pytest.fixture
def crash(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Has a function end the process, as far as the domain can see."""

    def plant(owner: Any, name: str) -> None:
        def die(*_: Any, **__: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(owner, name, die)

    return plant


@pytest.mark.parametrize("at", ["before the manifest", "before the features"])
def test_after_a_crash_the_same_call_goes_on(
    world: World, crash: Any, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    wanted = recipe(filters={"seed": {"not_in": [2]}})
    if at == "before the manifest":
        crash(launch_steps, "collect")
    else:
        crash(module, "refresh_features")
    with pytest.raises(KeyboardInterrupt):
        world.top_up(wanted)
    assert world.bought == 6
    monkeypatch.undo()
    world.top_up(wanted, Cap(images=0))
    assert world.bought == 6
    assert seeds_of(world.stand(wanted).rejected) == {"a1": [2], "a2": [2], "a3": [2]}
    world.top_up(wanted)
    assert world.bought == 12
    assert world.stand(wanted).complete == 3
    assert len({entry.request_key for entry in entries(world.store)}) == 12


def test_what_was_bought_comes_home_though_its_prompt_is_complete_by_now(
    world: World, crash: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    crash(launch_steps, "collect")
    with pytest.raises(KeyboardInterrupt):
        world.top_up(recipe(images=2))
    monkeypatch.undo()
    assert not [k for k in world.store.keys("manifests/cats") if "current" in k]
    drawn = world.top_up(recipe(images=1, candidates=1))
    assert [step.report.bought for step in drawn] == [0]
    assert drawn[0].features.measured == 3
    assert world.bought == 6


def test_released_pictures_stay_and_new_ones_join_them(world: World) -> None:
    wanted = recipe(images=2, filters={"seed": {"not_in": [1]}})
    world.top_up(wanted)
    first = world.select(wanted)
    v1 = build_release(world.store, wanted, first.rows, first.rejected, parent=None)
    assert seeds_of(first.rows) == {name: [2, 3] for name in ("a1", "a2", "a3")}
    more = recipe(images=3)
    world.top_up(more)
    second = world.select(more)
    v2 = build_release(world.store, more, second.rows, second.rejected, parent=v1)
    assert seeds_of(second.rows) == {name: [1, 2, 3] for name in ("a1", "a2", "a3")}
    assert v2.changes == {"added": 3}
    assert world.bought == 9


def test_another_text_or_a_row_that_is_gone_is_not_drawn_again(world: World) -> None:
    changed = [{**ANIMALS[0], "prompt": "a red fox"}, ANIMALS[1]]
    keep_prompts(world.store, "animals", changed)
    wanted = recipe(images=2)
    (step,) = world.top_up(wanted)
    assert step.current.cells == {"settled": 1}
    assert world.stand(wanted).short["why_none"].tolist() == [
        "the prompt set has another text by now",
        "it is not in the prompt set any more",
    ]


def test_other_parameters_make_another_derived_set(world: World) -> None:
    wanted = recipe(images=2)
    (first,) = world.top_up(wanted)
    wide = {"width": 1088, "height": 1024}
    world.draw("animals", 1, parameters=wide, change_parameters=True)
    (second,) = world.top_up(recipe(images=3))
    assert second.current.prompt_set != first.current.prompt_set
    assert (second.current.seed, second.current.parameters["width"]) == (3, 1088)


def test_what_cannot_be_topped_up_is_said(world: World) -> None:
    with pytest.raises(RecipeError, match=r"recipe cats: per_prompt: is not given"):
        world.top_up(recipe(per_prompt=None))
    name = "a" * 90
    keep_prompts(world.store, name, ["a bear"])
    world.draw(name)
    with pytest.raises(PromptTableError, match="give one of them a shorter name"):
        world.top_up(recipe(prompt_sets=[name]))
    keep_prompts(world.store, "late", ["a bear"])
    with pytest.raises(RecipeError, match="late seed=1: never generated"):
        world.top_up(recipe(prompt_sets=["late"]))


RECIPE = """name: cats
description: d
licence: l
prompt_sets: [animals]
per_prompt: {images: 2, candidates: 3}
filters: {seed: {not_in: [2]}}
"""


def test_the_command_quotes_buys_and_says_what_is_short(
    world: World, nanobanana: Command, tmp_path: Path
) -> None:
    path = tmp_path / "cats.yaml"
    path.write_text(RECIPE.replace("filters", "seeds: [1]\nfilters"))
    before = list(world.store.keys(""))
    quoted = nanobanana("recipe", "top-up", path, "--dry-run")
    assert quoted.exit_code == 0, quoted.output
    told = "3 short by 3 pictures together; at most 6 images to buy at an unknown price"
    assert told in quoted.output
    assert "less what is bought already under those seeds" in quoted.output
    assert list(world.store.keys("")) == before
    assert "top-up" in nanobanana("recipe", "preview", path).output
    capped = nanobanana("recipe", "top-up", path, "--max-images", 4)
    assert capped.exit_code == 1
    assert "this call buys at most 4 images" in capped.output
    assert "1 prompt accepted, 2 short by 2 pictures, 3 pictures rejected" in capped.output
    assert "2 over budget" in capped.output
    (told, *_) = world.store.keys("lineage/")
    found = world.store.get(told)
    assert found is not None
    assert b"top_up_dataset" in found.body
    assert "seed is 2, which not_in excludes" in capped.output
    assert world.bought == 7
    done = nanobanana("recipe", "top-up", path)
    assert done.exit_code == 0, done.output
    assert "3 prompts accepted, 0 short by 0 pictures" in done.output
    assert world.bought == 9
    path.write_text(
        path.read_text().replace("images: 2, candidates: 3", "images: 3, candidates: 3")
    )
    short = nanobanana("recipe", "top-up", path)
    assert short.exit_code == 1
    assert "no candidate is left" in short.output
    path.write_text(path.read_text().replace("per_prompt", "# per_prompt"))
    assert nanobanana("recipe", "top-up", path).exit_code == 2


def test_long_prompts_are_shortened_and_prompts_left_out_are_not_listed(
    store: ObjectStore, emulator: EmulatorThread, nanobanana: Command, tmp_path: Path
) -> None:
    world = World(store, emulator, account_for(emulator.base_url, store))
    long = "a fox\n\nwho is " + "very " * 300 + "tired"
    twins = [{"id": f"b{n}", "prompt": "two bears", "width": 1024 + 32 * n} for n in range(2)]
    keep_prompts(store, "animals", [{"id": "a1", "prompt": long}, ANIMALS[1], *twins])
    world.draw()
    path = tmp_path / "cats.yaml"
    path.write_text(
        RECIPE.replace("[2]", "[3]").replace("filters: {", "filters: {kind: {not_in: [air]}, ")
        + "seeds: [1]\n"
    )
    for command in (("preview", path), ("top-up", path, "--dry-run")):
        said = nanobanana("recipe", *command)
        assert said.exit_code == 0, said.output
        assert "a fox who is very very" in said.output
        assert said.output.count("very") < 30
        if "preview" in command:
            assert "of 3 prompts (rows of the prompt tables) with 2 different texts" in said.output
        else:
            assert "which not_in excludes" not in said.output
            assert "1 prompt left out by what the prompt table says" in said.output
            assert "0 pictures rejected" in said.output
