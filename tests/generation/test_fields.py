"""Each field comes from the row's column, else from the launch, else it has the default.

From a table on disk through the command to what the emulator wrote down of its purchases.
"""

import base64
import hashlib
import io
import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from nanobanana_pipeline.cli import app
from nanobanana_pipeline.emulator import EmulatorThread
from nanobanana_pipeline.provider.modelslab.request import ModelsLabRequest
from nanobanana_pipeline.storage import ObjectStore
from tests.conftest import API_KEY, Emulators, account_for
from tests.emulator.receiver import Receiver, receiving
from tests.launching import admin, entries, keep_prompts, launch
from tests.provider.servers import always, answer, serving

Sold = dict[str, dict[str, Any]]
Generate = Callable[..., Sold]
SMALL = {"width": 1024, "height": 1024}

FIELDS: dict[str, tuple[object, object, object]] = {
    # In a column, of the launch, and where nobody says it.
    "negative_prompt": ("text", "blurry", ""),
    "width": (1088, 1056, 2048),
    "height": (1088, 1056, 2048),
    "samples": (3, 2, 1),
    "noise_scale_start": (5.5, 6.5, 7.5),
    "noise_scale_end": (5.5, 6.5, 7.5),
    "noise_clip_std": (0.5, 1.5, 2.5),
    "watermark": ("no", "yes", "no"),
    "base64": ("no", "yes", "no"),
    "temp": ("no", "yes", "no"),
    "track_id": ("mine", "ours", None),
}


@pytest.fixture
def emulator(emulators: Emulators, tmp_path: Path) -> EmulatorThread:
    return emulators(data_dir=tmp_path / "emulator")


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@pytest.fixture
def generate(
    store: ObjectStore, emulator: EmulatorThread, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Generate:
    """Buy rows by the command; gives what the emulator sold, by prompt."""
    for name, value in {
        "API_KEY": API_KEY,
        "BASE_URL": emulator.base_url,
        "BUCKET": store.bucket,
        "PREFIX": store.prefix.rstrip("/"),
        "ALLOWED_HOSTS": "127.0.0.1",
    }.items():
        monkeypatch.setenv(f"NANOBANANA_{name}", value)

    def run(name: str, rows: list[dict[str, object]], **parameters: object) -> Sold:
        table = tmp_path / f"{name}.jsonl"
        table.write_text("\n".join(json.dumps(row) for row in rows))
        told = [
            part for each in parameters.items() for part in ("--param", "=".join(map(str, each)))
        ]
        result = CliRunner().invoke(app, ["generate", str(table), "--seeds", "7", *told])
        assert result.exit_code == 0, result.output
        return sold(tmp_path / "emulator")

    return run


def sold(folder: Path) -> Sold:
    """What was asked for, by prompt, from the emulator's own record."""
    with closing(sqlite3.connect(folder / "purchases.sqlite")) as record:
        record.row_factory = sqlite3.Row
        rows = [dict(row) for row in record.execute("SELECT * FROM purchases")]
    found: Sold = {}
    for row in rows:
        fields = json.loads(row["fields"])
        label = row["track_id"].split(".", 2)[2:]
        found[fields["prompt"]] = fields | {
            "base64": "yes" if row["base64"] else "no",
            "temp": "yes" if row["temp"] else "no",
            "watermark": "yes" if fields["watermark"] else "no",
            "track_id": label[0] if label else None,
        }
    return found


def picture(size: tuple[int, int] = (320, 480), red: int = 0) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, (red, 80, 160)).save(out, "PNG")
    return out.getvalue()


def test_every_parameter_of_a_launch_is_tried() -> None:
    every = {*ModelsLabRequest.default_parameters(), *ModelsLabRequest.delivery_fields}
    assert every == {*FIELDS, "keep_original_aspect", "webhook"}


@pytest.mark.parametrize("name", FIELDS)
def test_a_column_goes_before_the_launch_and_the_launch_before_the_default(
    generate: Generate, name: str
) -> None:
    own, told, default = FIELDS[name]
    fixed = {side: 1024 for side in SMALL if side != name}
    both: list[dict[str, object]] = [{"prompt": "own", name: own}, {"prompt": "told"}]
    generate("both", [{**row, **fixed} for row in both], **{name: told})
    found = generate("bare", [{"prompt": "bare", **fixed}])
    assert [found[each][name] for each in ("own", "told", "bare")] == [own, told, default]


def test_a_seed_of_a_row_goes_before_the_partitions(generate: Generate, store: ObjectStore) -> None:
    found = generate(
        "set", [{"prompt": "own", "seed": 2**40, **SMALL}, {"prompt": "told", **SMALL}]
    )
    assert (found["own"]["seed"], found["told"]["seed"]) == (2**40, 7)
    assert {e.prompt: e.request["seed"] for e in entries(store)} == {"own": 2**40, "told": 7}


def test_the_aspect_of_a_reference_is_kept_where_a_column_or_the_launch_says_so(
    generate: Generate, tmp_path: Path
) -> None:
    """A square is asked for, of a reference of 2:3."""
    (tmp_path / "a.png").write_bytes(picture())
    row = {"ref_image": "a.png", "width": 1536, "height": 1536}
    own = {"prompt": "own", "keep_original_aspect": "no", **row}
    generate("both", [own, {"prompt": "told", **row}], keep_original_aspect="yes")
    found = generate("bare", [{"prompt": "bare", **row}])
    sizes = {prompt: (each["width"], each["height"]) for prompt, each in found.items()}
    assert sizes == {"own": (1536, 1536), "told": (1024, 1536), "bare": (1536, 1536)}


def test_references_are_sent_by_their_bytes_and_their_number_picks_the_endpoint(
    generate: Generate, tmp_path: Path
) -> None:
    references = [picture(red=red) for red in (10, 20)]
    for name, data in zip(("a.png", "b.png"), references, strict=True):
        (tmp_path / name).write_bytes(data)
    found = generate(
        "set",
        [
            {"prompt": "none", **SMALL},
            {"prompt": "one", "ref_image": "a.png", **SMALL},
            {"prompt": "two", "ref_image": ["b.png", "a.png"], **SMALL},
        ],
    )
    first, second = (hashlib.sha256(data).hexdigest() for data in references)
    assert {prompt: each["endpoint"] for prompt, each in found.items()} == {
        "none": "text2img",
        "one": "img2img",
        "two": "multi_ref",
    }
    assert [found[each]["references"] for each in ("one", "two")] == [[first], [second, first]]


def test_a_webhook_of_a_row_goes_before_that_of_the_launch(
    generate: Generate, receiver: Receiver
) -> None:
    with receiving() as other:
        rows = [{"prompt": "own", "webhook": receiver.url, **SMALL}, {"prompt": "told", **SMALL}]
        generate("set", rows, webhook=other.url)
        (own,), (told,) = receiver.wait_for(1), other.wait_for(1)
    assert (own["meta"]["prompt"], told["meta"]["prompt"]) == ("own", "told")


def test_each_of_four_samples_is_a_picture_with_a_record_of_its_own(
    store: ObjectStore, emulators: Emulators
) -> None:
    emulator = emulators()
    keep_prompts(store, "set", [{"prompt": "four of a kind", "samples": 4}])
    made = launch(store, account_for(emulator.base_url, store))
    assert made.states == {"settled": 1}
    assert made.rows["sample"].to_list() == [0, 1, 2, 3]
    assert made.rows["image_sha256"].nunique() == made.rows["image_uri"].nunique() == 4
    (entry,) = entries(store)
    assert [image.sha256 for image in entry.images] == made.rows["image_sha256"].to_list()
    record = admin(emulator, "purchases")
    assert (record["total"], record["images"]) == (1, 4)


@pytest.mark.parametrize("reported", [99, None])
def test_the_seed_asked_for_and_the_seed_reported_are_both_kept(
    store: ObjectStore, reported: int | None
) -> None:
    inline = "data:image/png;base64," + base64.b64encode(picture((1024, 1024))).decode()
    meta = {} if reported is None else {"seed": reported}
    done = {"status": "success", "id": 1, "output": [inline], "meta": meta}
    with serving(always(answer(done))) as server:
        keep_prompts(store, "set", ["a fox"])
        made = launch(store, account_for(f"{server.url}/nano_banana/", store, realm="emulator"))
    assert made.states == {"settled": 1}
    assert made.rows["seed_asked"].to_list() == [1]
    (row,) = made.rows["seed_reported"].dropna().to_list() or [None]
    assert row == reported
