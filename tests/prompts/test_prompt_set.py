import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pandas as pd
import pytest

from nanobanana_pipeline.errors import PromptTableError, StorageUnavailable
from nanobanana_pipeline.prompts.checked_prompts import fingerprint
from nanobanana_pipeline.prompts.prompt_set import current, load, snapshot, valid_name
from nanobanana_pipeline.storage import ObjectStore
from tests.prompts.conftest import Check

TABLE = "id,prompt,width,x,flag,note\nb,a cat,,0.5,true,\na,é,1056,1.5,,007\nc, ,1,2.5,false,\n"


def test_a_snapshot_is_what_was_checked_and_becomes_current(
    store: ObjectStore, check: Check
) -> None:
    checked = check("t.csv", TABLE)
    assert current(store, "animals") is None
    made = snapshot(store, "animals", checked)
    assert (made.rows, made.quarantined, made.source) == (2, 1, checked.source)
    assert current(store, "animals") == made
    loaded = load(store, "animals", made.fingerprint)
    pd.testing.assert_frame_equal(loaded, checked.prompts)
    assert fingerprint(loaded) == made.fingerprint
    assert sorted(store.keys("prompt_sets/")) == sorted(
        f"prompt_sets/animals/{leaf}"
        for leaf in (
            "current.json",
            f"{made.fingerprint}.parquet",
            f"{made.fingerprint}.quarantine.parquet",
        )
    )
    stored = store.get("prompt_sets/animals/current.json")
    assert stored is not None
    assert json.loads(stored.body)["schema"] == 1


def test_the_same_content_again_keeps_the_snapshot_and_new_content_replaces_only_the_pointer(
    store: ObjectStore, check: Check
) -> None:
    first = snapshot(store, "s", check("t.csv", "prompt\na\nb\n"))
    before = store.get(f"prompt_sets/s/{first.fingerprint}.parquet")
    again = snapshot(store, "s", check("u.csv", "prompt\nb\na\n"))
    after = store.get(f"prompt_sets/s/{first.fingerprint}.parquet")
    assert again.fingerprint == first.fingerprint
    assert before is not None
    assert after is not None
    assert (after.last_modified, after.body) == (before.last_modified, before.body)
    other = snapshot(store, "s", check("t.csv", "prompt\nc\n"))
    assert current(store, "s") == other
    assert set(load(store, "s", first.fingerprint)["prompt"]) == {"a", "b"}


def test_racing_snapshots_all_succeed_and_one_of_them_is_current(
    store: ObjectStore, check: Check
) -> None:
    tables = [check(f"{n}.csv", f"prompt\np{n}\n") for n in range(6)]
    with ThreadPoolExecutor(6) as pool:
        made = list(pool.map(lambda checked: snapshot(store, "s", checked), tables))
    assert current(store, "s") in made
    for found in made:
        assert len(load(store, "s", found.fingerprint)) == 1


def test_a_write_whose_answer_is_lost_is_sent_again(
    store: ObjectStore, check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = []

    def losing(write: Callable[..., Any]) -> Callable[..., Any]:
        def call(key: str, *args: object, **options: object) -> object:
            answer = write(key, *args, **options)
            if key not in lost:
                lost.append(key)
                raise StorageUnavailable("no answer")
            return answer

        return call

    monkeypatch.setattr(store, "create", losing(store.create))
    made = snapshot(store, "s", check("t.csv", "prompt\na\n"))
    assert len(lost) == 2
    assert current(store, "s") == made


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"schema": 2, "anything": "else"}', "schema 2.*upgrade"),
        (b"{", "is damaged"),
        (b"[]", "is damaged"),
        (b'{"schema": 1, "rows": 5}', "is damaged"),
    ],
)
def test_a_pointer_that_cannot_be_read_is_refused_and_kept(
    store: ObjectStore, check: Check, body: bytes, message: str
) -> None:
    store.put("prompt_sets/s/current.json", body)
    with pytest.raises(PromptTableError, match=message):
        current(store, "s")
    with pytest.raises(PromptTableError, match=message):
        snapshot(store, "s", check("t.csv", "prompt\na\n"))
    assert list(store.keys("prompt_sets/")) == ["prompt_sets/s/current.json"]
    stored = store.get("prompt_sets/s/current.json")
    assert stored is not None
    assert stored.body == body


def test_a_missing_or_damaged_snapshot_is_refused(store: ObjectStore) -> None:
    with pytest.raises(PromptTableError, match="does not exist"):
        load(store, "s", "0" * 64)
    store.put(f"prompt_sets/s/{'0' * 64}.parquet", b"PAR1")
    with pytest.raises(PromptTableError, match="no readable snapshot"):
        load(store, "s", "0" * 64)


def test_a_table_without_a_good_row_never_becomes_current(store: ObjectStore, check: Check) -> None:
    with pytest.raises(PromptTableError, match="no usable row; row 1, column 'width': must be"):
        snapshot(store, "s", check("t.csv", "prompt,width\na,1\n"))
    assert not list(store.keys("prompt_sets/"))


@pytest.mark.parametrize("name", ["a", "A-1_b.c", "x" * 100])
def test_good_names(name: str) -> None:
    assert valid_name(name) == name


@pytest.mark.parametrize("name", ["", "..", "a/b", "a|b", "-a", "a\n", "é", "x" * 101, "a b"])
def test_names_that_would_break_a_key_or_a_partition_are_refused(name: str) -> None:
    with pytest.raises(PromptTableError, match="cannot name a prompt set"):
        valid_name(name)
