"""The asset on an ephemeral instance, a real bucket and pictures that were really bought."""

from collections.abc import Callable
from typing import Any

import dagster as dg

from dagster_nanobanana.assets.generated_images import generated_images
from dagster_nanobanana.assets.image_features import image_features
from dagster_nanobanana.assets.prompt_set import prompt_set
from nanobanana_pipeline.bucket_keys import preview_key
from nanobanana_pipeline.features.table import FEATURE_COLUMNS, read_current_features
from nanobanana_pipeline.generation.manifest.manifest import read_current
from tests.dagster_nanobanana.conftest import CSV, Project
from tests.launching import bought

Projects = Callable[..., Project]


def run(project: Project, key: str = "demo|1") -> dg.ExecuteInProcessResult:
    """Materialize the features of a partition; nothing may be bought for it."""
    before = bought(project.emulator)
    result = dg.materialize(
        [prompt_set, generated_images, image_features],
        selection=[image_features],
        partition_key=key,
        instance=project.instance,
        resources=project.resources,
        raise_on_error=False,
    )
    assert bought(project.emulator) == before
    return result


def materialized(result: dg.ExecuteInProcessResult) -> tuple[dict[str, Any], str]:
    assert result.success
    [event] = result.asset_materializations_for_node("image_features")
    return dict(event.metadata), str((event.tags or {})["dagster/data_version"])


def test_a_partition_is_measured_and_described(project: Projects) -> None:
    here = project()
    here.make_prompt_set()
    here.generate()
    metadata, version = materialized(run(here))
    current, _ = read_current_features(here.store, "demo", 1)
    assert current is not None
    assert version == current.content
    told = {name: value.value for name, value in metadata.items()}
    assert told["dagster/uri"] == here.store.uri(current.table)
    assert (told["dagster/row_count"], told["measured now"], told["taken over"]) == (3, 3, 0)
    assert (told["blank"], told["not measurable"], told["missing cells"]) == (0, 0, 0)
    sheet = "features/demo/seed=1/contact_sheet.webp"
    assert told["contact sheet lies at"] == here.store.uri(sheet)
    columns = told["dagster/column_schema"].columns
    assert [column.name for column in columns] == list(FEATURE_COLUMNS)
    assert all(column.description for column in columns)
    assert [record.data["blank"] for record in metadata["rows"].records] == [False] * 3
    picture = told["contact sheet"]
    assert picture.startswith("![the first pictures](data:image/webp;base64,")
    # More is hidden behind a link.
    assert len(picture) < 1000


def test_with_an_address_for_browsers_the_stored_sheet_is_shown(project: Projects) -> None:
    here = project(preview_url="http://127.0.0.1:1/bucket")
    here.make_prompt_set()
    made = here.generate()
    [event] = made.asset_materializations_for_node("generated_images.collect")
    bucket = f"http://127.0.0.1:1/bucket/{here.store.prefix}"
    current, _ = read_current(here.store, "demo", 1)
    assert current is not None
    key = preview_key("demo", 1, current.content)
    assert here.store.head(key) is not None
    assert event.metadata["contact sheet"].value == (
        f"![some of the pictures]({bucket}{key.replace('=', '%3D')})"
    )
    [check] = made.get_asset_check_evaluations()
    assert check.metadata["contact sheet"] == event.metadata["contact sheet"]
    metadata, version = materialized(run(here))
    assert metadata["contact sheet"].value == (
        f"![the first pictures]({bucket}features/demo/seed%3D1/contact_sheet.webp?v={version[:12]})"
    )


def test_without_one_generated_images_shows_small_pictures_too(project: Projects) -> None:
    here = project()
    here.make_prompt_set()
    [event] = here.generate().asset_materializations_for_node("generated_images.collect")
    shown = str(event.metadata["contact sheet"].value)
    assert shown.startswith("![some of the pictures](data:image/webp;base64,")
    assert len(shown) < 1000


def test_a_second_run_measures_nothing_and_is_the_same_version(project: Projects) -> None:
    here = project()
    here.make_prompt_set()
    here.generate()
    _, version = materialized(run(here))
    metadata, again = materialized(run(here))
    assert (metadata["measured now"].value, metadata["taken over"].value) == (0, 3)
    assert again == version
    here.make_prompt_set(csv=f"{CSV}d,a boat\n")
    here.generate(config={})
    metadata, grown = materialized(run(here))
    assert (metadata["measured now"].value, metadata["taken over"].value) == (1, 3)
    assert grown != version


def test_a_partition_without_a_manifest_fails_in_a_sentence(project: Projects) -> None:
    here = project()
    here.make_prompt_set()
    here.instance.add_dynamic_partitions("seed", ["1"])
    result = run(here)
    assert not result.success
    failure = next(event for event in result.all_events if event.is_step_failure)
    assert "launch generated_images for it first" in str(failure.event_specific_data)


def test_cells_that_are_missing_are_counted(project: Projects) -> None:
    here = project(moods={"lost_answer_after": 1.0})
    here.make_prompt_set()
    assert not here.generate().success
    metadata, _ = materialized(run(here))
    assert metadata["missing cells"].value == 3
    assert metadata["dagster/row_count"].value == 0
    assert metadata["contact sheet"].value == "none"
