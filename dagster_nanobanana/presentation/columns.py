"""The columns of each asset, and what they are made of: on its page before it was ever made.

They belong to the definition: in each materialization they would only make Dagster's storage grow.
The lineage of columns is for catalogues that read Dagster's metadata: its own open pages draw none
(1.13), wherever it stands.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final, get_type_hints

import dagster as dg

from nanobanana_pipeline.datasets.recipe_inputs import ROW_COLUMNS
from nanobanana_pipeline.features.table import FEATURE_COLUMNS
from nanobanana_pipeline.generation.manifest.manifest import MANIFEST_COLUMNS, OUTCOME_COLUMNS
from nanobanana_pipeline.provider.account import PROVIDER

__all__ = ["FEATURES_METADATA", "IMAGES_METADATA", "PROMPTS_METADATA", "RELEASES_METADATA"]

ColumnTexts = Mapping[str, tuple[Any, str]]
"""A column's type and what it holds."""
Origins = Mapping[str, Iterable[tuple[str, str]]]
"""What a column is made of: assets and their columns."""

REQUEST: Final = PROVIDER.request_model
OWN_WORDS: Final = {
    "prompt_id": ("string", "of its row: the table's id column, else made from the content"),
    "prompt": ("string", "its text, to the letter"),
    "ref_image": ("string", "its reference pictures, as the table names them"),
    "ref_sha256": ("string", "of their bytes, joined by a space"),
    "row_id": ("string", "request key and sample: the picture's name in every release"),
    "negative_prompt": ("string", "what should not be in the picture"),
    "image_key": ("string", "where the image lies in the bucket"),
    "digital_source_type": ("string", "IPTC's word for what a trained model has drawn"),
}
_KINDS: Final[Mapping[Any, str]] = {int: "int64", float: "double"}


def _metadata(columns: ColumnTexts, origins: Origins) -> dict[str, Any]:
    deps = {
        name: [dg.TableColumnDep(dg.AssetKey(asset), column) for asset, column in made_of]
        for name, made_of in origins.items()
    }
    lineage = {"dagster/column_lineage": dg.TableColumnLineage(deps)} if deps else {}
    schema = [dg.TableColumn(name, str(kind), text) for name, (kind, text) in columns.items()]
    return {"dagster/column_schema": dg.TableSchema(schema), **lineage}


def _prompts() -> ColumnTexts:
    types = get_type_hints(REQUEST)
    given = {
        name: (_KINDS.get(types[name], "string"), "of the request; only where some row says it")
        for name in REQUEST.table_fields()
    }
    own = {name: OWN_WORDS[name] for name in ("prompt_id", "prompt", "ref_image", "ref_sha256")}
    return {"prompt_id": own["prompt_id"], **given, **own}


def _of_images() -> Origins:
    request = [("prompt_set", name) for name in REQUEST.key_fields()]
    return {
        "prompt_id": [("prompt_set", "prompt_id")],
        "prompt": [("prompt_set", "prompt")],
        "seed_asked": [("prompt_set", "seed")],
        "request_key": request,
        **dict.fromkeys(OUTCOME_COLUMNS, request),
    }


def _released() -> ColumnTexts:
    known = {**FEATURE_COLUMNS, **MANIFEST_COLUMNS, **OWN_WORDS}
    # Pandas' names of types say no more to a reader of shards than these.
    return {name: known[name] for name in ROW_COLUMNS}


def _of_releases() -> Origins:
    origins: dict[str, list[tuple[str, str]]] = {
        "row_id": [("generated_images", "request_key"), ("generated_images", "sample")],
        "image_key": [("generated_images", "image_sha256"), ("generated_images", "format")],
        "negative_prompt": [("prompt_set", "negative_prompt")],
        "ref_sha256": [("prompt_set", "ref_sha256")],
    }
    for name in ROW_COLUMNS:
        if name in MANIFEST_COLUMNS:
            origins[name] = [("generated_images", name)]
        elif name in FEATURE_COLUMNS:
            origins[name] = [("image_features", name)]
    return origins


PROMPTS_METADATA: Final = _metadata(_prompts(), {})
IMAGES_METADATA: Final = _metadata(MANIFEST_COLUMNS, _of_images())
FEATURES_METADATA: Final = _metadata(
    FEATURE_COLUMNS, dict.fromkeys(FEATURE_COLUMNS, (("generated_images", "image_sha256"),))
)
RELEASES_METADATA: Final = _metadata(_released(), _of_releases())
