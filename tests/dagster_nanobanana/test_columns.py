"""What Dagster says the columns of its assets are made of."""

import json

from dagster_nanobanana.presentation.columns import IMAGES_METADATA
from nanobanana_pipeline.provider.modelslab.request import ModelsLabRequest
from nanobanana_pipeline.request import canonical_json


def test_the_request_key_is_made_of_the_columns_that_it_hashes() -> None:
    request = ModelsLabRequest(prompt="a fox", seed=1, ref_sha256=("0" * 64,))
    hashed = set(json.loads(canonical_json(request, realm="emulator")))
    origins = IMAGES_METADATA["dagster/column_lineage"].deps_by_column["request_key"]
    assert {(dep.asset_key.path[-1], dep.column_name) for dep in origins} == {
        ("prompt_set", name) for name in hashed - {"key_version", "realm", "endpoint", "variant"}
    }
