"""Cells: which row, under which seed, asks for which request."""

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanobanana_pipeline.errors import PlanError
from nanobanana_pipeline.generation.planning.cells import (
    CELLS_AT_ONCE,
    LAST_SEED,
    Cells,
    build_cells,
    check_seed,
)
from nanobanana_pipeline.provider.modelslab.request import ModelsLabRequest
from nanobanana_pipeline.request import request_key

DEFAULTS = ModelsLabRequest.default_parameters()


def prompt_set(count: int, **columns: object) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "prompt_id": [f"row-{number}" for number in range(count)],
            "prompt": [f"animal {number}" for number in range(count)],
            **columns,
        }
    )


def drawn(
    rows: pd.DataFrame, *, seed: int = 7, limit: int | None = None, realm: str = "emulator"
) -> Cells:
    return build_cells(
        rows, seed=seed, parameters=DEFAULTS, realm=realm, limit=limit, model=ModelsLabRequest
    )


def test_every_row_has_a_cell_with_its_requests_key() -> None:
    cells = drawn(prompt_set(3))
    assert cells.frame.columns.to_list() == [
        "prompt_id",
        "prompt",
        "request_key",
        "seed_asked",
        "samples",
        "requested",
    ]
    expected = [
        request_key(ModelsLabRequest(prompt=f"animal {number}", seed=7), realm="emulator")
        for number in range(3)
    ]
    assert cells.frame["request_key"].to_list() == expected
    assert cells.frame["requested"].all()
    assert [request.seed for request in cells.requests([2, 0])] == [7, 7]
    assert [request.prompt for request in cells.requests([2, 0])] == ["animal 2", "animal 0"]


def test_rows_are_drawn_alike_however_many_there_are() -> None:
    count = 2 * CELLS_AT_ONCE + 1
    own = [None if number % 2 else number + 1 for number in range(count)]
    cells = drawn(prompt_set(count, seed=pd.array(own, dtype="Int64")))
    assert cells.frame["request_key"].nunique() == len(cells.frame) == count
    last = prompt_set(count, seed=pd.array(own, dtype="Int64")).iloc[-3:]
    assert drawn(last).frame["request_key"].to_list() == cells.frame["request_key"].to_list()[-3:]
    assert cells.frame["seed_asked"].to_list()[-3:] == [count - 2, 7, count]
    found = cells.requests(cells.frame.index)
    assert [request.prompt for request in found] == cells.frame["prompt"].to_list()
    assert drawn(prompt_set(0)).frame.empty


def test_seed_and_realm_change_every_key() -> None:
    keys = [
        *drawn(prompt_set(2)).frame["request_key"],
        *drawn(prompt_set(2), seed=8).frame["request_key"],
        *drawn(prompt_set(2), realm="modelslab").frame["request_key"],
    ]
    assert len(set(keys)) == 6


def test_a_rows_own_columns_go_first_and_missing_ones_do_not() -> None:
    rows = prompt_set(
        2,
        seed=pd.array([99, None], dtype="Int64"),
        samples=pd.array([None, 3], dtype="Int64"),
        noise_clip_std=pd.array([None, 1.5], dtype="Float64"),
        watermark=pd.array(["yes", None], dtype="str"),
        mood=["an attribute", "that is no field"],
    )
    first, second = drawn(rows).requests([0, 1])
    assert isinstance(first, ModelsLabRequest)
    assert isinstance(second, ModelsLabRequest)
    assert (first.seed, first.samples, first.noise_clip_std, first.watermark) == (99, 1, 2.5, "yes")
    assert (second.seed, second.samples, second.noise_clip_std) == (7, 3, 1.5)
    assert drawn(rows).frame["seed_asked"].to_list() == [99, 7]
    assert drawn(rows).frame["samples"].to_list() == [1, 3]


@given(
    st.sets(st.text(max_size=8), min_size=1, max_size=30),
    st.integers(1, 30),
    st.integers(1, 30),
)
def test_a_larger_pilot_holds_a_smaller_one_whatever_the_order_of_the_rows(
    ids: set[str], one: int, other: int
) -> None:
    def pilot(names: list[str], limit: int) -> set[str]:
        rows = pd.DataFrame({"prompt_id": names, "prompt": "x"})
        frame = drawn(rows, limit=limit).frame
        return set(frame.loc[frame["requested"], "prompt_id"])

    names = sorted(ids)
    small, large = pilot(names, min(one, other)), pilot(names, max(one, other))
    assert small <= large
    assert len(small) == min(one, other, len(ids))
    assert pilot(names[::-1], min(one, other)) == small


@pytest.mark.parametrize("seed", [1, LAST_SEED])
def test_seeds_from_one_on_are_taken(seed: int) -> None:
    assert check_seed(seed) == seed


@pytest.mark.parametrize(
    ("seed", "reason"), [(0, "random seed"), (-1, "out of range"), (LAST_SEED + 1, "out of range")]
)
def test_other_seeds_are_refused_with_the_reason(seed: int, reason: str) -> None:
    with pytest.raises(PlanError, match=f"seed {seed}.*{reason}"):
        drawn(prompt_set(1), seed=seed)
