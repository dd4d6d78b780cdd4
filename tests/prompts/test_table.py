import csv
import gzip
import io
from pathlib import Path
from typing import Literal

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanobanana_pipeline.errors import PromptTableError, StorageUnavailable
from nanobanana_pipeline.prompts.readers import tsv
from nanobanana_pipeline.prompts.readers.base import TableScan
from nanobanana_pipeline.prompts.readers.tsv import TSV
from nanobanana_pipeline.prompts.table import read_prompt_table
from nanobanana_pipeline.storage import ObjectStore
from tests.prompts.conftest import Check, jsonl

PARTI = Path(__file__).parents[3] / "shared" / "data" / "PartiPrompts.tsv"


def _cells(path: Path) -> list[dict[str, str | None]]:
    cells: list[dict[str, str | None]] = read_prompt_table(path).rows.to_pylist()
    return cells


def _read_tsv(text: str) -> list[list[str]]:
    chunks = list(TSV.read(io.BytesIO(text.encode("utf-8-sig")), TableScan("t.tsv")))
    columns = [pa.chunked_array([c.columns[n] for c in chunks]) for n in chunks[0].columns]
    return [[cell or "" for cell in row] for row in zip(*map(_to_list, columns), strict=True)]


def _to_list(column: pa.ChunkedArray) -> list[str | None]:
    cells: list[str | None] = column.to_pylist()
    return cells


@pytest.mark.skipif(not PARTI.exists(), reason="the published table lies outside the repository")
def test_a_published_table_with_bare_quotes_is_read_to_the_letter() -> None:
    table = read_prompt_table(PARTI)
    lines = PARTI.read_bytes().decode().split("\n")[1:-1]
    assert table.broken == ()
    assert table.rows["prompt"].to_pylist() == [line.split("\t")[0] for line in lines]
    assert table.rows.num_rows == 1632


@pytest.mark.parametrize("name", ["Prompt", "prompt", " PROMPT ", "\ufeffprompt"])
def test_column_names_are_taken_as_people_write_them(tmp_path: Path, name: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(f"{name},Negative Prompt,noise-clip-std,,Art Style\na,b,2,x,y\n", "utf-8")
    assert read_prompt_table(path).rows.column_names == [
        "prompt",
        "negative_prompt",
        "noise_clip_std",
        "column_4",
        "art_style",
    ]


def test_csv_cells_keep_line_breaks_quotes_and_words_for_nothing(tmp_path: Path) -> None:
    path = tmp_path / "t.CSV"
    path.write_bytes(b'prompt,note\r\n"a ""b"",\nc\r\n d",NA\r\n\r\n null ,\r\n')
    assert _cells(path) == [
        {"prompt": 'a "b",\nc\r\n d', "note": "NA"},
        {"prompt": " null ", "note": None},
    ]


def test_tsv_cells_are_literal_unless_wrapped_from_tab_to_tab(tmp_path: Path) -> None:
    path = tmp_path / "t.tsv.gz"
    content = 'prompt\tnote\n"G I" thick\t"a"\n"a\tb\n""c"""\t5" disk\n"open\t""\n'
    path.write_bytes(gzip.compress(content.encode()))
    assert _cells(path) == [
        {"prompt": '"G I" thick', "note": "a"},
        {"prompt": 'a\tb\n"c"', "note": '5" disk'},
        {"prompt": '"open', "note": None},
    ]


_FIELDS = st.text(st.sampled_from('ab"\t\r\n é'), max_size=6)


@given(
    rows=st.lists(st.tuples(_FIELDS, _FIELDS).filter(any), max_size=5),
    quoting=st.sampled_from([0, 1]),  # minimal, all
    block=st.integers(1, 9),
)
def test_what_excel_writes_as_tsv_comes_back(
    rows: list[tuple[str, str]], quoting: Literal[0, 1], block: int
) -> None:
    text = io.StringIO()
    writer = csv.writer(text, "excel-tab", quoting=quoting)
    writer.writerows([("prompt", "note"), *rows])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tsv, "BLOCK_CHARACTERS", block)
        assert _read_tsv(text.getvalue()) == [list(row) for row in rows]


_LITERAL = st.text(st.sampled_from('ab" é'), max_size=6).filter(lambda t: not t.startswith('"'))


@given(
    rows=st.lists(st.tuples(_LITERAL, _LITERAL), max_size=5),
    newline=st.sampled_from(["\n", "\r\n", "\r"]),
    block=st.integers(1, 9),
)
def test_what_iana_calls_tsv_comes_back(
    rows: list[tuple[str, str]], newline: str, block: int
) -> None:
    text = newline.join("\t".join(row) for row in [("prompt", "note"), *rows])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tsv, "BLOCK_CHARACTERS", block)
        assert _read_tsv(text) == [list(row) for row in rows]


@pytest.mark.parametrize(
    ("name", "content", "faults"),
    [
        ("t.csv", "prompt,n\na\nb,1,2\n\nc,3\n", [(1, "2"), (2, "2")]),
        ("t.csv", 'prompt,n\n"a"b,1\nc,3\n', [(1, "double the quotes")]),
        ("t.csv", 'prompt,n\n"a,1\nx,"2"\nc,3\n', [(1, "line 2 to 3")]),
        ("t.tsv", "prompt\tn\na\nc\t3\n", [(1, "1 fields, and the header has 2")]),
        ("t.jsonl", '{"prompt": \n[1]\n\n{"prompt":"c","n":3}\n', [(1, "JSON"), (2, "object")]),
        ("t.jsonl", '{"a":1,"a":2}\n{"a":NaN}\n{"prompt":"c"}', [(1, "twice"), (2, "NaN")]),
        ("t.jsonl", '{"\\ud800":1}\n{"prompt":"c"}\n' + "[" * 99_999, [(1, "key"), (3, "deep")]),
    ],
)
def test_a_row_that_cannot_be_taken_apart_is_quarantined_and_the_rest_goes_on(
    check: Check, name: str, content: str, faults: list[tuple[int, str]]
) -> None:
    checked = check(name, content)
    assert checked.prompts["prompt"].tolist() == ["c"]
    assert checked.quarantine["row"].tolist() == [row for row, _ in faults]
    for reason, (_, expected) in zip(checked.quarantine["reason"], faults, strict=True):
        assert expected in reason


def _parquet(**columns: object) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file)
    return file.getvalue()


_TORN = _parquet(prompt=[f"a long prompt, the {i}th" for i in range(2000)])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.xlsx", b"", "no known format"),
        ("t.parquet.gz", b"", "no known format"),
        ("t.csv", b"", "is empty"),
        ("t.jsonl", b"\n\n", "is empty"),
        ("t.csv", b"prompt\n", "no rows"),
        ("t.parquet", _parquet(prompt=pa.array([], pa.string())), "no rows"),
        ("t.csv", b"a cat,1024\na dog,1024\n", "no prompt column"),
        ("t.jsonl", b"[1]\n", "no prompt column .*row 1: is not a JSON object"),
        ("t.parquet", _parquet(text=["a"]), "no prompt column"),
        ("t.csv", b"Prompt,prompt\na,b\n", "mean the same, 'Prompt' and 'prompt'"),
        ("t.jsonl", b'{"prompt":"a"}\n{"PROMPT":"a"}\n', "mean the same"),
        ("t.csv", "prompt\na\nb é\n".encode("latin-1"), r"byte 0xE9 at offset 11, line 3"),
        ("t.csv", "prompt\na\n".encode("utf-16"), "is UTF-16"),
        ("t.csv", "prompt\na\n".encode("utf-16-le"), "may be UTF-16"),
        ("t.jsonl", b'{"prompt":"a"}\n{"prompt":"\xc3', "offset 26, line 2"),
        ("t.csv", b'prompt,n\na,1\nb,"2\nc,3\n', "quote in or after line 3"),
        ("t.csv.gz", b"prompt\na\n", "cannot be unpacked"),
        ("t.csv.gz", gzip.compress(b"prompt\na\n", mtime=0)[:-9], "cannot be unpacked"),
        ("t.parquet", b"PAR1 is not all it takes", "cannot be read as Parquet"),
        ("t.parquet", _TORN[:99] + b"\xff" * 99 + _TORN[198:], "cannot be read as Parquet"),
        ("t.parquet", _parquet(prompt=[1, 2]), "holds int64 in its column 'prompt'"),
        (
            "t.parquet",
            _parquet(prompt=pa.array([b"\xff"]).view(pa.string())),
            "cannot be read as Parquet",
        ),
        ("t.csv", b"prompt" + b",c" * 9, "mean the same"),
        ("t.csv", ",".join(["prompt", *map(str, range(1000))]).encode(), "more than 1000 columns"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused_in_one_line(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(PromptTableError, match=message) as refused:
        read_prompt_table(path)
    assert str(refused.value).startswith(str(path))
    assert "\n" not in str(refused.value)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PromptTableError, match="does not exist"):
        read_prompt_table(tmp_path / "t.csv")
    (tmp_path / "d.csv").mkdir()
    with pytest.raises(PromptTableError, match="cannot be opened"):
        read_prompt_table(tmp_path / "d.csv")


def test_an_encoding_error_far_into_a_file_is_found_at_its_place(tmp_path: Path) -> None:
    lines = "prompt\n" + "é" * 699_999 + "\n"
    path = tmp_path / "t.csv"
    path.write_bytes(lines.encode() + b"x\xff\n")
    with pytest.raises(PromptTableError, match=r"0xFF at offset 1,400,007, line 3"):
        read_prompt_table(path)


def test_parquet_text_of_every_arrow_kind_is_text(tmp_path: Path) -> None:
    words = pa.array(["a", None, ""])
    kinds = {
        "prompt": words.dictionary_encode(),
        "large": words.cast(pa.large_string()),
        "view": words.cast(pa.string_view()),
        "nothing": pa.nulls(3),
    }
    pq.write_table(pa.table(kinds), tmp_path / "t.parquet")
    table = read_prompt_table(tmp_path / "t.parquet")
    assert table.rows["nothing"].null_count == 3
    for name in ("prompt", "large", "view"):
        assert table.rows[name].to_pylist() == ["a", None, None]


def test_a_table_on_s3_is_read_with_the_stores_credentials(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put("tables/t.jsonl", jsonl({"prompt": "a"}).encode())
    url = store.uri("tables/t.jsonl")
    table = read_prompt_table(url, store)
    assert (table.source, table.rows.num_rows) == (url, 1)
    with pytest.raises(PromptTableError, match="NANOBANANA_BUCKET"):
        read_prompt_table(url)
    with pytest.raises(PromptTableError, match="NoSuchKey"):
        read_prompt_table(store.uri("tables/none.csv"), store)

    def away(_url: str) -> bytes:
        raise StorageUnavailable("later")

    monkeypatch.setattr(store, "open_url", away)
    with pytest.raises(StorageUnavailable):
        read_prompt_table(url, store)


def test_the_same_frame_written_by_pandas_reads_the_same(tmp_path: Path) -> None:
    frame = pd.DataFrame({"prompt": ["a", 'b "c"\n\t'], "width": [1024, 2048], "x": [0.1, None]})
    frame.to_csv(tmp_path / "t.csv", index=False)
    frame.to_csv(tmp_path / "t.tsv", index=False, sep="\t")
    frame.to_json(tmp_path / "t.jsonl", orient="records", lines=True)
    frame.to_parquet(tmp_path / "t.parquet", index=False)
    first, *others = [_cells(path) for path in sorted(tmp_path.iterdir())]
    assert len(others) == 3
    assert all(other == first for other in others)
