"""`nanobanana audit` and `nanobanana gc`, against a real bucket and an emulator."""

import json
from datetime import timedelta
from pathlib import Path

import pytest

from nanobanana_pipeline.bucket_keys import image_key
from nanobanana_pipeline.cli import audit as command
from nanobanana_pipeline.emulator import EmulatorThread
from nanobanana_pipeline.storage import ObjectStore
from tests.cli.conftest import Command
from tests.conftest import API_KEY
from tests.later import later
from tests.launching import bought, entries, tell


@pytest.fixture
def launched(nanobanana: Command, table: Path) -> None:
    result = nanobanana("generate", table, "--seeds", "1")
    assert result.exit_code == 0, result.output


@pytest.mark.usefixtures("launched")
def test_what_agrees_exits_with_0(nanobanana: Command) -> None:
    result = nanobanana("audit", "--images", "all")
    assert result.exit_code == 0, result.output
    assert "2 in the ledger (2 settled), 2 images (2 read whole), 1 manifest" in result.output
    assert "everything agrees" in result.output
    found = json.loads(nanobanana("audit", "--json").output)
    assert found["agrees"] is True
    assert found["states"] == {"settled": 2}
    assert (found["findings"], found["counts"], found["images_read"]) == ([], {}, 2)


@pytest.mark.usefixtures("launched")
def test_one_partition_alone(nanobanana: Command, table: Path, store: ObjectStore) -> None:
    assert nanobanana("generate", table, "--seeds", "2").exit_code == 0
    [image] = entries(store)[0].images
    store.delete(image.key)
    seeds = {1: nanobanana("audit", table.stem, "--seed", "1")}
    seeds[2] = nanobanana("audit", table.stem, "--seed", "2")
    assert sorted(result.exit_code for result in seeds.values()) == [0, 1]
    assert all("2 in the ledger (2 settled)" in result.output for result in seeds.values())
    never = nanobanana("audit", table.stem, "--seed", "3")
    assert never.exit_code == 2
    assert "never launched" in never.output


@pytest.mark.usefixtures("launched")
def test_doubts_are_told_of_and_exit_with_0(
    nanobanana: Command, table: Path, emulator: EmulatorThread
) -> None:
    tell(emulator, "moods", lost_answer_after=1.0)
    assert nanobanana("generate", table, "--seeds", "2").exit_code == 1
    result = nanobanana("audit")
    assert result.exit_code == 0, result.output
    assert "2 in_doubt" in result.output
    assert "no disagreement" in result.output
    found = json.loads(nanobanana("audit", "--json").output)
    assert [(each["state"], bool(each["reason"])) for each in found["unsettled"]] == [
        ("in_doubt", True)
    ] * 2
    assert API_KEY not in result.output


@pytest.mark.usefixtures("launched")
def test_what_does_not_agree_exits_with_1(nanobanana: Command, store: ObjectStore) -> None:
    [image] = entries(store)[0].images
    body = store.get(image.key)
    assert body is not None
    store.put(image.key, body.body[:-1] + b"?")
    result = nanobanana("audit", "--sample", "2")
    assert result.exit_code == 1
    assert f"image_damaged  {store.uri(image.key)}" in result.output
    assert "restore it" in result.output
    found = json.loads(nanobanana("audit", "--json", "--images", "all").output)
    assert found["agrees"] is False
    assert found["counts"] == {"image_damaged": 1}
    assert [(each["kind"], each["key"]) for each in found["findings"]] == [
        ("image_damaged", image.key)
    ]
    assert nanobanana("audit", "--images", "none").exit_code == 0


def test_a_manifest_that_is_behind_is_a_note_and_accounted_for_without_buying(
    nanobanana: Command, table: Path, emulator: EmulatorThread
) -> None:
    capped = ("--name", "capped", "--seeds", "1-2", "--max-images")
    assert nanobanana("generate", table, *capped, 1).exit_code == 1
    assert nanobanana("generate", table, "--seeds", "1-2").exit_code == 0
    behind = nanobanana("audit")
    assert behind.exit_code == 0, behind.output
    assert "everything agrees; to note: 1 manifest_behind" in behind.output
    assert "with max_images 0 that buys nothing" in behind.output
    sold = bought(emulator)
    assert nanobanana("generate", table, *capped, 0).exit_code == 0
    assert bought(emulator) == sold
    assert "to note" not in nanobanana("audit").output


@pytest.mark.parametrize(
    "option", [["--images", "some"], ["--sample", "0"], ["--seed", "1"], ["animals"]]
)
def test_wrong_use_exits_with_2(nanobanana: Command, option: list[str]) -> None:
    assert nanobanana("audit", *option).exit_code == 2


@pytest.mark.parametrize("words", [["audit"], ["gc"]])
def test_missing_settings_and_another_realm_exit_with_2(
    nanobanana: Command, store: ObjectStore, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    store.put("nanobanana.json", b'{"layout": 1, "realm": "modelslab"}')
    result = nanobanana(*words)
    assert result.exit_code == 2
    assert "realm" in result.output
    monkeypatch.delenv("NANOBANANA_BUCKET")
    result = nanobanana(*words)
    assert result.exit_code == 2
    assert "NANOBANANA_BUCKET" in result.output


@pytest.mark.usefixtures("launched")
def test_gc_lists_and_never_deletes(
    nanobanana: Command, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [image_key(digits * 32, "png") for digits in ("ab", "cd")]
    for key in keys:
        store.put(key, b"x" * 1_500_000)
    today = nanobanana("gc")
    assert today.exit_code == 0
    assert "is referred to" in today.output
    before = list(store.keys(""))
    monkeypatch.setattr(command, "open_bucket", lambda *_, **__: later(store, timedelta(days=8)))
    result = nanobanana("gc", "--dry-run")
    assert result.exit_code == 0, result.output
    for key in keys:
        assert f"image\t1,500,000 bytes\t8 days\t{store.uri(key)}" in result.output
    assert nanobanana("gc").output == result.output
    *lines, told = (line for line in result.output.splitlines() if line.strip())
    assert "nothing was deleted: that is for you, an address at a time, with aws s3 rm" in told
    totals = [line.split() for line in lines]
    # Beside what the steps of the run handed to each other.
    assert [words[0] for words in totals[-3:]] == ["image", "run_value", "total"]
    assert totals[-3] == ["image", "2", "3.0", "MB"]
    assert list(store.keys("")) == before
