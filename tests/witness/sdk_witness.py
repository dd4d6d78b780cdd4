"""Buys through the vendor's own SDK; runs in an environment where that is installed.

    API_KEY=… python sdk_witness.py BASE_URL < orders.json > answers.json

Reads a list of `[call, fields]`, `text2img` or `img2img`, and writes for each the answer that named
the pictures, and the one that the purchase got. The SDK does all the asking: it has no class for
this endpoint, so one for the same calls elsewhere is pointed at it. The key comes as the SDK itself
takes it from the environment, and fields that its schemas do not know are let through by them.
"""

import json
import sys

from modelslab_py import Client, Community  # type: ignore[import-not-found]
from modelslab_py.schemas.community import (  # type: ignore[import-not-found]
    Image2Image,
    Text2Image,
)

FETCHES, SECONDS_BETWEEN = 30, 1


def main(base_url: str) -> None:
    client = Client("", fetch_retry=FETCHES, fetch_timeout=SECONDS_BETWEEN)
    api = Community(client, enterprise=True)
    api.base_url = base_url
    calls = {
        "text2img": (api.text_to_image, Text2Image),
        "img2img": (api.image_to_image, Image2Image),
    }
    told = []
    for name, fields in json.load(sys.stdin):
        call, schema = calls[name]
        bought = call(schema(**fields))
        queued = bought["status"] == "processing"
        told.append({"bought": bought, "done": api.fetch(str(bought["id"])) if queued else bought})
    json.dump({"told": told, "details": api.system_details()}, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1])
