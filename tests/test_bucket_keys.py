"""Where things lie, and whose bucket it is."""

import ast
import inspect
import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import nanobanana_pipeline
from nanobanana_pipeline import bucket_keys
from nanobanana_pipeline.errors import SettingsError, StorageError
from nanobanana_pipeline.storage import ObjectStore
from nanobanana_pipeline.storage.bucket import claim_bucket

DOMAIN = Path(nanobanana_pipeline.__file__).parent
KEY = "ab" + "0" * 62


def marker(store: ObjectStore) -> object:
    found = store.get("nanobanana.json")
    assert found is not None
    return json.loads(found.body)


def test_everything_lies_where_the_design_says() -> None:
    assert bucket_keys.ledger_key(KEY) == f"ledger/ab/{KEY}.json"
    assert bucket_keys.image_key(KEY, "png") == f"images/ab/{KEY}.png"
    assert bucket_keys.image_owner_key(KEY, "cd") == f"images/ab/{KEY}.refs/cd"
    assert bucket_keys.reference_key(KEY) == f"references/ab/{KEY}"
    assert bucket_keys.manifest_prefix("parti", 7) == "manifests/parti/seed=7/"
    assert bucket_keys.run_shard_key("r1", "0003") == "runs/r1/0003.parquet"
    assert bucket_keys.run_plan_key("r1") == "runs/r1/plan.json"
    assert bucket_keys.run_done_key("r1") == "runs/r1/done.json"


KEY_FUNCTIONS = [
    name for name in bucket_keys.__all__ if name.endswith(("_key", "_prefix", "_folder"))
]


@pytest.mark.parametrize("name", KEY_FUNCTIONS)
def test_every_key_begins_with_a_listed_folder_or_is_a_listed_file(name: str) -> None:
    function = getattr(bucket_keys, name)
    given = {str: "x", int: 7}
    types = (p.annotation for p in inspect.signature(function).parameters.values())
    key = function(*(given[each] for each in types))
    assert key.partition("/")[0] in {*bucket_keys.Folder, *bucket_keys.FILES}


def test_no_other_module_spells_out_a_folder_of_the_bucket() -> None:
    """Literals of the domain, but for docstrings: at their beginning, or behind a quote."""
    spelt = re.compile(rf"(?:^|['\"(])(?:{'|'.join(bucket_keys.Folder)})/")
    found = []
    for path in sorted(DOMAIN.rglob("*.py")):
        if path == Path(bucket_keys.__file__) or "emulator" in path.relative_to(DOMAIN).parts:
            continue
        tree = ast.parse(path.read_text())
        prose = {
            id(node.value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        }
        found += [
            (path.relative_to(DOMAIN).as_posix(), node.value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in prose
            and spelt.search(node.value)
        ]
    # Of the wheel, not of the bucket.
    assert found == [("cli/profile.py", "prompts/sample.csv")]


def test_a_new_bucket_is_claimed_once_and_nothing_else_is_left_in_it(store: ObjectStore) -> None:
    claim_bucket(store, "emulator")
    claim_bucket(store, "emulator")
    assert marker(store) == {"layout": 1, "realm": "emulator"}
    marker_key, *check = store.keys("")
    assert marker_key == "nanobanana.json"
    assert [key.rpartition("-")[0] or key for key in check] == ["probe/lease", "probe/verdict"]


def test_another_realm_is_refused_and_changes_nothing(store: ObjectStore) -> None:
    claim_bucket(store, "emulator")
    with pytest.raises(SettingsError, match="NANOBANANA_PREFIX"):
        claim_bucket(store, "modelslab")
    assert marker(store) == {"layout": 1, "realm": "emulator"}


def test_of_two_realms_that_claim_at_once_one_wins(store: ObjectStore) -> None:
    def claim(realm: str) -> str | None:
        try:
            claim_bucket(store, realm)
        except SettingsError:
            return None
        return realm

    with ThreadPoolExecutor(16) as pool:
        won = set(pool.map(claim, ["modelslab", "emulator"] * 8)) - {None}
    assert len(won) == 1
    assert marker(store) == {"layout": 1, "realm": won.pop()}


def test_a_newer_layout_is_refused_and_left_alone(store: ObjectStore) -> None:
    body = json.dumps({"layout": 2, "realm": "emulator"}).encode()
    store.put("nanobanana.json", body)
    with pytest.raises(SettingsError, match="upgrade nanobanana-pipeline"):
        claim_bucket(store, "emulator")
    assert marker(store) == {"layout": 2, "realm": "emulator"}


@pytest.mark.parametrize("body", [b"", b"\xff", b"{", b"[]", b'"emulator"', b"null"])
def test_a_marker_that_is_none_is_refused_and_left_alone(store: ObjectStore, body: bytes) -> None:
    store.put("nanobanana.json", body)
    with pytest.raises(SettingsError, match="is not this package's marker"):
        claim_bucket(store, "emulator")
    found = store.get("nanobanana.json")
    assert found is not None
    assert found.body == body


def test_a_bucket_that_is_not_there_is_a_storage_error(store: ObjectStore) -> None:
    missing = ObjectStore(store.client, "no-such-bucket")
    with pytest.raises(StorageError, match="NANOBANANA_BUCKET"):
        claim_bucket(missing, "emulator")
