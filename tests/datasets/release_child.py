"""Builds releases in a process of its own, to be killed or to be weighed.

    python -m tests.datasets.release_child PREFIX SECONDS IMAGES FORMAT[,FORMAT] ROWS.pickle…

Builds a release of each file of rows, named like the file. Takes so many seconds more a picture,
and puts so many into a shard. Prints the process's peak memory in KiB after each release.
"""

import resource
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd

from nanobanana_pipeline import local
from nanobanana_pipeline.datasets import row_images
from nanobanana_pipeline.datasets.publish import build_release
from nanobanana_pipeline.storage import ObjectStore, s3_client
from tests.datasets.release_rows import NOTHING_REJECTED, recipe


def main(prefix: str, seconds: str, images: str, formats: str, *files: str) -> None:
    fetch = row_images.read_image

    def slowly(store: ObjectStore, row: dict[str, Any]) -> bytes:
        time.sleep(float(seconds))
        return fetch(store, row)

    row_images.read_image = slowly
    for rows in files:
        build_release(
            ObjectStore(s3_client(), local.BUCKET, prefix),
            recipe(*formats.split(","), images=int(images), name=Path(rows).stem),
            pd.read_pickle(rows),  # noqa: S301 - the test's own
            NOTHING_REJECTED,
            parent=None,
        )
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
