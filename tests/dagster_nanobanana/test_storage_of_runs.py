"""What Dagster keeps of runs: nothing for each picture, and compute logs on S3 where asked for."""

import re
import uuid
from collections.abc import Callable
from pathlib import Path

import dagster as dg
import pytest
from dagster._serdes import serialize_value

from dagster_nanobanana.assets import generated_images
from nanobanana_pipeline import local
from nanobanana_pipeline.storage import ObjectStore, s3_client
from tests.dagster_nanobanana.conftest import Project
from tests.test_provider_page import ROOT

Projects = Callable[..., Project]
PAGE = (ROOT / "docs" / "operations.md").read_text("utf-8")


def test_a_run_writes_as_many_events_for_50_pictures_as_for_5(
    project: Projects, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Lines of progress come by the clock, each later by half than the one before.
    monkeypatch.setattr(generated_images, "PROGRESS_SECONDS", 3600.0)
    here = project()
    kept: dict[int, tuple[int, int]] = {}
    for count in (5, 50):
        name = f"set{count}"
        assert here.make_prompt_set(
            name, "prompt\n" + "".join(f"{name} {number:03}\n" for number in range(count))
        ).success
        result = here.generate(f"{name}|1")
        assert result.success
        logs = here.instance.all_logs(result.run_id)
        kept[count] = (len(logs), sum(len(serialize_value(entry)) for entry in logs))
    assert kept[5][0] == kept[50][0]
    assert kept[50][1] < 1.1 * kept[5][1]


def test_compute_logs_go_to_s3_as_the_page_says(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [snippet] = re.findall(r"```yaml\n(compute_logs:.*?)```", PAGE, re.DOTALL)
    (tmp_path / "dagster.yaml").write_text((ROOT / "dagster.yaml").read_text() + snippet)
    monkeypatch.setenv("NANOBANANA_BUCKET", local.BUCKET)
    said = f"said by a step {uuid.uuid4().hex}"

    @dg.op
    def speak() -> None:
        print(said)  # noqa: T201 - this is what is kept

    @dg.job
    def speaking() -> None:
        speak()

    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        run_id = speaking.execute_in_process(instance=instance).run_id
    bucket = ObjectStore(s3_client(), store.bucket)
    keys = [key for key in bucket.keys("dagster/") if run_id in key]
    bodies = [found.body for key in keys if (found := bucket.get(key)) is not None]
    assert any(said.encode() in body for body in bodies)
