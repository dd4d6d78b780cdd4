"""Croissant 1.1: JSON-LD that describes a release's Parquet shards.

Format: https://docs.mlcommons.org/croissant/docs/croissant-spec-1.1.html. Paths are relative to the
file, so that it describes the folder it lies in.
"""

import json
from collections.abc import Iterator
from typing import Any, Final

import pyarrow as pa

from nanobanana_pipeline.bucket_keys import release_key
from nanobanana_pipeline.datasets.formats.base import Page, ReleaseFormat
from nanobanana_pipeline.datasets.formats.parquet import IMAGE
from nanobanana_pipeline.datasets.release import Format, Release
from nanobanana_pipeline.datasets.release_rows import KEY_COLUMN
from nanobanana_pipeline.storage import ObjectStore

__all__ = ["CROISSANT", "CROISSANT_FORMAT"]

CROISSANT: Final = "croissant.json"
SHARDS: Final = "parquet-shards"
RECORDS: Final = "images"
KEYWORDS: Final = ("synthetic", "trainedAlgorithmicMedia")
ENCODING: Final = "application/x-parquet"
TYPES: Final = {
    "int32": "sc:Integer",
    "int64": "sc:Integer",
    "float": "sc:Float",
    "double": "sc:Float",
    "bool": "sc:Boolean",
}
PLAIN: Final = (
    *("citeAs", "column", "extract", "field", "fileObject", "fileProperty", "fileSet", "format"),
    *("includes", "isArray", "isLiveDataset", "jsonPath", "key", "md5", "parentField", "path"),
    *("recordSet", "references", "regex", "repeated", "replace", "samplingRate", "separator"),
    *("source", "subField", "transform", "arrayShape", "containedIn", "equivalentProperty"),
)
CONTEXT: Final[dict[str, Any]] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "dct": "http://purl.org/dc/terms/",
    "sc": "https://schema.org/",
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "description": {"@container": "@language"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "name": {"@container": "@language"},
    **{name: f"cr:{name}" for name in PLAIN},
}


def croissant(release: Release, url: str) -> bytes:
    """Describe a release with Parquet shards, which lies at `url`, as JSON-LD."""
    files = release.shards(Format.PARQUET)
    recipe = release.recipe
    said = {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "name": release.name,
        "description": recipe["description"],
        "conformsTo": "http://mlcommons.org/croissant/1.1",
        "license": recipe["licence"],
        "keywords": list(dict.fromkeys([*KEYWORDS, *recipe["tags"]])),
        "citeAs": f"{release.name} {release.version}, fingerprint {release.fingerprint}",
        "url": url,
        "version": f"{release.version.removeprefix('v')}.0.0",
        "datePublished": release.created,
        "distribution": [
            *(
                {
                    "@type": "cr:FileObject",
                    "@id": file.path,
                    "name": file.path,
                    "contentUrl": file.path,
                    "contentSize": f"{file.size} B",
                    "encodingFormat": ENCODING,
                    "sha256": file.sha256,
                }
                for file in files
            ),
            {
                "@type": "cr:FileSet",
                "@id": SHARDS,
                "name": SHARDS,
                "description": "All Parquet shards, of all splits.",
                "encodingFormat": ENCODING,
                "includes": "parquet/*/*.parquet",
            },
        ],
        "recordSet": [
            {
                "@type": "cr:RecordSet",
                "@id": RECORDS,
                "name": RECORDS,
                "description": "One record a picture.",
                "key": {"@id": f"{RECORDS}/{KEY_COLUMN}"},
                "field": [
                    _field(IMAGE, "sc:ImageObject", transform={"jsonPath": "bytes"}),
                    *(
                        _field(name, TYPES.get(kind, "sc:Text"))
                        for name, kind in release.columns.items()
                    ),
                ],
            }
        ],
    }
    return json.dumps(said, indent=1, ensure_ascii=False).encode()


def _field(name: str, kind: str, **source: dict[str, str]) -> dict[str, Any]:
    return {
        "@type": "cr:Field",
        "@id": f"{RECORDS}/{name}",
        "name": name,
        "dataType": kind,
        "source": {"fileSet": {"@id": SHARDS}, "extract": {"column": name}, **source},
    }


def _pages(store: ObjectStore, release: Release, _rows: pa.Table) -> Iterator[Page]:
    url = store.uri(release_key(release.name, release.version, ""))
    yield Page(CROISSANT, croissant(release, url), "application/ld+json")


CROISSANT_FORMAT: Final = ReleaseFormat(pages=_pages, shards_of=Format.PARQUET)
