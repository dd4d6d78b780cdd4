"""Both ways through what was made: from a picture up, from a prompt or a run down."""

import hashlib
import json
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

from nanobanana_pipeline.bucket_keys import index_key, ledger_key, manifest_prefix
from nanobanana_pipeline.errors import StorageError, TraceError
from nanobanana_pipeline.features.table import refresh_features
from nanobanana_pipeline.generation.launch_steps import settle_shard
from nanobanana_pipeline.lineage.trace import index_reader
from nanobanana_pipeline.lineage.trace.graph import LineageGraph, NodeKind
from nanobanana_pipeline.lineage.trace.index_writer import refresh_index
from nanobanana_pipeline.lineage.trace.trace import trace
from nanobanana_pipeline.storage import ObjectStore
from tests.cli.conftest import Command
from tests.conftest import API_KEY, Emulators, account_for
from tests.datasets.release_rows import read
from tests.launching import QUICK, Launched, entries, keep_prompts, launch, planned, prompts

BIGGER = {"width": 1056, "height": 1024}


def names(lineage: LineageGraph, kind: NodeKind) -> set[str]:
    return {node.name for node in lineage.nodes.values() if node.kind is kind}


def facts(lineage: LineageGraph, kind: NodeKind, name: str) -> dict[str, Any]:
    return dict(lineage.nodes[f"{kind}:{name}"].facts)


@pytest.fixture
def made(store: ObjectStore, emulators: Emulators) -> Launched:
    keep_prompts(store, "set", [{"prompt": p, "mood": "calm"} for p in prompts(3)])
    return launch(store, account_for(emulators().base_url, store), run_id="run-a")


def image_file(store: ObjectStore, made: Launched, folder: Path, name: str) -> tuple[Path, str]:
    row = made.rows.iloc[0]
    path = folder / name
    path.write_bytes(store.open_url(row["image_uri"]))
    return path, row["image_sha256"]


@pytest.mark.parametrize("indexed", [True, False])
def test_a_renamed_file_leads_to_its_request_prompt_and_run(
    store: ObjectStore, made: Launched, tmp_path: Path, *, indexed: bool
) -> None:
    if indexed:
        refresh_index(store)
    path, sha256 = image_file(store, made, tmp_path, "holiday.dat")
    row = made.rows.iloc[0]
    found = trace(store, str(path))
    assert found.matches == (f"image:{sha256}",)
    assert names(found, NodeKind.REQUEST) == {row["request_key"]}
    request = facts(found, NodeKind.REQUEST, row["request_key"])
    assert request["parameters"]["prompt"] == row["prompt"]
    assert request["parameters"]["width"] == 1024
    (attempt,) = request["attempts"]
    assert attempt["provider_id"] == row["provider_id"]
    assert (attempt["run_id"], attempt["outcome"]) == ("run-a", "settled")
    run = facts(found, NodeKind.RUN, "run-a")
    assert run["code_version"] == version("nanobanana-pipeline")
    assert run["finished"] is True
    prompt = facts(found, NodeKind.PROMPT_ROW, f"set/{row['prompt_id']}")
    assert prompt == {"prompt": row["prompt"], "attributes": {"mood": "calm"}}
    table = facts(found, NodeKind.PROMPT_SET, "set")
    assert table["table_fingerprint"] == made.current.fingerprint
    assert names(found, NodeKind.CELL) == {f"set/{row['prompt_id']} seed=1"}
    assert facts(found, NodeKind.IMAGE, sha256)["uri"] == row["image_uri"]


@pytest.mark.parametrize("kind", ["png", "jpg", "webp"])
def test_pictures_of_every_format_are_found(
    store: ObjectStore, emulators: Emulators, tmp_path: Path, kind: str
) -> None:
    account = account_for(emulators(image_format=kind).base_url, store)
    keep_prompts(store, "set", prompts(1))
    made = launch(store, account)
    path, sha256 = image_file(store, made, tmp_path, f"picture.{kind}")
    found = trace(store, str(path))
    assert facts(found, NodeKind.IMAGE, sha256)["format"] == kind


def test_all_names_of_one_picture_lead_to_the_same(
    store: ObjectStore, made: Launched, tmp_path: Path
) -> None:
    refresh_index(store)
    path, sha256 = image_file(store, made, tmp_path, "a.png")
    row = made.rows.iloc[0]
    copy = f"{store.uri('elsewhere/copy.bin')}"
    store.put("elsewhere/copy.bin", path.read_bytes())
    by_file = trace(store, str(path))
    for asked in (sha256, sha256.upper(), row["image_uri"], copy):
        found = trace(store, asked)
        assert (found.matches, found.nodes) == (by_file.matches, by_file.nodes)
    for asked in (row["request_key"], row["provider_id"]):
        found = trace(store, asked)
        assert found.matches == (f"request:{row['request_key']}",)
        assert found.nodes == by_file.nodes


def test_the_beginning_of_a_name_is_enough_where_nothing_else_begins_so(
    store: ObjectStore, emulators: Emulators
) -> None:
    keep_prompts(store, "set", prompts(1))
    account = account_for(emulators().base_url, store)
    run_id = "5dffdd49-aaaa-4bbb-8ccc-0123456789ab"
    row = launch(store, account, run_id=run_id).rows.iloc[0]
    assert trace(store, "5dffdd49").matches == (f"run:{run_id}",)
    request, image = row["request_key"], row["image_sha256"]
    for asked in (request[:6], request[:12].upper(), f"{request[:12]}…"):
        assert trace(store, asked).matches == (f"request:{request}",)
    assert trace(store, image[:6]).matches == (f"image:{image}",)
    for short in (row["request_key"][:5], "0" * 12):
        with pytest.raises(TraceError, match="nothing is known"):
            trace(store, short)
    launch(store, account, seed=2, run_id=f"{run_id[:-1]}c")
    with pytest.raises(TraceError) as error:
        trace(store, "5dffdd49")
    assert f"2 things begin with 5dffdd49: run {run_id}, run {run_id[:-1]}c" in str(error.value)
    assert trace(store, f"{run_id[:-1]}c").matches == (f"run:{run_id[:-1]}c",)


def test_a_prompt_id_leads_to_all_its_pictures_in_every_set(
    store: ObjectStore, emulators: Emulators
) -> None:
    account = account_for(emulators().base_url, store)
    for name in ("cats", "dogs"):
        keep_prompts(store, name, [{"id": f"p{n}", "prompt": f"{name} {n}"} for n in range(2)])
        for seed in (1, 2):
            launch(store, account, name, seed=seed)
    refresh_index(store)
    found = trace(store, "p1")
    assert set(found.matches) == {"prompt row:cats/p1", "prompt row:dogs/p1"}
    assert names(found, NodeKind.CELL) == {
        f"{s}/p1 seed={n}" for s in ("cats", "dogs") for n in (1, 2)
    }
    assert len(names(found, NodeKind.IMAGE)) == 4
    assert names(found, NodeKind.PROMPT_ROW) == {"cats/p1", "dogs/p1"}


def test_a_run_leads_to_all_it_made_though_its_manifest_is_replaced(
    store: ObjectStore, emulators: Emulators
) -> None:
    account = account_for(emulators().base_url, store)
    keep_prompts(store, "set", prompts(3))
    first = launch(store, account, run_id="run-a")
    other = launch(store, account, run_id="run-b", parameters=BIGGER, change_parameters=True)
    refresh_index(store)
    found = trace(store, "run-a")
    assert found.matches == ("run:run-a",)
    assert names(found, NodeKind.IMAGE) == set(first.rows["image_sha256"])
    assert names(trace(store, "run-b"), NodeKind.IMAGE) == set(other.rows["image_sha256"])
    # The index knows manifests in force only; the picture itself names its request.
    old = first.rows.iloc[0]
    up = trace(store, old["image_sha256"])
    assert names(up, NodeKind.REQUEST) == {old["request_key"]}
    assert names(up, NodeKind.RUN) == {"run-a"}


def test_pictures_that_two_sets_share_lead_to_both(
    store: ObjectStore, emulators: Emulators
) -> None:
    account = account_for(emulators().base_url, store)
    for name in ("one", "two"):
        keep_prompts(store, name, [{"id": f"{name}-1", "prompt": "the same"}])
        made = launch(store, account, name, run_id=f"run-{name}")
    refresh_index(store)
    found = trace(store, made.rows["image_sha256"].iloc[0])
    assert names(found, NodeKind.PROMPT_ROW) == {"one/one-1", "two/two-1"}
    assert names(found, NodeKind.RUN) == {"run-one"}


def test_requests_without_a_picture_are_found(store: ObjectStore, emulators: Emulators) -> None:
    emulator = emulators(moods={"http_500_after": 1.0})
    keep_prompts(store, "set", prompts(1))
    made = launch(store, account_for(emulator.base_url, store), run_id="run-a")
    assert made.states == {"in_doubt": 1}
    (entry,) = entries(store)
    for asked in (entry.request_key, made.rows["prompt_id"].iloc[0], "run-a"):
        found = trace(store, asked)
        assert facts(found, NodeKind.REQUEST, entry.request_key)["state"] == "in_doubt"
        assert not names(found, NodeKind.IMAGE)
        assert names(found, NodeKind.PROMPT_SET) == {"set"}


def test_a_killed_run_without_a_manifest_says_what_the_ledger_says_it_bought(
    store: ObjectStore, made: Launched
) -> None:
    for key in list(store.keys(manifest_prefix("set", 1))):
        store.delete(key)
    found = trace(store, "run-a")
    assert names(found, NodeKind.IMAGE) == set(made.rows["image_sha256"])
    (note,) = found.notes
    assert note.endswith("of run run-a: the ledger says that it bought 3 images")
    planned(store, run_id="run-b")
    (note,) = trace(store, "run-b").notes
    assert note.endswith("of run run-b: it bought nothing")


def test_a_killed_run_says_what_it_may_have_bought(
    store: ObjectStore, emulators: Emulators
) -> None:
    keep_prompts(store, "set", prompts(2))
    account = account_for(emulators(moods={"http_500_after": 1.0}).base_url, store)
    made = planned(store, run_id="run-a", shard_size=1)
    settle_shard(store, account, "run-a", made.shards[1], timing=QUICK)
    (note,) = trace(store, "run-a").notes
    assert note.endswith("the ledger says that it bought nothing, and may have bought 1 more")


def test_what_is_unknown_is_told_with_all_that_was_looked_for(
    store: ObjectStore, made: Launched, tmp_path: Path
) -> None:
    stranger = tmp_path / "stranger.png"
    stranger.write_bytes(b"no picture of ours")
    sha256 = hashlib.sha256(stranger.read_bytes()).hexdigest()
    with pytest.raises(TraceError) as error:
        trace(store, str(stranger))
    for said in (str(stranger), sha256, "1 partition ", f"images/{sha256[:2]}/{sha256}", "again"):
        assert said in str(error.value)
    with pytest.raises(TraceError, match="no prompt id and no provider id"):
        trace(store, "nobody")
    with pytest.raises(TraceError, match=f"ledger/00/{'0' * 64}"):
        trace(store, "0" * 64)
    with pytest.raises(TraceError, match="there is no file"):
        trace(store, str(tmp_path / "gone.png"))
    with pytest.raises(TraceError, match="there is no object"):
        trace(store, store.uri("nothing"))
    assert made.current.images == 3


def test_what_is_newer_than_the_index_is_found_and_nothing_old_is_told(
    store: ObjectStore, emulators: Emulators
) -> None:
    account = account_for(emulators().base_url, store)
    keep_prompts(store, "set", [{"id": "p", "prompt": "a fox"}])
    launch(store, account)
    refresh_index(store)
    again = launch(store, account, parameters=BIGGER, change_parameters=True)
    second = launch(store, account, seed=2, parameters=BIGGER)
    found = trace(store, "p")
    assert names(found, NodeKind.IMAGE) == {
        *again.rows["image_sha256"],
        *second.rows["image_sha256"],
    }
    assert found.notes == ()


def test_an_index_far_behind_says_so_and_the_picture_is_found_all_the_same(
    store: ObjectStore, made: Launched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_reader, "MAX_UNINDEXED", 0)
    row = made.rows.iloc[0]
    for asked in (row["image_sha256"], row["request_key"], "run-a"):
        found = trace(store, asked)
        assert row["image_sha256"] in names(found, NodeKind.IMAGE)
        assert f"set/{row['prompt_id']}" in names(found, NodeKind.PROMPT_ROW)
        assert "nanobanana index refresh" in found.notes[0]
    with pytest.raises(TraceError, match="nanobanana index refresh"):
        trace(store, row["prompt_id"])


def test_a_damaged_index_names_its_remedy_which_mends_it(
    store: ObjectStore, made: Launched
) -> None:
    sha256 = made.rows["image_sha256"].iloc[0]
    refresh_index(store)
    good = trace(store, sha256)
    for key in [k for k in store.keys(index_key("")) if k.endswith(".parquet")]:
        store.put(key, read(store, key)[:-100])
    with pytest.raises(StorageError, match="nanobanana index refresh --rebuild"):
        trace(store, sha256)
    refresh_index(store, rebuild=True)
    assert trace(store, sha256) == good
    store.put(index_key("current.json"), b"{")
    with pytest.raises(StorageError, match="nanobanana index refresh --rebuild"):
        trace(store, sha256)
    with pytest.raises(StorageError, match="nanobanana index refresh --rebuild"):
        refresh_index(store)
    refresh_index(store, rebuild=True)
    assert trace(store, sha256) == good
    newer = json.dumps({**json.loads(read(store, index_key("current.json"))), "schema": 99})
    store.put(index_key("current.json"), newer.encode())
    with pytest.raises(StorageError, match="upgrade"):
        refresh_index(store, rebuild=True)


def test_a_partition_that_is_gone_is_not_told_of(store: ObjectStore, made: Launched) -> None:
    refresh_index(store)
    store.delete(f"{manifest_prefix('set', 1)}current.json")
    with pytest.raises(TraceError):
        trace(store, made.rows["prompt_id"].iloc[0])


@pytest.fixture
def released(nanobanana: Command, store: ObjectStore, tmp_path: Path) -> ObjectStore:
    """Two pictures in v1 of ``animals``, and four in v2."""
    table = tmp_path / "animals.csv"
    table.write_text("id,Prompt,width,height\n1,a fox,1024,1024\n2,a whale,1024,1024\n")
    assert nanobanana("generate", table, "--seeds", "1-2").exit_code == 0
    for seeds in ([1], [1, 2]):
        for seed in seeds:
            refresh_features(store, "animals", seed)
        said = {
            "name": "animals",
            "description": "Two animals.",
            "licence": "CC0-1.0",
            "prompt_sets": ["animals"],
            "seeds": seeds,
        }
        recipe = tmp_path / "animals.yaml"
        recipe.write_text(yaml.safe_dump(said))
        assert nanobanana("release", "build", recipe).exit_code == 0
    return store


def test_releases_are_told_and_a_place_in_one_leads_back(
    released: ObjectStore, nanobanana: Command, tmp_path: Path
) -> None:
    for indexed in (False, True):
        if indexed:
            done = nanobanana("index", "refresh")
            assert (done.exit_code, "2 partitions and 2 releases" in done.output) == (0, True)
        found = trace(released, "1")
        assert names(found, NodeKind.RELEASE) == {"animals v1", "animals v2"}
        up = trace(released, "animals/v2/000000000")
        assert len(names(up, NodeKind.IMAGE)) == 1
        assert len(names(up, NodeKind.PROMPT_ROW)) == 1
        held = [link for link in up.links if link.target.startswith("release:")]
        assert {link.facts["key"] for link in held} == {"000000000"}
    home = tmp_path / "home"
    assert nanobanana("release", "pull", "animals", home, "--as", "geneval").exit_code == 0
    with pytest.raises(TraceError, match="and none with key"):
        trace(released, "animals/v1/000000009")
    result = nanobanana("trace", "1", "--json")
    assert result.exit_code == 0
    told = json.loads(result.stdout)
    assert told["found"] == ["prompt row:animals/1"]
    shutil.rmtree(home)


def test_the_command_shows_a_tree_and_graphs_and_no_secret(
    released: ObjectStore, nanobanana: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert nanobanana("index", "refresh").exit_code == 0
    sha256 = next(iter(names(trace(released, "2"), NodeKind.IMAGE)))
    monkeypatch.setenv("COLUMNS", "40")
    tree = nanobanana("trace", sha256).output
    lines = {line.strip("│├└─ ") for line in tree.splitlines()}
    (entry,) = [each for each in entries(released) if sha256 in {i.sha256 for i in each.images}]
    provider_id = entry.attempts[0].provider_id
    assert {f"provider id {provider_id}", "outcome settled", "finished yes"} <= lines, tree
    assert f"ledger {released.uri(ledger_key(entry.request_key))}" in lines, tree
    assert not {line for line in lines if line.startswith("negative prompt")}
    code = f"code version {version('nanobanana-pipeline')}"
    for said in ("made of", "went into", "a whale", code, "animals v2", "attempts"):
        assert said in tree, tree
    dot = nanobanana("trace", sha256, "--graph", "dot").output
    assert dot.startswith("digraph lineage {")
    assert nanobanana("trace", sha256, "--graph", "mermaid").output.startswith("flowchart LR")
    # It takes longer to import than a lookup may take as a whole.
    alone = f"import sys; sys.argv[1:] = ['trace', '{sha256}']; app(standalone_mode=False)"
    program = f"from nanobanana_pipeline.cli import app; {alone}; sys.exit('pandas' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL)
    unknown = nanobanana("trace", "nobody")
    assert (unknown.exit_code, "no prompt id" in unknown.output) == (2, True)
    said = tree + dot + nanobanana("trace", sha256, "--json").output + unknown.output
    bodies = b"".join(read(released, key) for key in released.keys(index_key("")))
    assert API_KEY not in said
    assert API_KEY.encode() not in bodies
    for entry in entries(released):
        for url in (url for attempt in entry.attempts for url in attempt.output):
            assert url not in said
