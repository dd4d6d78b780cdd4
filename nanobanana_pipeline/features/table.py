"""The table of features of a partition: one row a distinct picture of its current manifest.

Incremental: rows of the table before are taken over by SHA-256, and only new pictures are decoded.
Rows with an error are tried again each time.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Final

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from nanobanana_pipeline.bucket_keys import contact_sheet_key, features_prefix, image_key
from nanobanana_pipeline.errors import PlanError
from nanobanana_pipeline.features.workers import measure_all
from nanobanana_pipeline.generation.manifest.manifest import (
    CurrentManifest,
    read_current,
    read_manifest,
)
from nanobanana_pipeline.images.contact_sheet import caption, contact_sheet
from nanobanana_pipeline.ledger import new_nonce, now_iso
from nanobanana_pipeline.storage import ObjectStore
from nanobanana_pipeline.storage.cas import contention
from nanobanana_pipeline.storage.versioned import (
    SCHEMA_KEY,
    TableColumns,
    as_frame,
    open_stored,
    packed,
    read_pointer,
    read_table,
    swap_pointer,
    write_table,
)

__all__ = [
    "FEATURE_COLUMNS",
    "FEATURE_TABLE_SCHEMA",
    "CurrentFeatures",
    "RefreshedFeatures",
    "read_current_features",
    "read_features",
    "refresh_features",
]

SCHEMA: Final = 1
"""Also raised when a figure is measured otherwise: rows of an older table are not taken over."""
SHEET_PICTURES: Final = 24
SHEET_COLUMNS: Final = 4
SHEET_SIDE: Final = 112
"""Four of them beside each other fit the column of a partition's page."""

FeatureRow = dict[str, Any]

FEATURE_COLUMNS: Final[TableColumns] = {
    "image_sha256": (pa.string(), "of the bytes, 64 hexadecimal digits"),
    "format": (pa.string(), "png, jpg or webp, as the bytes say"),
    "mode": (pa.string(), "of the pixels, as Pillow calls it: RGB, RGBA, L, P, …"),
    "width": (pa.int32(), "pixels"),
    "height": (pa.int32(), "pixels"),
    "bytes": (pa.int64(), "size of the image"),
    "mean": (pa.float32(), "mean luminance (ITU-R 601), 0 to 255"),
    "entropy": (pa.float32(), "of the histogram of luminance, bits, 0 to 8"),
    "sharpness": (pa.float32(), "variance of the Laplacian of luminance; blurred is low"),
    "blank": (pa.bool_(), "near-uniform: 99 % of the pixels within 8 levels of each colour"),
    "phash": (pa.string(), "64-bit perceptual hash (ImageHash's phash), 16 hexadecimal digits"),
    "provenance": (pa.string(), "marks that the image bears, joined by a space; null if none"),
    "error": (pa.string(), "why it could not be measured; null if it was"),
    "thumbnail": (pa.binary(), "WebP, longest side 128 pixels"),
}
FEATURE_TABLE_SCHEMA: Final = pa.schema(
    [pa.field(name, kind) for name, (kind, _) in FEATURE_COLUMNS.items()],
    metadata={SCHEMA_KEY: str(SCHEMA).encode()},
)


@dataclass(frozen=True)
class CurrentFeatures:
    """What `current.json` says of a partition's features.

    Attributes:
        table: the Parquet file's key, below the prefix.
        manifest: the key of the manifest that they were measured for; a later one may have the
            same pictures.
        content: SHA-256 of all rows but their thumbnails, which another version of libwebp draws
            with other bytes.
        rows: distinct pictures.
        blank: how many are near-uniform.
        errors: how many could not be measured.
        sheet: the contact sheet's key; None where there is nothing to show.
    """

    prompt_set: str
    seed: int
    table: str
    manifest: str
    content: str
    rows: int
    blank: int
    errors: int
    sheet: str | None
    created: str
    schema: int = SCHEMA


@dataclass(frozen=True)
class RefreshedFeatures:
    """What a refresh has done.

    Attributes:
        rows: the table's, in the manifest's order, with `prompt` and `key` (the picture's).
        measured: how many of them were decoded now.
        gaps: cells of the manifest that are missing and may still come.
    """

    current: CurrentFeatures
    rows: pd.DataFrame
    measured: int
    gaps: int


def read_current_features(
    store: ObjectStore, prompt_set: str, seed: int
) -> tuple[CurrentFeatures | None, str | None]:
    """A partition's current features and the ETag of `current.json`; (None, None) if none."""
    key = f"{features_prefix(prompt_set, seed)}current.json"
    return read_pointer(store, key, CurrentFeatures, SCHEMA)


def read_features(store: ObjectStore, prompt_set: str, seed: int) -> pd.DataFrame | None:
    """A partition's table of features, by SHA-256: `FEATURE_COLUMNS`; None if there is none."""
    current, _ = read_current_features(store, prompt_set, seed)
    return None if current is None else read_table(store, current.table, FEATURE_COLUMNS)


def refresh_features(
    store: ObjectStore,
    prompt_set: str,
    seed: int,
    on_progress: Callable[[int, int], None] = lambda _all, _done: None,
) -> RefreshedFeatures:
    """Measure the pictures of a partition that its table does not know, and publish the new table.

    Where nothing has changed nothing is written. A launch that is killed leaves the old table in
    force; of two at once one takes over what the other has measured. `on_progress` is called with
    how many pictures there are to measure and how many are done.

    Raises:
        PlanError: the partition has no manifest.
    """
    measured: dict[str, FeatureRow] = {}
    pointer = f"{features_prefix(prompt_set, seed)}current.json"
    back_off = contention(store.uri(pointer))
    while True:
        manifest, pictures = _pictures(store, prompt_set, seed)
        before, etag = read_current_features(store, prompt_set, seed)
        rows = _known_rows(store, before) | measured
        missing = {
            str(sha256): key for sha256, key in pictures["key"].items() if sha256 not in rows
        }
        for row in measure_all(store, missing, partial(on_progress, len(missing))):
            values = asdict(row)
            measured[row.image_sha256] = {**values, "bytes": values.pop("size")}
        rows |= measured
        table = pa.Table.from_pylist(
            [rows[sha256] for sha256 in sorted(pictures.index)], schema=FEATURE_TABLE_SCHEMA
        )
        content = _content_hash(table)
        new = len(measured.keys() & set(pictures.index))
        shown = pictures.join(as_frame(table).set_index("image_sha256")).reset_index()
        if before is not None and (before.content, before.schema) == (content, SCHEMA):
            return RefreshedFeatures(before, shown, new, manifest.gaps)
        current = CurrentFeatures(
            prompt_set=prompt_set,
            seed=seed,
            table=f"{features_prefix(prompt_set, seed)}{new_nonce()}.parquet",
            manifest=manifest.manifest,
            content=content,
            rows=len(shown),
            blank=int(shown["blank"].sum()),
            errors=int(shown["error"].notna().sum()),
            sheet=_put_sheet(store, prompt_set, seed, shown),
            created=now_iso(),
        )
        write_table(store, current.table, packed(table))
        if swap_pointer(store, pointer, asdict(current), etag):
            return RefreshedFeatures(current, shown, new, manifest.gaps)
        back_off()


def _pictures(
    store: ObjectStore, prompt_set: str, seed: int
) -> tuple[CurrentManifest, pd.DataFrame]:
    """A partition's distinct pictures in the manifest's order, by SHA-256, with what names them."""
    manifest, _ = read_current(store, prompt_set, seed)
    if manifest is None:
        raise PlanError(
            f"{prompt_set}, seed {seed} has no pictures yet: launch generated_images for it first"
        )
    columns = ["image_sha256", "format", "prompt_id", "prompt"]
    rows = read_manifest(store, manifest.manifest, columns)
    rows = rows.dropna(subset="image_sha256").drop_duplicates("image_sha256")
    rows["key"] = list(map(image_key, rows["image_sha256"], rows.pop("format")))
    return manifest, rows.set_index("image_sha256")


def _known_rows(store: ObjectStore, before: CurrentFeatures | None) -> dict[str, FeatureRow]:
    """The rows of a table that may be taken over, by SHA-256."""
    if before is None or before.schema < SCHEMA:
        return {}
    rows = open_stored(store, before.table, FEATURE_COLUMNS, list(FEATURE_COLUMNS)).read_all()
    rows = rows.filter(pc.is_null(rows["error"])).to_pylist()
    return {row["image_sha256"]: row for row in rows}


def _content_hash(table: pa.Table) -> str:
    body = json.dumps(table.drop_columns(["thumbnail"]).to_pydict(), separators=(",", ":"))
    return hashlib.sha256(body.encode()).hexdigest()


def _put_sheet(store: ObjectStore, prompt_set: str, seed: int, shown: pd.DataFrame) -> str | None:
    """Draw the contact sheet of the first pictures; gives its key, or None without pictures."""
    first = shown.dropna(subset="thumbnail").head(SHEET_PICTURES)
    if first.empty:
        return None
    captions = map(caption, first["prompt"], first["prompt_id"])
    sheet = contact_sheet(
        list(zip(first["thumbnail"], captions, strict=True)),
        columns=SHEET_COLUMNS,
        tile=SHEET_SIDE,
        image_format="WEBP",
    )
    key = contact_sheet_key(prompt_set, seed)
    store.put(key, sheet, content_type="image/webp")
    return key
