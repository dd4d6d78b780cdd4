"""`nanobanana release`, from buying on."""

import json
from pathlib import Path

import pytest
import yaml

from nanobanana_pipeline.datasets.release import MANIFEST, Format, find_release, read_release_table
from nanobanana_pipeline.features.table import refresh_features
from nanobanana_pipeline.storage import ObjectStore
from tests.cli.conftest import Command
from tests.datasets.release_rows import read, tree


@pytest.fixture
def recipe(nanobanana: Command, store: ObjectStore, tmp_path: Path) -> Path:
    """A recipe over four pictures that were bought and measured."""
    prompts = tmp_path / "animals.csv"
    prompts.write_text("id,Prompt,width,height\n1,a fox,1024,1024\n2,a whale,1024,1024\n")
    assert nanobanana("generate", prompts, "--seeds", "1-2").exit_code == 0
    for seed in (1, 2):
        refresh_features(store, "animals", seed)
    path = tmp_path / "animals.yaml"
    said = {
        "name": "animals",
        "description": "Two animals.",
        "licence": "CC0-1.0",
        "prompt_sets": ["animals"],
        "seeds": [1],
    }
    path.write_text(yaml.safe_dump(said))
    return path


def test_a_release_is_built_listed_compared_verified_and_pulled(
    nanobanana: Command, recipe: Path, store: ObjectStore, tmp_path: Path
) -> None:
    assert "no release yet" in nanobanana("release", "list").output
    wrong = nanobanana("release", "verify", "animals")
    assert (wrong.exit_code, "no release of 'animals'" in wrong.output) == (2, True)

    built = nanobanana("release", "build", recipe)
    assert (built.exit_code, "v1" in built.output) == (0, True), built.output
    assert "first version" in " ".join(built.output.split())
    again = nanobanana("release", "build", recipe)
    assert (again.exit_code, "nothing has changed since v1" in again.output) == (0, True)
    alone = nanobanana("release", "diff", "animals")
    assert (alone.exit_code, "name an OLD version" in alone.output) == (2, True)

    recipe.write_text(recipe.read_text().replace("- 1\n", "- 1\n- 2\n"))
    more = nanobanana("release", "build", recipe)
    assert (more.exit_code, "2 added" in more.output) == (0, True), more.output
    listed = nanobanana("release", "list", "animals").output
    assert listed.index("v2") < listed.index("v1", listed.index("v2") + 2)
    compared = nanobanana("release", "diff", "animals")
    assert compared.exit_code == 0
    assert "from v1 to v2" in compared.output
    assert compared.output.count("chosen now") == 3
    rows = read_release_table(store, find_release(store, "animals"), MANIFEST)
    for each in rows[rows["seed"] == 2].to_dict("records"):
        assert each["row_id"] not in compared.output
        (line,) = (said for said in compared.output.splitlines() if each["row_id"][:12] in said)
        wanted = [each["prompt_id"], "2", each["split"], each["prompt"]]
        assert line.split("chosen now")[1].split() == " ".join(wanted).split()
    back = nanobanana("release", "diff", "animals", "v2", "v1").output
    assert back.count("removed") == 3

    fine = nanobanana("release", "verify", "animals")
    assert (fine.exit_code, "all as published" in fine.output) == (0, True)
    home = tmp_path / "home"
    pulled = nanobanana("release", "pull", "animals", home, "--as", "partiprompts")
    assert (pulled.exit_code, "5 files written" in pulled.output) == (0, True), pulled.output
    assert len(tree(home)) == 5
    one = nanobanana("release", "pull", "animals", tmp_path / "one", "--version", "v1")
    assert (one.exit_code, len(tree(tmp_path / "one"))) == (0, 4)
    none = nanobanana("release", "pull", "animals", home, "--version", "v9")
    assert (none.exit_code, "there are v2, v1" in none.output) == (2, True)

    shard = find_release(store, "animals").shards(Format.WEBDATASET, ".tar")[0]
    store.put(shard.key, read(store, shard.key)[:-1])
    damaged = nanobanana("release", "verify", "animals")
    assert (damaged.exit_code, "bytes instead of" in damaged.output) == (1, True)
    table = find_release(store, "animals").file("rejected.parquet")
    whole = read(store, table.key)
    store.put(table.key, b"?")
    mended = nanobanana("release", "verify", "animals", "--mend")
    assert (mended.exit_code, "made again, as published" in mended.output) == (1, True)
    assert "is no shard and cannot be made again" in " ".join(mended.output.split())
    store.put(table.key, whole)
    assert nanobanana("release", "verify", "animals").exit_code == 0


def test_a_split_that_stays_empty_is_told_of(nanobanana: Command, recipe: Path) -> None:
    whole = recipe.read_text()
    recipe.write_text(f"{whole}splits:\n  ratios: {{train: 0.9999, test: 0.0001}}\n")
    for command in (("recipe", "preview"), ("release", "build")):
        told = nanobanana(*command, recipe)
        assert told.exit_code == 0, told.output
        line = whole.count("\n") + 2
        assert (
            f"{recipe}:{line}: splits.ratios.test: no picture fell to the split test" in told.output
        )
        assert "0.0001 of 2 groups" in told.output
    recipe.write_text(whole)
    assert "no picture fell" not in nanobanana("recipe", "preview", recipe).output


def test_a_bucket_of_another_realm_is_refused(
    nanobanana: Command, recipe: Path, store: ObjectStore
) -> None:
    marker = json.loads(read(store, "nanobanana.json"))
    store.put("nanobanana.json", json.dumps({**marker, "realm": "modelslab"}).encode())
    refused = nanobanana("release", "build", recipe)
    assert (refused.exit_code, "realm" in refused.output) == (2, True)
    assert not list(store.keys("datasets/"))
