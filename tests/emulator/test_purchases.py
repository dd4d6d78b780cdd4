import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from nanobanana_pipeline.emulator import EmulatorConfig, running
from tests.emulator.account import KEY, Account
from tests.emulator.conftest import LATENCY


def test_a_restart_keeps_ids_purchases_times_the_clock_and_what_is_under_way(
    tmp_path: Path,
) -> None:
    config = EmulatorConfig(data_dir=tmp_path / "new", cap=1, latency_seconds=(LATENCY, LATENCY))
    with running(config) as base_url:
        account = Account(base_url)
        first = account.buy(seed=1)
        account.advance(3600)
        image = account.get(first["future_links"][0]).content
        second = account.buy(seed=2)
        before = account.admin("purchases")
        clock = account.admin("clock")["now"]
    with running(config) as base_url:
        again = Account(base_url)
        assert again.admin("purchases") == before
        assert again.admin("clock")["now"] == pytest.approx(clock, abs=30)
        done = again.fetch(first["id"])
        assert done["status"] == "success"
        assert again.get(done["output"][0]).content == image
        assert again.fetch(second["id"])["status"] == "processing"
        assert again.text2img(seed=3).status_code == 429
        again.advance(LATENCY)
        assert again.buy(seed=3)["id"] > second["id"]


def test_the_key_is_found_nowhere_in_the_data(tmp_path: Path) -> None:
    with running(EmulatorConfig(data_dir=tmp_path)) as base_url:
        account = Account(base_url)
        account.fetch(account.buy()["id"])
        account.text2img(samples=9)
        answers = account.admin("purchases"), account.admin("stats")
        while_running = [path.read_bytes() for path in tmp_path.iterdir()]
    afterwards = [path.read_bytes() for path in tmp_path.iterdir()]
    assert b"a red panda" in b"".join(while_running)
    assert b"a red panda" in b"".join(afterwards)
    assert KEY.encode() not in b"".join(while_running + afterwards)
    assert KEY not in str(answers)


def test_a_record_of_the_first_version_is_taken_over(tmp_path: Path) -> None:
    config = EmulatorConfig(data_dir=tmp_path, latency_seconds=(0, 0))
    with running(config) as base_url:
        bought = Account(base_url).buy(seed=1)
    with closing(sqlite3.connect(tmp_path / "purchases.sqlite", isolation_level=None)) as db:
        for column in ("base64", "temp", "cleared", "delivered"):
            db.execute(f"ALTER TABLE purchases DROP COLUMN {column}")
        db.execute("PRAGMA user_version=1")
    with running(config) as base_url:
        again = Account(base_url)
        again.buy(seed=1)
        assert again.admin("purchases")["bought_twice"] == 1
        assert again.fetch(bought["id"])["output"][0].endswith("-0.png")


def test_a_record_of_another_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "purchases.sqlite"
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version=99")
    with (
        pytest.raises(ValueError, match="has schema version 99"),
        running(EmulatorConfig(data_dir=tmp_path)),
    ):
        pass
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (99,)
