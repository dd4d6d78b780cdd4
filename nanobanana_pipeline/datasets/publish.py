"""Builds a release and makes it the latest one: `build_release`.

A claim on a version's folder fixes all that its files are made of, and every file's bytes follow
from that: a second build of the same, later or at the same time, writes the same bytes under the
same keys. ``release.json`` is written after all files, ``latest.json`` last.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version as installed_version
from typing import Any, Final

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from nanobanana_pipeline.bucket_keys import latest_release_key, release_key, release_prefix
from nanobanana_pipeline.datasets.changelog import changes
from nanobanana_pipeline.datasets.formats import FORMATS, shards_of
from nanobanana_pipeline.datasets.formats.base import PARQUET_MEDIA_TYPE, Page
from nanobanana_pipeline.datasets.formats.gallery import GALLERY, gallery, shown_places
from nanobanana_pipeline.datasets.recipe import Recipe
from nanobanana_pipeline.datasets.release import (
    BUILD_QUIET_SECONDS,
    CHANGELOG,
    MANIFEST,
    REJECTED,
    EveryRelease,
    Format,
    Release,
    ReleaseFile,
    parse_latest,
    read_latest,
    read_release,
    read_release_table,
    table_bytes,
)
from nanobanana_pipeline.datasets.release_rows import (
    KEY_COLUMN,
    as_table,
    plain_table,
    row_digests,
    schema_text,
    taken,
)
from nanobanana_pipeline.datasets.row_images import read_thumbnails
from nanobanana_pipeline.datasets.shard_builder import build_shards
from nanobanana_pipeline.datasets.shard_layout import BUILD, assign_shards
from nanobanana_pipeline.errors import ReleaseError
from nanobanana_pipeline.features.measure import THUMBNAIL_SIDE
from nanobanana_pipeline.generation.manifest.manifest import CurrentManifest
from nanobanana_pipeline.generation.manifest.rows import count_images
from nanobanana_pipeline.images.contact_sheet import caption, contact_sheet
from nanobanana_pipeline.storage import ObjectStore, abort_uploads
from nanobanana_pipeline.storage.cas import parse_json, put_if_absent, swap

__all__ = ["build_release", "samples_path"]

SCHEMA: Final = 1
SAMPLES: Final = 12
SAMPLES_A_ROW: Final = 4


@dataclass(frozen=True)
class _Claim:
    """The inputs of the build that owns a version's folder.

    A build that goes on with another one takes over its time and its manifests: the same rows may
    be in a later manifest too.
    """

    fingerprint: str
    parent: str | None
    rejected: str
    created: str
    sources: Sequence[dict[str, Any]] = ()
    schema: int = SCHEMA

    def same_build(self, other: "_Claim") -> bool:
        return replace(self, created=other.created, sources=other.sources) == other


def build_release(
    store: ObjectStore,
    recipe: Recipe,
    rows: pd.DataFrame,
    rejected: pd.DataFrame,
    *,
    parent: Release | None,
    manifests: Sequence[CurrentManifest] = (),
) -> Release:
    """Publish these rows as the dataset's next release; gives the one that is the latest now.

    Goes on with a build that was killed. Where the latest release has the same rows and the same
    recipe, nothing is built and that one is given.

    Args:
        store: the bucket.
        recipe: what the rows were chosen by.
        rows: one a picture, in release order.
        rejected: rows left out: row_id and reason at least.
        parent: the release that these rows continue: the latest one when they were chosen.
        manifests: what the rows were drawn from; the gallery names them.

    Raises:
        ReleaseError: there are no rows, a picture is missing or damaged, or somebody has published
            other rows in the meantime.
    """
    table = as_table(rows)
    digests = row_digests(table)
    made_of = [BUILD, recipe.fingerprint, schema_text(table.schema), digests]
    fingerprint = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()
    latest = read_latest(store, recipe.name)
    if latest is not None and latest.fingerprint == fingerprint:
        return latest
    _refuse_overtaken(store, recipe.name, parent, latest)
    version, claim = _claim(store, recipe.name, parent, fingerprint, rejected, manifests)
    abort_uploads(store, release_prefix(recipe.name), BUILD_QUIET_SECONDS)
    key = release_key(recipe.name, version, "release.json")
    if store.get(key) is None:
        release = _build(store, recipe, table, digests, rejected, parent, version, claim)
        put_if_absent(store, key, release.to_json(), content_type="application/json")
    # Of two builders of the same, the first one's counts.
    found = store.get(key)
    if found is None:
        raise ReleaseError(f"{store.uri(key)} vanished while it was published: build again")
    return _publish(store, recipe.name, version, hashlib.sha256(found.body).hexdigest(), parent)


def _build(
    store: ObjectStore,
    recipe: Recipe,
    table: pa.Table,
    digests: list[str],
    rejected: pd.DataFrame,
    parent: Release | None,
    version: str,
    claim: _Claim,
) -> Release:
    earlier = read_release_table(store, parent, MANIFEST) if parent else None
    next_key = parent.next_key if parent else 0
    shards = assign_shards(table, digests, recipe.shard_size, earlier, next_key)
    keyed = table.add_column(0, KEY_COLUMN, pa.array(shards.keys))
    numbered = keyed.append_column("shard", pa.array(shards.numbers, pa.int32()))
    manifest = numbered.append_column("row_sha256", pa.array(digests, pa.string()))
    tables = {MANIFEST: manifest, REJECTED: plain_table(rejected)}
    if earlier is not None:
        now = manifest.select(["row_id", "row_sha256"]).to_pandas()
        tables[CHANGELOG] = plain_table(changes(now, earlier, rejected))
    images, size = count_images(table.select)
    needed = {shards_of(name) for name in recipe.formats}
    release = Release(
        name=recipe.name,
        version=version,
        fingerprint=claim.fingerprint,
        parent=claim.parent,
        created=claim.created,
        code_version=installed_version("nanobanana-pipeline"),
        recipe=recipe.model_dump(mode="json"),
        rows=len(table),
        images=images,
        size=size,
        splits=_counts(table["split"]),
        kinds=_counts(table["format"]),
        columns={field.name: str(field.type) for field in keyed.schema},
        changes=_counts(tables[CHANGELOG]["change"]) if CHANGELOG in tables else {},
        next_key=shards.next_key,
        files=tuple(
            build_shards(
                store,
                (recipe.name, version),
                keyed,
                shards.shards,
                {
                    name: each.shards
                    for name, each in FORMATS.items()
                    if name in needed and each.shards
                },
                parent.files if parent else (),
            )
        ),
    )
    pages: list[tuple[Format | EveryRelease, Page]] = []
    for name, each in FORMATS.items():
        if name in recipe.formats and each.pages is not None:
            pages += [(name, page) for page in each.pages(store, release, keyed)]
    pages += [
        (EveryRelease.MANIFEST, page)
        for page in (
            *_shown(store, release, keyed, claim.sources),
            *(Page(path, table_bytes(each), PARQUET_MEDIA_TYPE) for path, each in tables.items()),
        )
    ]
    files = [_stored(store, release, name, page) for name, page in pages]
    return replace(release, files=(*release.files, *files))


def samples_path(split: str) -> str:
    """The path in a release of a split's contact sheet."""
    return f"samples/{split}.webp"


def _shown(
    store: ObjectStore, release: Release, table: pa.Table, sources: Sequence[dict[str, Any]]
) -> Iterator[Page]:
    """The pages on which people look at the pictures."""
    shown = taken(table, shown_places(table))
    thumbnails = read_thumbnails(store, shown)
    page = gallery(release, shown, thumbnails, sources, store.uri(""))
    yield Page(GALLERY, page, "text/html; charset=utf-8")
    rows = shown.select(["split", "image_sha256", "prompt", "prompt_id", "seed"]).to_pandas()
    for split, some in rows.groupby("split", sort=True):
        first = some.head(SAMPLES)
        pictures = [(thumbnails[sha256], caption(*named)) for _, sha256, *named in first.to_numpy()]
        sheet = contact_sheet(
            pictures, columns=SAMPLES_A_ROW, tile=THUMBNAIL_SIDE, image_format="WEBP"
        )
        yield Page(samples_path(str(split)), sheet, "image/webp")


def _stored(
    store: ObjectStore, release: Release, name: Format | EveryRelease, page: Page
) -> ReleaseFile:
    key = release_key(release.name, release.version, page.path)
    store.put(key, page.body, content_type=page.media_type)
    sha256 = hashlib.sha256(page.body).hexdigest()
    return ReleaseFile(page.path, key, len(page.body), sha256, name)


def _counts(values: pa.ChunkedArray) -> dict[str, int]:
    counts = pc.value_counts(values).to_pylist()
    return dict(sorted((each["values"], each["counts"]) for each in counts))


def _refuse_overtaken(
    store: ObjectStore, dataset: str, parent: Release | None, latest: Release | None
) -> None:
    before, now = (release.version if release else None for release in (parent, latest))
    if before != now:
        raise ReleaseError(
            f"these rows were chosen to follow {before or 'no release'} of {dataset}, and "
            f"{store.uri(latest_release_key(dataset))} names {now or 'none'} now: somebody else "
            "has published in the meantime. Build again, to follow that one"
        )


def _claim(
    store: ObjectStore,
    dataset: str,
    parent: Release | None,
    fingerprint: str,
    rejected: pd.DataFrame,
    manifests: Sequence[CurrentManifest],
) -> tuple[str, _Claim]:
    """A version whose folder belongs to this build, and what it was begun with.

    A folder that another build has begun stays that build's; this one takes the next number.
    """
    mine = _Claim(
        fingerprint=fingerprint,
        parent=parent.version if parent else None,
        rejected=hashlib.sha256(table_bytes(plain_table(rejected))).hexdigest(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        sources=[
            {
                "prompt_set": each.prompt_set,
                "seed": each.seed,
                "fingerprint": each.fingerprint,
                "manifest": each.manifest,
                "parameters": dict(each.parameters),
            }
            for each in manifests
        ],
    )
    body = json.dumps(mine.__dict__).encode()
    number = int(parent.version.removeprefix("v")) if parent else 0
    while True:
        number += 1
        key = release_key(dataset, f"v{number}", "build.json")
        put_if_absent(store, key, body, content_type="application/json")
        found = store.get(key)
        if found is None:
            raise ReleaseError(f"{store.uri(key)} vanished while it was read: build again")
        standing = parse_json(
            found.body,
            store.uri(key),
            lambda body: _Claim(**json.loads(body)),
            SCHEMA,
            error=ReleaseError,
        )
        if mine.same_build(standing):
            return f"v{number}", standing


def _publish(
    store: ObjectStore, dataset: str, version: str, sha256: str, parent: Release | None
) -> Release:
    release = read_release(store, dataset, version, sha256)
    pointer = {
        "schema": SCHEMA,
        "version": version,
        "fingerprint": release.fingerprint,
        "release": release_key(dataset, version, "release.json"),
        "sha256": sha256,
    }

    def follow(latest: Release | None) -> Release:
        if latest is not None and latest.fingerprint == release.fingerprint:
            return latest
        _refuse_overtaken(store, dataset, parent, latest)
        return release

    _, published = swap(
        store,
        latest_release_key(dataset),
        partial(parse_latest, store, dataset),
        follow,
        lambda _: json.dumps(pointer, indent=1).encode(),
    )
    return published
