"""What is told of pictures from tables alone; the checks in Dagster show the rest."""

from collections.abc import Mapping

import pyarrow as pa
import pytest

from nanobanana_pipeline.features import judging
from nanobanana_pipeline.features.judging import (
    ALIKE_BITS,
    ALIKE_SHARE,
    Twins,
    find_twins,
    find_wrong_sizes,
    read_pictures,
)
from nanobanana_pipeline.features.table import (
    FEATURE_COLUMNS,
    read_current_features,
    read_features,
    refresh_features,
)
from nanobanana_pipeline.generation.manifest.manifest import read_current, read_manifest
from nanobanana_pipeline.provider.modelslab.request import ModelsLabRequest
from nanobanana_pipeline.storage import ObjectStore
from nanobanana_pipeline.storage.versioned import packed, write_table
from tests.conftest import Emulators, account_for
from tests.launching import keep_prompts, launch, prompts

PROMPTS = 20


def twins(store: ObjectStore, seed: int) -> Twins:
    pictures = read_pictures(store, "set", seed)
    assert pictures is not None
    return find_twins(store, "set", seed, pictures)


def draw(store: ObjectStore, emulators: Emulators, count: int, seeds: list[int]) -> None:
    keep_prompts(store, "set", prompts(count))
    account = account_for(emulators().base_url, store)
    for seed in seeds:
        launch(store, account, seed=seed)
        refresh_features(store, "set", seed)


def give_hashes(store: ObjectStore, seed: int, hashes: Mapping[str, str]) -> None:
    """Have the pictures of some prompts look otherwise."""
    manifest, _ = read_current(store, "set", seed)
    current, _ = read_current_features(store, "set", seed)
    table = read_features(store, "set", seed)
    assert manifest is not None
    assert current is not None
    assert table is not None
    rows = read_manifest(store, manifest.manifest).set_index("image_sha256")["prompt"]
    shown = table["image_sha256"].map(rows).map(hashes)
    fields = pa.schema([(name, kind) for name, (kind, _) in FEATURE_COLUMNS.items()])
    changed = table.assign(phash=shown.fillna(table["phash"]))
    write_table(
        store, current.table, packed(pa.Table.from_pandas(changed, fields, preserve_index=False))
    )


def test_one_prompt_in_twenty_may_look_the_same_under_two_seeds(
    store: ObjectStore, emulators: Emulators
) -> None:
    draw(store, emulators, PROMPTS, [1, 2])
    assert PROMPTS * ALIKE_SHARE == 1
    found = twins(store, 1)
    assert (found.prompts, found.alike, found.are_too_many) == (PROMPTS, 0, False)
    first, second, third = prompts(3)
    give_hashes(store, 1, dict.fromkeys((first, second), "0" * 16))
    # So many bits apart they still look alike, and one more is enough to tell them apart.
    near, far = f"{2**ALIKE_BITS - 1:016x}", f"{2 ** (ALIKE_BITS + 1) - 1:016x}"
    give_hashes(store, 2, {first: near, second: far})
    found = twins(store, 1)
    assert list(found.rows["prompt"]) == [first]
    assert list(found.rows["bits"]) == [ALIKE_BITS]
    assert (found.alike, found.are_too_many) == (1, False)
    give_hashes(store, 1, {third: "f" * 16})
    give_hashes(store, 2, {third: "f" * 16})
    found = twins(store, 1)
    assert (found.alike, found.are_too_many) == (2, True)
    assert set(found.rows["other_seed"]) == {2}


def test_a_partition_is_compared_with_so_many_seeds_and_the_nearest(
    store: ObjectStore, emulators: Emulators, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw(store, emulators, 1, [1, 5, 6, 900])
    assert twins(store, 5).seeds == [1, 6, 900]
    monkeypatch.setattr(judging, "OTHER_SEEDS", 2)
    assert twins(store, 5).seeds == [1, 6]
    assert twins(store, 900).seeds == [5, 6]


def test_where_nothing_was_drawn_or_measured_there_is_nothing_to_judge(
    store: ObjectStore, emulators: Emulators
) -> None:
    keep_prompts(store, "set", prompts(1))
    assert read_pictures(store, "set", 1) is None
    launch(store, account_for(emulators().base_url, store))
    assert read_pictures(store, "set", 1) is None
    refresh_features(store, "set", 1)
    pictures = read_pictures(store, "set", 1)
    assert pictures is not None
    assert find_wrong_sizes(store, "set", 1, pictures, ModelsLabRequest).empty
    found = twins(store, 1)
    assert (found.seeds, found.prompts, found.are_too_many) == ([], 0, False)
    assert found.rows.empty
