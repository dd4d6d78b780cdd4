"""Nothing that belongs together is ever parted."""

import hashlib
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanobanana_pipeline.datasets.perceptual import first_alike, near_pairs
from nanobanana_pipeline.datasets.recipe import Splits
from nanobanana_pipeline.datasets.splits import SPLIT_COLUMNS, assign_splits, find_leaks, prompt_key
from nanobanana_pipeline.errors import RecipeError
from nanobanana_pipeline.features.judging import hashes_of

THIRDS = Splits(ratios={"train": 0.4, "validation": 0.3, "test": 0.3}, near=4)
FAR = [f"{number:016x}" for number in (0x0, 0xFFFF, 0xFFFF0000, 0xFFFF00000000)]
"""Look alike in no pair."""


def row(name: str, prompt: str, phash: str | None = None, ref: str | None = None) -> dict[str, Any]:
    return {
        "row_id": name,
        "prompt": prompt,
        "image_sha256": hashlib.sha256(name.encode()).hexdigest(),
        "ref_sha256": ref,
        "phash": phash,
    }


def table(*rows: dict[str, Any]) -> pd.DataFrame:
    return pd.DataFrame(list(rows), columns=SPLIT_COLUMNS, dtype="str")


def flipped(*bits: int) -> str:
    return f"{sum(1 << bit for bit in bits):016x}"


# Few prompts, references and hashes near each other, so that they meet in many ways.
looks = st.lists(st.integers(0, 63), max_size=12, unique=True).map(lambda bits: flipped(*bits))
made_rows = st.builds(
    row,
    st.integers(0, 10**9).map(lambda number: f"{number:064x}-0"),
    st.sampled_from([f"prompt {number}" for number in range(12)] + ["Prompt  1", "\uff30rompt 2"]),
    st.none() | looks,
    st.none() | st.lists(st.sampled_from("abcdef"), min_size=1, max_size=2).map(" ".join),
)
tables = st.lists(made_rows, max_size=40, unique_by=lambda made: made["row_id"]).map(
    lambda rows: table(*rows)
)
recipes = st.builds(
    Splits,
    ratios=st.sampled_from([THIRDS.ratios, {"train": 1.0}, {"train": 0.5, "test": 0.5}]),
    salt=st.text(max_size=3),
    near=st.integers(0, 10),
)


def leaks_by_hand(rows: pd.DataFrame, near: int) -> bool:
    """Every pair looked at."""
    records = rows.to_dict("records")
    return any(
        one["split"] != other["split"]
        and (
            prompt_key(one["prompt"]) == prompt_key(other["prompt"])
            or one["image_sha256"] == other["image_sha256"]
            or set(words(one["ref_sha256"])) & set(words(other["ref_sha256"]))
            or (
                not pd.isna(one["phash"])
                and not pd.isna(other["phash"])
                and (int(one["phash"], 16) ^ int(other["phash"], 16)).bit_count() <= near
            )
        )
        for one in records
        for other in records
    )


def words(text: Any) -> list[str]:
    return [] if pd.isna(text) else text.split()


def split_of(rows: pd.DataFrame) -> dict[str, str]:
    return dict(zip(rows["row_id"], rows["split"], strict=True))


@given(tables, recipes)
@settings(deadline=None)
def test_nothing_leaks_ever(rows: pd.DataFrame, splits: Splits) -> None:
    shares = assign_splits(rows, splits)
    assert shares.left_out.empty
    assert list(shares.rows["row_id"]) == list(rows["row_id"])
    assert set(shares.rows["split"]) <= set(splits.ratios)
    assert not leaks_by_hand(shares.rows, splits.near)
    assert find_leaks(shares.rows, splits.near).empty


@given(tables, recipes, st.randoms(use_true_random=False))
@settings(deadline=None)
def test_the_order_of_the_rows_changes_nothing(
    rows: pd.DataFrame, splits: Splits, random: Any
) -> None:
    order = random.sample(range(len(rows)), len(rows))
    one = assign_splits(rows, splits).rows.set_index("row_id")
    other = assign_splits(rows.iloc[order], splits).rows.set_index("row_id")
    pd.testing.assert_frame_equal(one, other.loc[one.index])


@given(tables, tables, recipes, st.randoms(use_true_random=False))
@settings(deadline=None)
def test_growth_moves_no_released_row_and_leaks_nothing(
    first: pd.DataFrame, more: pd.DataFrame, splits: Splits, random: Any
) -> None:
    parent = assign_splits(first, splits).rows
    newcomers = more[~more["row_id"].isin(first["row_id"])]
    # Some released rows are gone from the selection; they bind newcomers all the same.
    stay = first.iloc[random.sample(range(len(first)), (len(first) + 1) // 2)]
    grown = pd.concat([newcomers, stay], ignore_index=True)
    shares = assign_splits(grown, splits, parent)
    again = assign_splits(grown.iloc[::-1], splits, parent)
    kept = shares.rows[shares.rows["row_id"].isin(stay["row_id"])]
    assert len(kept) == len(stay)
    old = parent.set_index("row_id").loc[kept["row_id"], ["group", "split"]].reset_index()
    pd.testing.assert_frame_equal(kept[["row_id", "group", "split"]].reset_index(drop=True), old)
    assert set(shares.left_out["row_id"]) <= set(newcomers["row_id"])
    assert set(shares.left_out["row_id"]) | set(shares.rows["row_id"]) == set(grown["row_id"])
    everything = pd.concat([shares.rows, parent[~parent["row_id"].isin(grown["row_id"])]])
    assert not leaks_by_hand(everything, splits.near)
    assert split_of(again.rows) == split_of(shares.rows)


@given(tables, st.integers(0, 10), st.data())
@settings(deadline=None)
def test_leaks_are_found_exactly_where_there_are_any(
    rows: pd.DataFrame, near: int, data: st.DataObject
) -> None:
    drawn = data.draw(st.lists(st.sampled_from(["a", "b"]), min_size=len(rows), max_size=len(rows)))
    rows = rows.assign(split=pd.Series(drawn, index=rows.index, dtype="str"))
    assert find_leaks(rows, near).empty == (not leaks_by_hand(rows, near))


@pytest.mark.parametrize(
    ("shared", "one", "other"),
    [
        ("prompt", row("1", "A  fox", FAR[0]), row("2", "\uff41 FOX ", FAR[1])),
        ("reference", row("1", "a fox", FAR[0], "r1 r2"), row("2", "an owl", FAR[1], "r2")),
        (
            "picture",
            row("1", "a fox"),
            row("2", "an owl") | {"image_sha256": row("1", "")["image_sha256"]},
        ),
        ("look", row("1", "a fox", flipped()), row("2", "an owl", flipped(3, 20, 40, 63))),
    ],
)
def test_a_planted_leak_is_named(shared: str, one: dict[str, Any], other: dict[str, Any]) -> None:
    rows = table(one, other, row("3", "a whale", FAR[3])).assign(split=["train", "test", "test"])
    leaks = find_leaks(rows).to_dict("records")
    assert len(leaks) == 1
    assert leaks[0]["shared"] == shared
    sides = {leaks[0]["row_id"]: leaks[0]["split"]}
    sides |= {leaks[0]["other_row_id"]: leaks[0]["other_split"]}
    assert sides == {"1": "train", "2": "test"}


def test_a_prompt_is_the_same_in_whatever_case_and_form() -> None:
    assert prompt_key(" \ufb01ve\tFOXES\n") == "five foxes"
    # Folding the case of composed letters may take them apart, and of decomposed ones not.
    assert prompt_key("\u03aa\u0301") == prompt_key("\u0390")
    assert prompt_key("STRASSE") == prompt_key("straße")


def test_pictures_farther_apart_than_the_recipe_says_are_no_leak() -> None:
    rows = table(row("1", "a fox", flipped()), row("2", "an owl", flipped(1, 2, 3, 4, 5)))
    rows = rows.assign(split=["train", "test"])
    assert find_leaks(rows, 4).empty
    assert len(find_leaks(rows, 5)) == 1


def parent_of(*rows: dict[str, Any], splits: list[str]) -> pd.DataFrame:
    groups = [f"group {number}" for number in range(len(rows))]
    return table(*rows).assign(group=groups, split=splits)


def test_a_newcomer_between_two_splits_is_left_out_and_says_why() -> None:
    old = [row("1", "a fox", flipped()), row("2", "an owl", flipped(*range(8)))]
    between = row("3", "a whale", flipped(0, 1, 2, 3))
    parent = parent_of(*old, splits=["train", "test"])
    shares = assign_splits(table(*old, between), THIRDS, parent)
    assert split_of(shares.rows) == {"1": "train", "2": "test"}
    assert shares.left_out.to_dict("records") == [
        {"row_id": "3", "reason": "belongs with released rows of the splits test and train"}
    ]


def test_of_newcomers_that_bridge_together_only_as_many_are_left_out_as_must() -> None:
    old = [row("1", "a fox"), row("2", "an owl")]
    chain = [row("3", "a fox", ref="r"), row("4", "x", FAR[1], "r"), row("5", "an owl", FAR[1])]
    parent = parent_of(*old, splits=["train", "test"])
    for rows in ([*chain, *old], [*old, *reversed(chain)]):
        shares = assign_splits(table(*rows), THIRDS, parent)
        assert split_of(shares.rows) == {"1": "train", "2": "test", "3": "train", "4": "train"}
        assert list(shares.left_out["row_id"]) == ["5"]


def test_released_rows_that_are_gone_bind_newcomers_still() -> None:
    parent = parent_of(row("1", "a fox"), splits=["test"])
    for seed in range(5):
        shares = assign_splits(table(row(f"new {seed}", "A fox")), THIRDS, parent)
        assert list(shares.rows["split"]) == ["test"]
        assert list(shares.rows["group"]) == ["group 0"]


def test_a_recipe_that_contradicts_its_parent_release_is_refused() -> None:
    old = [row("1", "a fox", flipped()), row("2", "an owl", flipped(1, 2, 3, 4, 5))]
    parent = parent_of(*old, splits=["train", "test"])
    with pytest.raises(RecipeError, match=r"splits test and train belong together.*splits\.near"):
        assign_splits(table(*old), THIRDS.model_copy(update={"near": 5}), parent)
    with pytest.raises(RecipeError, match=r"has a split 'test', and splits\.ratios has not"):
        assign_splits(table(*old), Splits(), parent)
    frozen = Splits(ratios={"train": 1.0, "test": 0})
    shares = assign_splits(table(*old, row("3", "a whale", FAR[2])), frozen, parent)
    assert split_of(shares.rows) == {"1": "train", "2": "test", "3": "train"}


def test_shares_are_as_the_ratios_say_and_the_salt_deals_anew() -> None:
    rows = table(*(row(f"{number}", f"prompt {number}") for number in range(4000)))
    splits = Splits(ratios={"train": 0.8, "validation": 0.15, "test": 0.05})
    counts = assign_splits(rows, splits).rows["split"].value_counts(normalize=True)
    assert dict(counts) == pytest.approx(splits.ratios, abs=0.02)
    turned = Splits(ratios=dict(reversed(splits.ratios.items())))
    assert split_of(assign_splits(rows, turned).rows) == split_of(assign_splits(rows, splits).rows)
    salted = assign_splits(rows, splits.model_copy(update={"salt": "x"})).rows
    assert split_of(salted) != split_of(assign_splits(rows, splits).rows)


def test_a_split_never_changes_from_version_to_version() -> None:
    rows = table(*(row(name, name) for name in ("a fox", "an owl", "a whale", "a bear")))
    assert split_of(assign_splits(rows, THIRDS).rows) == {
        "a fox": "test",
        "an owl": "train",
        "a whale": "test",
        "a bear": "train",
    }


hashes = st.lists(looks, max_size=60, unique=True)


@given(hashes, st.integers(0, 10))
@settings(deadline=None)
def test_near_pairs_are_those_that_looking_at_every_pair_finds(made: list[str], near: int) -> None:
    numbers = [int(text, 16) for text in made]
    wanted = {
        (one, other)
        for other in range(len(made))
        for one in range(other)
        if (numbers[one] ^ numbers[other]).bit_count() <= near
    }
    found = {
        (min(pair), max(pair))
        for batch in near_pairs(hashes_of(made), near)
        for pair in zip(*(side.tolist() for side in batch), strict=True)
    }
    assert found == wanted


@given(st.lists(st.none() | looks, max_size=60), st.integers(0, 10))
@settings(deadline=None)
def test_the_first_of_those_that_look_alike_stands_for_them(
    made: list[str | None], near: int
) -> None:
    kept: list[int] = []
    wanted = []
    for position, text in enumerate(made):
        alike = [
            earlier
            for earlier in kept
            if text is not None
            and (int(str(made[earlier]), 16) ^ int(text, 16)).bit_count() <= near
        ]
        wanted.append(alike[0] if alike else position)
        if text is not None and not alike:
            kept.append(position)
    assert first_alike(pd.Series(made, dtype="str"), near).tolist() == wanted


def test_a_hundred_thousand_rows_are_shared_out_in_no_quadratic_time() -> None:
    # Every pair compared would be five thousand million; a test with a limit of minutes sees that.
    numbers = np.random.default_rng(1).integers(0, 2**63, 100_000)
    rows = table(*(row(f"{n}", f"prompt {i}", f"{n:016x}") for i, n in enumerate(numbers.tolist())))
    assert find_leaks(assign_splits(rows, THIRDS).rows).empty
