"""The dataset card: ``README.md`` with what Hugging Face's tools read at its top.

With it a folder is a dataset of the Hub, and `datasets.load_dataset(folder)` reads it. Fields:
https://github.com/huggingface/hub-docs/blob/main/datasetcard.md
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from typing import Any, Final

import pyarrow as pa
import yaml

from nanobanana_pipeline.datasets.formats.base import Page, ReleaseFormat
from nanobanana_pipeline.datasets.formats.parquet import DTYPES, IMAGE
from nanobanana_pipeline.datasets.release import Format, Release, ReleaseFile
from nanobanana_pipeline.datasets.release_rows import taken
from nanobanana_pipeline.datasets.row_images import read_image
from nanobanana_pipeline.images.contact_sheet import caption, contact_sheet
from nanobanana_pipeline.storage import ObjectStore
from nanobanana_pipeline.wording import size_text

__all__ = ["CARD", "HUGGINGFACE_FORMAT", "card", "card_of_tars", "preview_places"]

CARD: Final = "README.md"
PREVIEW: Final = "preview.png"
PREVIEW_PICTURES: Final = 12
SIZES: Final = (
    (10**3, "n<1K"),
    (10**4, "1K<n<10K"),
    (10**5, "10K<n<100K"),
    (10**6, "100K<n<1M"),
    (10**7, "1M<n<10M"),
)
TAGS: Final = ("synthetic", "image-generation", "trainedAlgorithmicMedia")
Shards = dict[str, list[ReleaseFile]]
SPDX: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]*")


def card(release: Release, split: str | None = None) -> str:
    """Write the card of a folder with a release's Parquet shards, of one split or all (None)."""
    shards = _shards(release, Format.PARQUET, ".parquet", split)
    front = {**_front_matter(release, shards), "dataset_info": _info(release, shards)}
    shown = Format.HUGGINGFACE in release.recipe["formats"]
    preview = f"![Some of the pictures]({PREVIEW})\n\n" if shown else ""
    return _written(front, _text(release, shards, preview, "| `image` | picture |"))


def card_of_tars(release: Release, split: str | None = None) -> str:
    """Write the card of a folder with tars, so that readers take these and nothing beside them."""
    shards = _shards(release, Format.WEBDATASET, ".tar", split)
    files = "| `png`, `jpg` or `webp` | picture |\n| `txt` | prompt |\n| `json` | all that follow |"
    return _written(_front_matter(release, shards), _text(release, shards, "", files))


def _shards(release: Release, format_: Format, suffix: str, split: str | None) -> Shards:
    """By split, in the recipe's order, which readers list them in; others come last."""
    found: Shards = {name: [] for name in release.recipe["splits"]["ratios"]}
    for file in release.shards(format_, suffix):
        if split in {None, file.split}:
            found.setdefault(str(file.split), []).append(file)
    return {name: files for name, files in found.items() if files}


def _written(front: dict[str, Any], text: str) -> str:
    head = yaml.safe_dump(front, sort_keys=False, allow_unicode=True, width=100)
    return f"---\n{head}---\n\n{text}"


def preview_places(count: int) -> list[int]:
    """Which of `count` rows the picture shows: some from everywhere."""
    shown = min(count, PREVIEW_PICTURES)
    return [place * count // shown for place in range(shown)]


def _front_matter(release: Release, shards: Shards) -> dict[str, Any]:
    paths = {split: PurePosixPath(files[-1].path) for split, files in shards.items()}
    recipe = release.recipe
    return {
        "pretty_name": release.name,
        **_licence(str(recipe["licence"])),
        "task_categories": ["text-to-image"],
        "size_categories": [next((name for end, name in SIZES if release.rows < end), "n>10M")],
        "tags": list(dict.fromkeys([*TAGS, *recipe["tags"]])),
        "configs": [
            {
                "config_name": "default",
                "data_files": [
                    {"split": split, "path": str(path.with_name(f"*{path.suffix}"))}
                    for split, path in paths.items()
                ],
            }
        ],
    }


def _info(release: Release, shards: Shards) -> dict[str, Any]:
    splits = [
        {"name": split, "num_bytes": _size(files), "num_examples": _count(files)}
        for split, files in shards.items()
    ]
    features = [
        {"name": name, "dtype": DTYPES.get(kind, kind)} for name, kind in release.columns.items()
    ]
    size = sum(map(_size, shards.values()))
    return {
        "features": [{"name": IMAGE, "dtype": "image"}, *features],
        "splits": splits,
        "download_size": size,
        "dataset_size": size,
    }


def _size(files: Iterable[ReleaseFile]) -> int:
    return sum(file.size for file in files)


def _count(files: Iterable[ReleaseFile]) -> int:
    return sum(file.rows or 0 for file in files)


def _licence(licence: str) -> dict[str, str]:
    if SPDX.fullmatch(licence):
        return {"license": licence.lower()}
    return {"license": "other", "license_name": licence}


def _text(release: Release, shards: Shards, preview: str, files: str) -> str:
    splits = "\n".join(
        f"| {split} | {_count(some):,} | {size_text(_size(some))} |"
        for split, some in shards.items()
    )
    columns = "\n".join(f"| `{name}` | {kind} |" for name, kind in release.columns.items())
    recipe = yaml.safe_dump(dict(release.recipe), sort_keys=False, allow_unicode=True)
    parent = f", which continues {release.parent}" if release.parent else ""
    return f"""# {release.name}

{release.recipe["description"]}

{preview}| split | pictures | shards |
|---|---|---|
{splits}

```python
from datasets import load_dataset

pictures = load_dataset("path/to/this/folder")
```

## How it was made

A model drew every picture from a prompt (IPTC digital source type: `trainedAlgorithmicMedia`).
The pictures are the provider's bytes, unchanged, with the marks of provenance that they bear;
`image_sha256` is their SHA-256, and `provenance` names the marks. `seed_asked` is the seed that
was sent, `seed_reported` what the provider says it used, null where it said nothing.
Rows with the same prompt, reference picture or look are in one split, never in two.

This is {release.version}{parent}, made on {release.created} by nanobanana-pipeline
{release.code_version}. Fingerprint: `{release.fingerprint}`. Its recipe:

```yaml
{recipe}```

## Columns

| column | type |
|---|---|
{files}
{columns}

Licence: {release.recipe["licence"]}
"""


def _pages(store: ObjectStore, release: Release, rows: pa.Table) -> Iterator[Page]:
    yield Page(CARD, card(release).encode(), "text/markdown; charset=utf-8")
    pictures = [
        (read_image(store, row), caption(row["prompt"], row["prompt_id"], row["seed"]))
        for row in taken(rows, preview_places(len(rows))).to_pylist()
    ]
    yield Page(PREVIEW, contact_sheet(pictures, columns=4), "image/png")


HUGGINGFACE_FORMAT: Final = ReleaseFormat(pages=_pages, shards_of=Format.PARQUET)
