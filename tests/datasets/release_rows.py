"""Rows for releases, with real pictures in the bucket, without buying any."""

import hashlib
import io
import random
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from nanobanana_pipeline.bucket_keys import image_key
from nanobanana_pipeline.datasets.recipe import Recipe
from nanobanana_pipeline.storage import ObjectStore

NOTHING_REJECTED = pd.DataFrame({"row_id": [], "reason": []}, dtype="string")
PIL_NAMES = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP"}
TYPES = {
    "seed": "Int64",
    "seed_asked": "Int64",
    "seed_reported": "Int64",
    "sample": "Int32",
    "bytes": "Int64",
    "width": "Int32",
    "height": "Int32",
    "mean": "Float32",
    "entropy": "Float32",
    "sharpness": "Float32",
    "blank": "boolean",
}


def recipe(*formats: str, images: int = 4, **more: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "pets",
            "description": "Pets: drawn on purpose.",
            "licence": "Apache-2.0",
            "tags": ["pets", "synthetic"],
            "prompt_sets": ["set"],
            "formats": formats or ("webdataset",),
            "shard_size": {"bytes": "500MB", "images": images},
            **more,
        }
    )


def picture(number: int, kind: str = "png", side: int = 16) -> bytes:
    """A small picture of noise; the same number gives the same bytes."""
    noise = random.Random(number).randbytes(side * side * 3)  # noqa: S311
    body = io.BytesIO()
    Image.frombytes("RGB", (side, side), noise).save(
        body, PIL_NAMES[kind], **({"compress_level": 1} if kind == "png" else {})
    )
    return body.getvalue()


def row(store: ObjectStore, number: int, *, kind: str = "png", side: int = 16) -> dict[str, Any]:
    """A row with its picture; prompts of two pictures each, three quarters in train."""
    body = picture(number, kind, side)
    sha256 = hashlib.sha256(body).hexdigest()
    prompt = number // 2
    request = hashlib.sha256(f"request {number}".encode()).hexdigest()
    key = image_key(sha256, kind)
    store.put(key, body)
    return {
        "row_id": f"{request}-0",
        "prompt_set": "set",
        "prompt_id": f"p{prompt}",
        "prompt": f"a cat named “Łucja {prompt}”,\n\tsitting",
        "negative_prompt": "",
        "seed": number % 2 + 1,
        "seed_asked": number % 2 + 1,
        # Unknown for long, then above 2^32: readers that guess types are led astray by that.
        "seed_reported": None if number < 10 else 2**40 + number,
        "sample": 0,
        "request_key": request,
        "image_sha256": sha256,
        "image_key": key,
        "format": kind,
        "bytes": len(body),
        "width": side,
        "height": side,
        "provenance": None if number < 7 else "c2pa",
        "provider_id": str(number),
        "run_id": "run-1",
        "accepted": "2026-08-01T00:00:00+00:00",
        "mean": 127.5 + number / 3,
        "entropy": 7.9,
        "sharpness": 1000.0,
        "blank": False,
        "phash": f"{number:016x}",
        "ref_sha256": None,
        "digital_source_type": "trainedAlgorithmicMedia",
        "Category": "Animals" if number % 3 else None,
        "group": f"{prompt:016x}",
        "split": "test" if prompt % 4 == 3 else "train",
    }


def table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    frame = pd.DataFrame(rows)
    texts = {name: "string" for name in frame.columns if name not in TYPES}
    return frame.astype({**texts, **TYPES})


def rows_of(store: ObjectStore, count: int, **more: Any) -> pd.DataFrame:
    return table([row(store, number, **more) for number in range(count)])


def read(store: ObjectStore, key: str) -> bytes:
    found = store.get(key)
    assert found is not None
    return found.body


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its path there."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
