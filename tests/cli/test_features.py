"""`nanobanana features`."""

from pathlib import Path

from nanobanana_pipeline.features.table import read_current_features
from nanobanana_pipeline.storage import ObjectStore
from tests.cli.conftest import Command


def test_what_is_new_is_measured_once_in_the_partitions_that_are_named(
    nanobanana: Command, store: ObjectStore, tmp_path: Path
) -> None:
    none = nanobanana("features")
    assert (none.exit_code, "there are no pictures" in none.output) == (2, True)
    prompts = tmp_path / "animals.csv"
    prompts.write_text("prompt,width,height\na fox,1024,1024\na whale,1024,1024\n")
    assert nanobanana("generate", prompts, "--seeds", "1-2").exit_code == 0

    one = nanobanana("features", "animals", "--seeds", "2")
    assert (one.exit_code, one.output.count("animals")) == (0, 1), one.output
    assert read_current_features(store, "animals", 1) == (None, None)
    both = nanobanana("features")
    assert (both.exit_code, both.output.count("animals")) == (0, 2)
    current, _ = read_current_features(store, "animals", 1)
    assert current is not None
    assert current.rows == 2
    measured = [line.split()[3] for line in both.output.splitlines() if "animals" in line]
    assert measured == ["2", "0"]
    wrong = nanobanana("features", "plants")
    assert (wrong.exit_code, "there are no pictures" in wrong.output) == (2, True)
