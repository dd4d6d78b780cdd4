"""The readers that the data team has: each gives key → (prompt, SHA-256 of the picture).

Nothing is asked of the Hub, and nothing is kept outside of the test's folders.
"""

import gc
import hashlib
import json
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pyarrow.dataset
import webdataset

from tests.datasets.conftest import Published

Samples = dict[str, tuple[str, str]]
Reader = Callable[[Published, Path], Samples]

TARS = "webdataset/webdataset/*/*.tar"
PARQUET = "huggingface/parquet/*/*.parquet"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def samples(found: Iterable[tuple[str, str, bytes]]) -> Samples:
    listed = list(found)
    distinct = {key: (prompt, sha256(image)) for key, prompt, image in listed}
    assert len(distinct) == len(listed)
    return distinct


def by_split(published: Published, kind: str, suffix: str) -> dict[str, list[str]]:
    pattern = f"{kind}/{'webdataset' if suffix == 'tar' else 'parquet'}"
    return {
        split: published.shards(f"{pattern}/{split}/*.{suffix}")
        for split in published.release.splits
    }


def hf_parquet(published: Published, cache: Path, *, streaming: bool) -> Samples:
    return hf_images(
        datasets.load_dataset(
            "parquet",
            data_files=by_split(published, "huggingface", "parquet"),
            streaming=streaming,
            cache_dir=str(cache),
        )
    )


def hf_folder(published: Published, cache: Path, *, streaming: bool) -> Samples:
    folder = str(published.folder / "huggingface")
    return hf_images(datasets.load_dataset(folder, streaming=streaming, cache_dir=str(cache)))


def hf_images(found: Any) -> Samples:
    assert set(found) == {"train", "test"}
    assert all(isinstance(part.features["image"], datasets.Image) for part in found.values())
    return samples(
        (row["key"], row["prompt"], row["image"]["bytes"])
        for part in found.values()
        for row in part.cast_column("image", datasets.Image(decode=False))
    )


def hf_webdataset(published: Published, cache: Path, *, streaming: bool) -> Samples:
    return hf_tars(
        datasets.load_dataset(
            "webdataset",
            data_files=by_split(published, "webdataset", "tar"),
            streaming=streaming,
            cache_dir=str(cache),
        )
    )


def hf_folder_of_tars(published: Published, cache: Path, *, streaming: bool) -> Samples:
    folder = str(published.folder / "webdataset")
    return hf_tars(datasets.load_dataset(folder, streaming=streaming, cache_dir=str(cache)))


def hf_tars_by_split(published: Published, cache: Path) -> Samples:
    folder = str(published.folder / "webdataset")
    return hf_tars(
        {
            split: datasets.load_dataset(folder, split=split, cache_dir=str(cache))
            for split in published.release.splits
        }
    )


def hf_data_dir(published: Published, cache: Path) -> Samples:
    folder = str(published.folder / "webdataset/webdataset")
    return hf_tars(datasets.load_dataset("webdataset", data_dir=folder, cache_dir=str(cache)))


def hf_tars(found: Any) -> Samples:
    assert set(found) == {"train", "test"}
    assert all(isinstance(part.features["png"], datasets.Image) for part in found.values())
    rows = [
        row
        for part in found.values()
        for row in part.cast_column("png", datasets.Image(decode=False))
    ]
    assert all(row["txt"] == row["json"]["prompt"] for row in rows)
    assert all(row["__key__"] == row["json"]["key"] for row in rows)
    return samples((row["__key__"], row["txt"], row["png"]["bytes"]) for row in rows)


def webdataset_batches(published: Published, _: Path) -> Samples:
    found = []
    with warnings.catch_warnings():
        # It leaves its tars open.
        warnings.simplefilter("ignore", ResourceWarning)
        tars = published.shards(TARS)
        pipeline = webdataset.WebDataset(tars, shardshuffle=False, empty_check=False)
        batches = pipeline.to_tuple("__key__", "png", "txt", "json").batched(4)
        for batch in batches:
            for key, image, text, said in zip(*batch, strict=True):
                assert json.loads(said)["image_sha256"] == sha256(image)
                found.append((key, text.decode(), image))
        del pipeline, batches
        gc.collect()
    return samples(found)


def pandas_parquet(published: Published, _: Path) -> Samples:
    rows = pd.concat(map(pd.read_parquet, published.shards(PARQUET)))
    return samples(
        (key, prompt, image["bytes"])
        for key, prompt, image in zip(rows["key"], rows["prompt"], rows["image"], strict=True)
    )


def arrow_dataset(published: Published, _: Path) -> Samples:
    table = pyarrow.dataset.dataset(published.shards(PARQUET), format="parquet").to_table()
    return samples((row["key"], row["prompt"], row["image"]["bytes"]) for row in table.to_pylist())


def croissant_rows(published: Published) -> list[dict[str, Any]]:
    with warnings.catch_warnings():
        # Its own use of rdflib and pandas.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        import mlcroissant  # noqa: PLC0415

        found = mlcroissant.Dataset(str(published.folder / "huggingface/croissant.json"))
        assert found.metadata.ctx.issues.report() == ""
        return list(found.records("images"))


def croissant_records(published: Published, _: Path) -> Samples:
    return samples(
        (
            row["images/key"].decode(),
            row["images/prompt"].decode(),
            row["images/image"].fp.getvalue(),
        )
        for row in croissant_rows(published)
    )


READERS: dict[str, Reader] = {
    "datasets parquet": lambda p, c: hf_parquet(p, c, streaming=False),
    "datasets parquet, streaming": lambda p, c: hf_parquet(p, c, streaming=True),
    "datasets folder": lambda p, c: hf_folder(p, c, streaming=False),
    "datasets folder, streaming": lambda p, c: hf_folder(p, c, streaming=True),
    "datasets webdataset": lambda p, c: hf_webdataset(p, c, streaming=False),
    "datasets webdataset, streaming": lambda p, c: hf_webdataset(p, c, streaming=True),
    "datasets folder of tars": lambda p, c: hf_folder_of_tars(p, c, streaming=False),
    "datasets folder of tars, streaming": lambda p, c: hf_folder_of_tars(p, c, streaming=True),
    "datasets folder of tars, by split": hf_tars_by_split,
    "datasets webdataset, data_dir": hf_data_dir,
    "webdataset": webdataset_batches,
    "pandas": pandas_parquet,
    "pyarrow": arrow_dataset,
    "mlcroissant": croissant_records,
}
