import csv
import io
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from nanobanana_pipeline.prompts.checked_prompts import fingerprint
from nanobanana_pipeline.prompts.table import read_prompt_table
from nanobanana_pipeline.prompts.validation import check_prompts
from nanobanana_pipeline.provider.modelslab.request import ModelsLabRequest
from tests.prompts.conftest import Check, jsonl

SAMPLE = Path(__file__).parents[2] / "prompts" / "sample.csv"

_NUMBERS = "1024| 2048 |1024.0|1e3|+1056|1000|٢٠٤٨|0|-0|-0.0|9|4|1.5|nan|inf|1e999|_1|1_0|+-1|\x1c"
_WORDS = "yes|NO| true |False|maybe|\u2003|\ud800|a\r\n|9007199254740991|9007199254740993.0"
_EDGES = st.sampled_from([*_NUMBERS.split("|"), *_WORDS.split("|"), "1" * 400, "1" * 5000])
_CELLS: st.SearchStrategy[Any] = (
    st.none()
    | st.booleans()
    | st.integers(-5, 5)
    | st.integers(32, 64).map(lambda n: n * 32)
    | st.integers(-(10**30), 10**30)
    | st.floats()
    | _EDGES
    | st.text(max_size=5)
    | st.lists(st.integers(), max_size=1)
)
_ROWS = st.fixed_dictionaries(
    {"prompt": st.just("a cat") | _CELLS},
    optional={name: _CELLS for name in ModelsLabRequest.table_fields() if name != "prompt"},
)


def _lawful(row: dict[str, Any]) -> ModelsLabRequest | None:
    """What the model makes of a row; empty cells are not given, and seed 0 is no seed."""
    given = {name: value for name, value in row.items() if value is not None and value != ""}
    try:
        request = ModelsLabRequest(**{"seed": 1, **given})
    except ValidationError:
        return None
    return request if request.seed else None


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(row=_ROWS, as_csv=st.booleans())
def test_a_row_is_good_exactly_if_the_model_accepts_it(
    check: Check, row: dict[str, Any], *, as_csv: bool
) -> None:
    if as_csv:
        row = {name: value for name, value in row.items() if isinstance(value, str)}
        row = {name: value.replace("\ud800", "?") for name, value in row.items()}
    rows = [{"id": "other", "prompt": "another"}, {"id": "row", **row}]
    if as_csv:
        file = io.StringIO()
        writer = csv.DictWriter(file, list({"prompt": "", **rows[1]}))
        writer.writeheader()
        writer.writerows(rows)
        checked = check("t.csv", file.getvalue())
    else:
        checked = check("t.jsonl", jsonl(*rows))
    request = _lawful(row)
    found = checked.prompts[checked.prompts["prompt_id"] == "row"]
    if request is None:
        assert found.empty
        assert set(checked.quarantine["row"]) == {2}
        return
    assert checked.quarantine.empty
    given = {name for name, value in row.items() if value is not None and value != ""}
    assert set(found.columns) == {"prompt_id", "prompt", *given}
    assert {name: found[name].item() for name in given} == {
        name: getattr(request, name) for name in given
    }


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("prompt", " \t ", "blank"),
        ("prompt", "", "blank"),
        ("prompt", 5, "is not text: put it in quotes"),
        ("prompt", "a\ud800", "has a lone surrogate at character 2"),
        ("negative_prompt", ["a"], "is not text: put it in quotes"),
        ("style", "a\udc00", "has a lone surrogate at character 2"),
        ("width", 1000, "must be 1024 to 2048 and divisible by 32"),
        ("height", True, "not a number"),
        ("samples", 9, "must be less than or equal to 4"),
        ("samples", 1.5, "must be a valid integer, got a number with a fractional part"),
        ("noise_scale_start", "abc", "not a number"),
        ("watermark", "perhaps", "must be 'yes' or 'no'"),
        ("seed", 0, "0 asks the provider for a random seed: give 1 or more, or leave it empty"),
        ("id", " ", "blank"),
        ("id", None, "blank"),
        ("id", "a\x85b", "has a control character"),
        ("id", "x" * 201, "is 201 characters long, and an id has at most 200"),
    ],
)
def test_each_fault_is_named_with_its_place_and_remedy(
    check: Check, column: str, value: object, reason: str
) -> None:
    good = {"id": "g", "prompt": "a cat"}
    checked = check("t.jsonl", jsonl(good, {"id": "b", "prompt": "a dog", column: value}))
    assert checked.prompts["prompt_id"].tolist() == ["g"]
    assert checked.quarantine[["row", "column", "reason"]].to_numpy().tolist() == [
        [2, column, reason]
    ]
    assert len(checked.quarantine["value"].item()) <= 201


def test_a_row_with_several_faults_has_an_entry_for_each(check: Check) -> None:
    content = "id,prompt,width,samples\na,,1000,9\nb,x,1024,1\na,y,1024,0\n"
    checked = check("t.csv", content)
    assert checked.quarantine.to_numpy().tolist() == [
        [1, "prompt", "", "blank"],
        [1, "width", "1000", "must be 1024 to 2048 and divisible by 32"],
        [1, "samples", "9", "must be less than or equal to 4"],
        [3, "samples", "0", "must be greater than or equal to 1"],
        [3, "id", "a", "duplicate of row 1"],
    ]
    types = checked.quarantine.dtypes.astype(str).to_dict()
    assert types == {"row": "int64", "column": "str", "value": "str", "reason": "str"}


def test_a_table_of_bad_rows_only_leaves_no_prompts(check: Check) -> None:
    for content in ("prompt,width\na,1\n", "prompt,width\na\n"):
        checked = check("t.csv", content)
        assert list(checked.prompts.columns) == ["prompt_id", "prompt"]
        assert (len(checked.prompts), len(checked.quarantine)) == (0, 1)


def test_prompt_id_is_the_id_and_id_is_carried_along(check: Check) -> None:
    checked = check("t.csv", "id,Prompt ID,prompt\n007,p,a cat\n")
    assert checked.prompts.to_dict("records") == [
        {"prompt_id": "p", "prompt": "a cat", "id": "007"}
    ]


def test_without_an_id_column_equal_rows_are_one_whatever_their_annotations(check: Check) -> None:
    checked = check("t.csv", "prompt,width,note\na,1024,x\na,1024.0,y\na,,z\na ,1024,\n")
    reason = "same prompt and parameters as row 1; add an id column to keep both"
    assert checked.quarantine.to_numpy().tolist() == [[2, "prompt", "a", reason]]
    again = check("u.jsonl", jsonl({"prompt": "a"}, {"prompt": "a ", "width": "1024"}))
    assert set(again.prompts["prompt_id"]) < set(checked.prompts["prompt_id"])
    assert check("v.csv", "prompt\na cat\n").prompts["prompt_id"].item() == "6c2ed3bea0cbbaec"


def _frame() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "prompt": ["a cat", 'say "hé"\n\tnow', " x ", "d"],
            "width": pd.array([1024, 2048, None, 1056], "Int64"),
            "noise_clip_std": [2.5, None, 3.0, -0.0],
            "watermark": ["yes", "no", None, "no"],
            "code": ["007", "1.10", "é", None],
            "count": pd.array([5, -7, None, 2**60], "Int64"),
            "score": [5.0, 0.1, None, 1e-7],
            "flag": pd.array([True, False, None, True], "boolean"),
            "empty": [None] * 4,
        }
    )


def _write(frame: pd.DataFrame, path: Path) -> None:
    match path.suffix:
        case ".csv":
            frame.to_csv(path, index=False)
        case ".tsv":
            frame.to_csv(path, index=False, sep="\t")
        case ".jsonl":
            frame.to_json(path, orient="records", lines=True)
        case _:
            frame.to_parquet(path, index=False)


@pytest.mark.parametrize("ids", [False, True])
def test_the_same_content_has_the_same_fingerprint_in_any_format_and_order(
    tmp_path: Path, *, ids: bool
) -> None:
    frame = _frame().assign(**({"Prompt-ID": list("dcba")} if ids else {}))
    turned = frame.iloc[::-1, ::-1].rename(columns=str.upper)
    found = []
    for part, order in (("a", frame), ("b", turned)):
        for suffix in (".csv", ".tsv", ".jsonl", ".parquet"):
            path = tmp_path / f"{part}{suffix}"
            _write(order, path)
            checked = check_prompts(read_prompt_table(path))
            assert checked.quarantine.empty
            found.append(checked.prompts)
    for other in found[1:]:
        pd.testing.assert_frame_equal(other, found[0])
    assert len({fingerprint(prompts) for prompts in found}) == 1
    assert found[0].dtypes.astype(str).to_dict() == {
        "prompt_id": "str",
        "prompt": "str",
        "width": "Int64",
        "noise_clip_std": "Float64",
        "watermark": "str",
        "code": "str",
        "count": "Int64",
        "flag": "boolean",
        "score": "Float64",
    }


def test_the_fingerprint_sees_every_name_type_and_value_and_never_changes(check: Check) -> None:
    tables = [
        "prompt,x\na,5\n",
        "prompt,y\na,5\n",
        "prompt,x\na,5.0\n",
        "prompt,x\na,05\n",
        "prompt,x\na ,5\n",
        "prompt,width\na,1024\n",
        "prompt\na\n",
    ]
    found = [fingerprint(check("t.csv", content).prompts) for content in tables]
    assert len(set(found)) == len(tables)
    assert found[0] == ("9b91d179c06d8b646dbc5b7b601907e183fc5c1e6f9095ad45a5a225af710a9c")


@pytest.mark.parametrize(
    ("cells", "values", "dtype"),
    [
        (["true", "FALSE", ""], [True, False], "boolean"),
        (["true", "1"], ["true", "1"], "str"),
        (["0", "-9223372036854775808"], [0, -(2**63)], "Int64"),
        (["9223372036854775808"], ["9223372036854775808"], "str"),
        (["5", "5.5"], ["5", "5.5"], "str"),
        (["-0", "5"], ["-0", "5"], "str"),
        (["5.0", "-0.0", "1e+22"], [5.0, -0.0, 1e22], "Float64"),
        (["1e22"], ["1e22"], "str"),
        (["1.10"], ["1.10"], "str"),
        (["nan", "1.5"], ["nan", "1.5"], "str"),
        (["inf"], ["inf"], "str"),
    ],
)
def test_attributes_are_typed_only_where_nothing_is_lost(
    check: Check, cells: list[str], values: list[object], dtype: str
) -> None:
    rows = "".join(f"p{number},a cat,{cell}\n" for number, cell in enumerate(cells))
    found = check("t.csv", f"id,prompt,x\n{rows}").prompts["x"]
    assert str(found.dtype) == dtype
    assert [repr(value) for value in found.dropna().tolist()] == list(map(repr, values))


def test_nested_values_and_dates_become_text(check: Check) -> None:
    found = check("t.jsonl", jsonl({"prompt": "a", "tags": {"b": [1.0, None], "a": "é"}})).prompts
    assert found["tags"].item() == '{"a":"é","b":[1.0,null]}'


def test_the_sample_table_is_all_good() -> None:
    checked = check_prompts(read_prompt_table(SAMPLE))
    assert checked.quarantine.empty
    assert len(checked.prompts) == 12
    assert set(checked.prompts["width"]) == set(checked.prompts["height"]) == {1024}
