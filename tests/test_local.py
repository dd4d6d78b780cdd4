"""The local S3 server: what may be done there without keys."""

import requests

from nanobanana_pipeline import local
from nanobanana_pipeline.storage import ObjectStore


def test_without_keys_objects_can_be_read_and_nothing_else(store: ObjectStore, s3_url: str) -> None:
    store.put("seed=1/sheet.webp", b"a sheet", content_type="image/webp")
    bucket = f"{s3_url}/{local.BUCKET}"
    key = f"{bucket}/{store.prefix}seed%3D1/sheet.webp"
    read = requests.get(f"{key}?v=1", timeout=10)
    assert (read.content, read.headers["Content-Type"]) == (b"a sheet", "image/webp")
    for method, url in [("GET", f"{bucket}?list-type=2"), ("PUT", key), ("DELETE", key)]:
        assert requests.request(method, url, data=b"other", timeout=10).status_code == 403
    kept = store.get("seed=1/sheet.webp")
    assert kept is not None
    assert kept.body == b"a sheet"
