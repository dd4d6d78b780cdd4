"""The same bucket, as it will be after some time: S3's clock is put forward in its answers."""

from collections.abc import Callable
from datetime import timedelta
from email.utils import format_datetime, parsedate_to_datetime
from typing import Any

from nanobanana_pipeline.bucket_keys import clock_key
from nanobanana_pipeline.storage import ObjectStore, s3_client


def later(
    store: ObjectStore, by: timedelta, young: Callable[[str], bool] = lambda _key: False
) -> ObjectStore:
    """A bucket whose S3 server says that it is later, by so much.

    Args:
        store: the bucket.
        by: how much later.
        young: keys of objects that LIST tells of as if they were written then.
    """

    def note(params: dict[str, Any], context: dict[str, Any], **_: object) -> None:
        context["path"] = params["url_path"]

    def shift(parsed: dict[str, Any], context: dict[str, Any], **_: object) -> None:
        headers = parsed["ResponseMetadata"]["HTTPHeaders"]
        headers["date"] = format_datetime(parsedate_to_datetime(headers["date"]) + by, usegmt=True)
        # What is written to learn the time is written then.
        if context["path"].endswith(clock_key()) and "LastModified" in parsed:
            parsed["LastModified"] += by
        for found in parsed.get("Contents", []):
            if young(found["Key"].removeprefix(store.prefix)):
                found["LastModified"] += by

    client = s3_client()
    client.meta.events.register("before-call.s3", note)
    client.meta.events.register("after-call.s3", shift)
    return ObjectStore(client, store.bucket, store.prefix)
