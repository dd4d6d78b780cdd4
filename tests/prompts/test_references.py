"""Reference pictures: read once, kept under their hashes, and part of what a table says."""

import hashlib
import io
import json
import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from nanobanana_pipeline.bucket_keys import reference_key
from nanobanana_pipeline.cli import app
from nanobanana_pipeline.errors import PromptTableError, StorageUnavailable
from nanobanana_pipeline.prompts import references as module
from nanobanana_pipeline.prompts.checked_prompts import CheckedPrompts, attributes_of, fingerprint
from nanobanana_pipeline.prompts.prompt_set import load, snapshot
from nanobanana_pipeline.prompts.references import References, without_secrets
from nanobanana_pipeline.prompts.table import read_prompt_table
from nanobanana_pipeline.prompts.validation import check_prompts
from nanobanana_pipeline.provider.downloads import Downloader
from nanobanana_pipeline.provider.modelslab.request import ModelsLabRequest
from nanobanana_pipeline.storage import ObjectStore
from tests.conftest import API_KEY, Emulators
from tests.prompts.conftest import jsonl
from tests.provider.servers import Handler, Server, always, answer, serving

SECRET = "X-Amz-Signature=5ec8e7"
LOCAL = ("127.0.0.1",)

Check = Callable[..., CheckedPrompts]


def picture(colour: str = "red", size: tuple[int, int] = (1200, 900), kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, colour).save(out, kind)
    return out.getvalue()


RED, BLUE = picture(), picture("blue", (300, 300), "JPEG")


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def check(tmp_path: Path, store: ObjectStore) -> Check:
    """Writes rows as JSONL, reads and checks them, and keeps their references."""

    def write_and_check(*rows: Mapping[str, object], keep: bool = True) -> CheckedPrompts:
        path = tmp_path / "t.jsonl"
        path.write_text(jsonl(*rows))
        return check_prompts(
            read_prompt_table(path), References(Downloader(LOCAL), store, keep=keep)
        )

    return write_and_check


def faults(checked: CheckedPrompts) -> list[tuple[int, str, str]]:
    found = checked.quarantine[["row", "column", "reason"]]
    return list(found.itertuples(index=False, name=None))


# --- what a table gets from its references -------------------------------------------------------


def test_references_are_kept_byte_for_byte_and_named_by_their_hashes(
    check: Check, tmp_path: Path, store: ObjectStore
) -> None:
    (tmp_path / "a.png").write_bytes(RED)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "b.png").write_bytes(BLUE)  # the extension lies
    checked = check(
        {"id": "1", "prompt": "p", "ref_image": "a.png"},
        {"id": "2", "prompt": "p", "ref_image": None},
        {"id": "3", "prompt": "p", "ref_image": [str(tmp_path / "pictures/b.png"), "./a.png"]},
        {"id": "4", "prompt": "p", "ref_image": []},
    )
    assert checked.quarantine.empty
    both = f"{sha256(BLUE)} {sha256(RED)}"
    assert checked.prompts["ref_sha256"].fillna("").to_list() == [sha256(RED), "", both, ""]
    assert checked.prompts["ref_image"].fillna("").to_list() == [
        "a.png",
        "",
        json.dumps([str(tmp_path / "pictures/b.png"), "./a.png"], separators=(",", ":")),
        "",
    ]
    assert attributes_of(checked.prompts.columns) == []
    assert sorted(store.keys("")) == sorted(reference_key(sha256(data)) for data in (RED, BLUE))
    for data in (RED, BLUE):
        stored = store.get(reference_key(sha256(data)))
        assert stored is not None
        assert stored.body == data
    made = snapshot(store, "set", checked)
    loaded = load(store, "set", made.fingerprint)
    pd.testing.assert_frame_equal(loaded, checked.prompts)
    assert fingerprint(loaded) == made.fingerprint


def test_every_format_says_the_same(tmp_path: Path, store: ObjectStore) -> None:
    (tmp_path / "a.png").write_bytes(RED)
    (tmp_path / "b.png").write_bytes(BLUE)
    frame = pd.DataFrame({"prompt": ["p", "q", "r"], "Ref Image": [["a.png", "b.png"], None, []]})
    text = frame.assign(**{"Ref Image": ['["a.png","b.png"]', "", ""]})
    text.to_csv(tmp_path / "1.csv", index=False)
    text.to_csv(tmp_path / "2.tsv", index=False, sep="\t")
    frame.to_json(tmp_path / "3.jsonl", orient="records", lines=True)
    frame.to_parquet(tmp_path / "4.parquet", index=False)
    reader = References(Downloader(), store, keep=False)
    found = [
        check_prompts(read_prompt_table(path), reader) for path in sorted(tmp_path.glob("[1-4].*"))
    ]
    assert [len(checked.quarantine) for checked in found] == [0] * 4
    assert len({fingerprint(checked.prompts) for checked in found}) == 1
    assert list(store.keys("")) == []


def test_a_changed_picture_behind_the_same_name_is_another_table(
    check: Check, tmp_path: Path
) -> None:
    found = []
    for data in (RED, picture("green"), RED):
        (tmp_path / "a.png").write_bytes(data)
        found.append(check({"prompt": "p", "ref_image": "a.png"}).prompts)
    first, changed, again = found
    assert fingerprint(first) == fingerprint(again) != fingerprint(changed)
    assert first["prompt_id"].to_list() != changed["prompt_id"].to_list()
    assert first["ref_image"].to_list() == changed["ref_image"].to_list()


def test_a_reference_counts_by_its_bytes_and_not_by_its_name(check: Check, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(RED)
    checked = check(
        {"prompt": "p", "ref_image": "a.png"},
        {"prompt": "p", "ref_image": "b.png"},
        {"prompt": "p", "ref_image": ["a.png", "b.png"]},
        {"prompt": "p"},
    )
    reason = "same prompt and parameters as row 1; add an id column to keep both"
    assert faults(checked) == [(2, "prompt", reason)]
    assert len(checked.prompts) == 3


def test_a_row_without_a_size_gets_that_of_its_first_reference(
    check: Check, tmp_path: Path
) -> None:
    (tmp_path / "red.png").write_bytes(RED)
    (tmp_path / "blue.jpg").write_bytes(BLUE)
    rows: list[dict[str, object]] = [
        {"ref_image": ["red.png", "blue.jpg"]},
        {"ref_image": ["blue.jpg", "red.png"]},
        {"ref_image": "red.png", "width": 2048},
        {"ref_image": "red.png", "height": 2048, "keep_original_aspect": True},
        {"width": 1024},
        {},
    ]
    found = check(*({"id": str(n), "prompt": "p", **row} for n, row in enumerate(rows))).prompts
    sizes = found[["width", "height"]].astype(object).where(found[["width", "height"]].notna(), 0)
    assert sizes.to_numpy().tolist() == [
        [1376, 1024],
        [1024, 1024],
        [2048, 0],
        [0, 2048],
        [1024, 0],
        [0, 0],
    ]
    assert found["keep_original_aspect"].dropna().to_list() == ["yes"]


@pytest.mark.parametrize(
    ("reference", "size"),
    [
        ((1024, 1024), (1024, 1024)),
        ((2048, 1536), (2048, 1536)),
        ((1100, 1900), (1088, 1888)),
        ((4000, 3000), (2048, 1536)),
        ((512, 512), (1024, 1024)),
        ((512, 768), (1024, 1536)),
        ((1, 1), (1024, 1024)),
        ((8000, 1000), (2048, 1024)),
        ((10, 1000), (1024, 2048)),
        ((2000, 500), (2048, 1024)),
    ],
)
def test_sizes_are_fitted_to_what_the_provider_allows(
    reference: tuple[int, int], size: tuple[int, int]
) -> None:
    assert ModelsLabRequest.fitted_size(*reference) == size


@given(st.integers(1, 64_000), st.integers(1, 64_000))
def test_any_size_is_fitted_within_the_bounds_and_turns_with_its_reference(
    width: int, height: int
) -> None:
    fitted = ModelsLabRequest.fitted_size(width, height)
    assert all(1024 <= side <= 2048 and side % 32 == 0 for side in fitted)
    assert ModelsLabRequest.fitted_size(height, width) == fitted[::-1]
    if 0.5 <= width / height <= 2:
        # Rounding moves each side by 16 pixels at most.
        assert abs(fitted[0] / fitted[1] - width / height) < 0.05


# --- where they are read from --------------------------------------------------------------------


def test_a_url_is_read_once_however_many_rows_name_it(check: Check, store: ObjectStore) -> None:
    with serving(always(answer(RED))) as server:
        url = f"{server.url}/a.png?{SECRET}"
        checked = check(*({"prompt": f"p{n}", "ref_image": url} for n in range(50)))
        assert checked.quarantine.empty
        assert len(server.requests) == 1
    assert set(checked.prompts["ref_image"]) == {url}
    assert list(store.keys("")) == [reference_key(sha256(RED))]


def in_turn(*answers: bytes) -> Handler:
    """Each request gets the next answer, and the last one for ever."""

    def handle(server: Server, peer: socket.socket) -> None:
        while server.read(peer) is not None:
            peer.sendall(answers[min(len(server.requests), len(answers)) - 1])

    return handle


def test_trouble_that_may_pass_is_asked_again(check: Check) -> None:
    handle = in_turn(answer(b"", "503 Busy"), answer(b"", "500 Oops"), answer(RED))
    with serving(handle) as server:
        checked = check({"prompt": "p", "ref_image": server.url})
    assert checked.prompts["ref_sha256"].to_list() == [sha256(RED)]
    assert len(server.requests) == 3


def test_a_table_on_s3_names_its_neighbours_and_no_file_of_this_machine(
    store: ObjectStore, tmp_path: Path
) -> None:
    store.put("tables/pictures/a.png", RED)
    store.put("b.png", BLUE)
    path = tmp_path / "own.png"
    path.write_bytes(RED)
    rows = [
        {"prompt": "1", "ref_image": "pictures/a.png"},
        {"prompt": "2", "ref_image": "../b.png"},
        {"prompt": "3", "ref_image": store.uri("b.png").replace("s3", "S3", 1)},
        {"prompt": "4", "ref_image": str(path)},
        {"prompt": "5", "ref_image": "../" * 9 + "x.png"},
        {"prompt": "6", "ref_image": "pictures/none.png"},
    ]
    store.put("tables/t.jsonl", jsonl(*rows).encode())
    table = read_prompt_table(store.uri("tables/t.jsonl"), store)
    checked = check_prompts(table, References(Downloader(), store, keep=True))
    assert checked.prompts.sort_values("prompt")["ref_sha256"].to_list() == [
        sha256(RED),
        sha256(BLUE),
        sha256(BLUE),
    ]
    assert [(row, reason.partition(":")[0]) for row, _, reason in faults(checked)] == [
        (4, "names a file of this machine, and the table lies on S3"),
        (5, "leads out of the table's bucket"),
        (6, "s3"),
    ]
    assert store.uri("tables/pictures/none.png") + " does not exist" in faults(checked)[2][2]


def test_a_silent_bucket_stops_the_check_and_quarantines_nothing(
    check: Check, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(*_: object) -> None:
        raise StorageUnavailable("no answer")

    monkeypatch.setattr(store, "read_object", silent)
    with pytest.raises(StorageUnavailable):
        check({"prompt": "p", "ref_image": "s3://bucket/a.png"})


# --- what cannot be read -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reference", "reason"),
    [
        ("none.png", "none.png is no file: check the path"),
        ("", None),
        ("  ", "holds a blank name: leave the cell empty for no reference"),
        ([" "], "holds a blank name: leave the cell empty for no reference"),
        (["a.png", None], "holds something that is no text: name each reference in quotes"),
        ([["a.png"]], "holds something that is no text: name each reference in quotes"),
        ("[a.png]", 'is not a JSON list of references: write ["a.png", "b.png"]'),
        ("[" * 99_999, 'is not a JSON list of references: write ["a.png", "b.png"]'),
        (["a.png"] * 17, "names 17 references, and a request has at most 16"),
        (["a.png"] * 16, None),
        (".", "is no file: check the path"),
        ("pipe", "pipe is no file: check the path"),
        ("\0", "is no file: check the path"),
        ('["\\ud800"]', "is no file: check the path"),
        ("x" * 5_000, "File name too long"),
        ("page.html", "page.html: not a PNG, JPEG or WebP picture"),
        ("half.png", "half.png: damaged"),
        ("large.png", "large.png has more than 20,000 bytes"),
        ("ftp://host/a.png", "ftp:// is not read: use https, s3 or a file"),
        ("file:///etc/passwd", "file:// is not read: use https, s3 or a file"),
        ("data:image/png;base64,AAAA", "holds a picture itself: name the file or URL"),
        ("https://localhost/a.png", None),
        ("http://cdn.invalid/a.png", "NANOBANANA_ALLOWED_HOSTS=cdn.invalid"),
        ("http://[bad/a.png", "not a URL"),
        ("s3://", "could not read"),
        ("s3://no-such-bucket-here/a.png", "s3://no-such-bucket-here/a.png"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_each_fault_of_a_reference_is_named(
    check: Check,
    tmp_path: Path,
    store: ObjectStore,
    monkeypatch: pytest.MonkeyPatch,
    reference: object,
    reason: str | None,
) -> None:
    monkeypatch.setattr(module, "MAX_IMAGE_BYTES", 20_000)
    (tmp_path / "a.png").write_bytes(RED)
    (tmp_path / "page.html").write_text("<html>aws_secret_access_key = wJalrXUtnFEMI</html>")
    (tmp_path / "half.png").write_bytes(RED[: len(RED) // 2])
    (tmp_path / "large.png").write_bytes(RED + bytes(20_000))
    os.mkfifo(tmp_path / "pipe")
    if reference == "https://localhost/a.png":
        with serving(always(answer(RED))) as server:
            reference = f"https://localhost:{server.port}/a.png"
            found = faults(check({"prompt": "p", "ref_image": reference}))
        assert server.requests == []
        reason = "which is not a public address"
    else:
        found = faults(check({"prompt": "p", "ref_image": reference}))
    assert [(row, column) for row, column, _ in found] == [(1, "ref_image")] * (reason is not None)
    assert (reason or "") in (found[0][2] if found else "")
    assert "wJalr" not in str(found)
    if reason is not None:
        assert list(store.keys("")) == []


def test_all_references_of_a_row_that_cannot_be_read_are_named(check: Check) -> None:
    checked = check({"prompt": " ", "ref_image": ["x.png", "y.png", "x.png"], "width": 5})
    assert {column for _, column, _ in faults(checked)} == {"prompt", "width", "ref_image"}
    reason = next(reason for _, column, reason in faults(checked) if column == "ref_image")
    assert reason.count("x.png") == reason.count("y.png") == 1


@pytest.mark.parametrize("listed", [False, True])
def test_no_signature_of_a_url_is_shown(
    tmp_path: Path, store: ObjectStore, *, listed: bool
) -> None:
    with serving(always(answer(b"<html>no picture</html>"))) as server:
        places = [
            f"{server.url}/a.png?{SECRET}",
            f"http://user:{SECRET}@127.0.0.1:{server.port}/b.png#{SECRET}",
            f"https://cdn.invalid/c.png?{SECRET}",
        ]
        rows = (
            [{"prompt": "p", "ref_image": places}]
            if listed
            else [{"prompt": str(n), "ref_image": place} for n, place in enumerate(places)]
        )
        path = tmp_path / "t.jsonl"
        path.write_text(jsonl(*rows))
        reader = References(Downloader(LOCAL), store, keep=True)
        checked = check_prompts(read_prompt_table(path), reader)
    shown = checked.quarantine.to_json()
    assert len(checked.quarantine) == len(rows)
    assert "a.png" in shown
    assert SECRET not in shown


def test_cells_are_shown_without_what_may_be_secret() -> None:
    assert without_secrets("pictures/what?#.png") == "pictures/what?#.png"
    assert without_secrets('["https://u:p@h/a?b","x"]') == '["https://h/a?…","x"]'


def test_the_column_for_hashes_is_reserved(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("prompt,Ref SHA256\np,x\n")
    with pytest.raises(PromptTableError, match=r"'Ref SHA256'.*'ref_image'"):
        read_prompt_table(path)


def test_references_that_nobody_reads_are_never_left_out(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("prompt,ref_image\np,a.png\n")
    with pytest.raises(ValueError, match="pass References"):
        check_prompts(read_prompt_table(path))


# --- the commands --------------------------------------------------------------------------------


def test_check_reads_references_and_writes_nothing(
    tmp_path: Path, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.png").write_bytes(RED)
    path = tmp_path / "t.csv"
    store.put("x.png", RED)
    with serving(always(answer(RED))) as server:
        names = ["a.png", store.uri("x.png"), f"{server.url}/a.png", "none.png"]
        path.write_text("prompt,ref_image\n" + "".join(f"p{n},{n}\n" for n in names))
        refused = CliRunner().invoke(app, ["prompts", "check", str(path)])
        monkeypatch.setenv("NANOBANANA_ALLOWED_HOSTS", "127.0.0.1")
        allowed = CliRunner().invoke(app, ["prompts", "check", str(path)])
    assert (refused.exit_code, allowed.exit_code) == (1, 1)
    assert "2 good rows" in refused.output
    assert "NANOBANANA_ALLOWED_HOSTS=127.0.0.1" in refused.output
    assert "3 good rows" in allowed.output
    assert "none.png is no file" in allowed.output
    assert list(store.keys("")) == ["x.png"]


def test_a_misspelt_reference_column_is_named(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("prompt,ref_images\np,a.png\n")
    result = CliRunner().invoke(app, ["prompts", "check", str(path)])
    assert "column ref_images is carried along, not sent; did you mean ref_image?" in result.output


def test_generate_keeps_what_it_draws_from(
    tmp_path: Path,
    store: ObjectStore,
    emulators: Emulators,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {
        "API_KEY": API_KEY,
        "BASE_URL": emulators().base_url,
        "BUCKET": store.bucket,
        "PREFIX": store.prefix.rstrip("/"),
        "ALLOWED_HOSTS": "127.0.0.1",
    }.items():
        monkeypatch.setenv(f"NANOBANANA_{name}", value)
    (tmp_path / "a.png").write_bytes(RED)
    path = tmp_path / "t.csv"
    path.write_text("prompt,ref_image\np,a.png\nq,none.png\n")
    result = CliRunner().invoke(app, ["generate", str(path), "--seeds", "1"])
    assert result.exit_code == 0, result.output
    assert "1 row, 1 in quarantine" in result.output
    kept = store.get(reference_key(sha256(RED)))
    assert kept is not None
    assert kept.body == RED
