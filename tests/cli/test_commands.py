"""The commands, and how they end."""

import fcntl
import json
import socket
from importlib.metadata import version
from pathlib import Path

import pytest
import requests

from nanobanana_pipeline.cli.generate import parse_seeds
from nanobanana_pipeline.emulator import EmulatorThread
from nanobanana_pipeline.errors import PlanError
from nanobanana_pipeline.storage import ObjectStore
from tests.cli.conftest import Command
from tests.conftest import API_KEY


def test_generate_buys_once_and_status_tells(
    nanobanana: Command, table: Path, emulator: EmulatorThread
) -> None:
    for _ in range(2):
        result = nanobanana("generate", table, "--seeds", "1-2")
        assert result.exit_code == 0, result.output
    bought = requests.get(f"{emulator.root_url}/admin/purchases", timeout=10).json()
    assert (bought["total"], bought["bought_twice"]) == (4, 0)
    status = nanobanana("status", "--json")
    assert status.exit_code == 0
    found = json.loads(status.output)
    assert found["unfinished_runs"] == []
    assert [(m["prompt_set"], m["seed"], m["cells"]) for m in found["partitions"]] == [
        ("animals", 1, {"settled": 2}),
        ("animals", 2, {"settled": 2}),
    ]
    assert "animals" in nanobanana("status").output


def test_cells_that_are_not_settled_exit_with_1(
    nanobanana: Command, table: Path, emulator: EmulatorThread
) -> None:
    moods = f"{emulator.root_url}/admin/moods"
    requests.post(moods, json={"http_500_after": 1.0}, timeout=10)
    result = nanobanana("generate", table, "--seeds", "7")
    assert result.exit_code == 1
    assert "2 in_doubt" in result.output
    assert nanobanana("status").exit_code == 1


def test_a_pilot_and_parameters_reach_the_provider(
    nanobanana: Command, tmp_path: Path, emulator: EmulatorThread
) -> None:
    table = tmp_path / "bare.jsonl"
    table.write_text("".join(json.dumps({"prompt": f"prompt {n}"}) + "\n" for n in range(5)))
    result = nanobanana(
        "generate", table, "--seeds", "3", "--limit", "2", "--param", "samples=2",
        "--param", "width=1024", "--param", "height=1024",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    bought = requests.get(f"{emulator.root_url}/admin/purchases", timeout=10).json()
    assert (bought["total"], bought["images"]) == (2, 4)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--seeds", "0"], "random"),
        (["--seeds", "4294967296"], "out of range"),
        (["--seeds", "four"], "1-4"),
        (["--seeds", "5-1"], "1-4"),
        (["--seeds", "1", "--param", "width=1000"], "width"),
        (["--seeds", "1", "--param", "hue=3"], "hue"),
        (["--seeds", "1", "--name", "a|b"], "a|b"),
    ],
)
def test_wrong_use_exits_with_2_and_says_what(
    nanobanana: Command, table: Path, arguments: list[str], said: str
) -> None:
    result = nanobanana("generate", table, *arguments)
    assert result.exit_code == 2
    assert said in result.output


def test_settings_that_are_missing_exit_with_2_and_are_all_named(
    nanobanana: Command, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("API_KEY", "BUCKET"):
        monkeypatch.delenv(f"NANOBANANA_{name}")
    result = nanobanana("generate", table, "--seeds", "1")
    assert result.exit_code == 2
    assert "NANOBANANA_API_KEY" in result.output
    assert "NANOBANANA_BUCKET" in result.output


def test_check_names_every_bad_row(nanobanana: Command, tmp_path: Path) -> None:
    table = tmp_path / "rough.tsv"
    table.write_text("prompt\tsamples\na fox\t1\n \t1\na whale\t9\n")
    result = nanobanana("prompts", "check", table)
    assert result.exit_code == 1
    assert "2 rows in quarantine" in result.output
    assert "1 good row in" in result.output


def test_check_names_what_the_sensor_would_not_take(nanobanana: Command, tmp_path: Path) -> None:
    table = tmp_path / "bad name!.csv"
    table.write_text("prompt\na fox\n")
    result = nanobanana("prompts", "check", table)
    assert (result.exit_code, "1 good row in" in result.output) == (1, True)
    assert "'bad name!' cannot name a prompt set" in result.output
    good = table.rename(tmp_path / "good.v2.csv")
    result = nanobanana("prompts", "check", good)
    assert (result.exit_code, "cannot name" in result.output) == (0, False)


@pytest.mark.parametrize(
    ("lengths", "named"),
    [
        ([4000, 4000, 4000], []),
        ([4001, 5000, 10_000], [10_000, 5000, 4001]),
        ([20, 30, 1001], [1001]),
        ([20, 30, 1000], []),
        ([200, 200, 1500], []),
    ],
)
def test_check_warns_of_prompts_far_longer_than_usual_and_takes_them(
    nanobanana: Command, tmp_path: Path, lengths: list[int], named: list[int]
) -> None:
    table = tmp_path / "long.csv"
    rows = "".join(f"p{i},{'x' * (n - 1)}{i}\n" for i, n in enumerate(lengths))
    table.write_text(f"id,prompt\n{rows}")
    result = nanobanana("prompts", "check", table)
    assert (result.exit_code, f"{len(lengths)} good rows" in result.output) == (0, True)
    told = ", ".join(f"p{lengths.index(n)} ({n:,} characters)" for n in named)
    assert ("very long" in result.output) == bool(named)
    assert told in result.output


def test_check_refuses_what_is_no_table(nanobanana: Command, tmp_path: Path) -> None:
    table = tmp_path / "notes.csv"
    table.write_text("a,b\n1,2\n")
    result = nanobanana("prompts", "check", table)
    assert result.exit_code == 2
    assert "prompt" in result.output


@pytest.mark.parametrize("asked", ["version", "--version"])
def test_version(nanobanana: Command, asked: str) -> None:
    result = nanobanana(asked)
    assert result.exit_code == 0
    assert result.output.strip() == version("nanobanana-pipeline")


def test_no_command_prints_or_keeps_the_key(
    nanobanana: Command, table: Path, store: ObjectStore
) -> None:
    said = "".join(
        nanobanana(*command).output
        for command in (
            ["--verbose", "generate", table, "--seeds", "1"],
            ["status"],
            ["status", "--json"],
        )
    )
    assert API_KEY not in said
    for key in store.keys(""):
        found = store.get(key)
        assert found is not None
        assert API_KEY.encode() not in found.body, key


def test_seeds_are_ranges_and_lists() -> None:
    assert parse_seeds("1-3") == [1, 2, 3]
    assert parse_seeds("7, 1,7,9-10") == [7, 1, 9, 10]
    with pytest.raises(PlanError):
        parse_seeds("0-2")


def test_a_column_that_is_not_sent_is_named_with_what_was_meant(
    nanobanana: Command, tmp_path: Path
) -> None:
    table = tmp_path / "typo.csv"
    table.write_text("prompt,heigth,mood\na fox,1024,calm\n")
    result = nanobanana("prompts", "check", table)
    assert "column heigth is carried along, not sent; did you mean height?" in result.output
    assert "column mood is carried along, not sent\n" in result.output


def test_status_claims_no_bucket(nanobanana: Command, store: ObjectStore) -> None:
    assert nanobanana("status").exit_code == 0
    assert list(store.keys("")) == []


def test_buying_stops_where_no_picture_may_be_downloaded(
    nanobanana: Command,
    tmp_path: Path,
    emulator: EmulatorThread,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table = tmp_path / "many.csv"
    table.write_text(
        "prompt,width,height\n" + "".join(f"number {n},1024,1024\n" for n in range(80))
    )
    monkeypatch.setenv("NANOBANANA_ALLOWED_HOSTS", "")
    result = nanobanana("generate", table, "--seeds", "1")
    assert result.exit_code == 1
    assert "stopped early" in result.output
    assert "NANOBANANA_ALLOWED_HOSTS=127.0.0.1" in result.output
    bought = requests.get(f"{emulator.root_url}/admin/purchases", timeout=10).json()["total"]
    assert 0 < bought < 80
    monkeypatch.setenv("NANOBANANA_ALLOWED_HOSTS", "127.0.0.1")
    assert nanobanana("generate", table, "--seeds", "1").exit_code == 0
    bought = requests.get(f"{emulator.root_url}/admin/purchases", timeout=10).json()
    assert (bought["total"], bought["bought_twice"]) == (80, 0)


def test_dev_does_not_take_another_ones_port_for_its_own(
    nanobanana: Command, tmp_path: Path
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = nanobanana("dev", "--data", tmp_path, "--port", port)
    assert result.exit_code == 2
    assert f"port {port} is in use" in result.output


def test_two_sets_of_servers_never_share_a_folder(nanobanana: Command, tmp_path: Path) -> None:
    with (tmp_path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = nanobanana("demo", "--data", tmp_path)
    assert result.exit_code == 2
    assert "in use by another nanobanana" in result.output


def test_a_refused_account_is_not_asked_again_for_the_next_seed(
    nanobanana: Command, table: Path, emulator: EmulatorThread
) -> None:
    moods = f"{emulator.root_url}/admin/moods"
    requests.post(moods, json={"unauthorized": 1.0}, timeout=10)
    result = nanobanana("generate", table, "--seeds", "1-50")
    assert result.exit_code == 1
    stats = requests.get(f"{emulator.root_url}/admin/stats", timeout=10).json()
    assert sum(stats["calls"]["text2img"].values()) <= 2
