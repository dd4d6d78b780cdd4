"""Every parameter of a launch's config reaches the provider, behind a row's own column."""

import csv
import io
from collections.abc import Callable
from pathlib import Path

from dagster_nanobanana.launch_config import GenerationConfig
from tests.dagster_nanobanana.conftest import Project
from tests.generation.test_fields import FIELDS, sold

SWITCHES = {"watermark", "base64", "temp"}
CONFIG = {
    name: told == "yes" if name in SWITCHES else told for name, (_, told, _) in FIELDS.items()
}


def test_the_config_of_a_launch_reaches_the_provider_and_a_rows_column_goes_before_it(
    project: Callable[..., Project], tmp_path: Path
) -> None:
    assert set(CONFIG) | {"keep_original_aspect", "webhook"} <= set(GenerationConfig.model_fields)
    here = project(data_dir=tmp_path / "emulator")
    table = io.StringIO()
    rows = csv.DictWriter(table, ["prompt", *FIELDS])
    rows.writeheader()
    rows.writerow({"prompt": "own", **{name: own for name, (own, _, _) in FIELDS.items()}})
    rows.writerow({"prompt": "told"})
    assert here.make_prompt_set(csv=table.getvalue()).success
    assert here.generate(config=CONFIG).success
    found = sold(tmp_path / "emulator")
    for place, prompt in enumerate(("own", "told")):
        expected = {name: values[place] for name, values in FIELDS.items()}
        assert {name: found[prompt][name] for name in FIELDS} == expected
