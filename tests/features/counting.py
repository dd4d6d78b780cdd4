"""Measuring that can be watched, and that can die, in the processes where it happens."""

import os
from pathlib import Path

from nanobanana_pipeline.features.measure import Features, measure

FOLDER = "TEST_MEASURED"
"""Environment variable with the folder where each measurement leaves a file."""
DEADLY = b"deadly"


def counted(sha256: str, data: bytes) -> Features:
    folder = Path(os.environ[FOLDER])
    (folder / f"{len(list(folder.iterdir()))}-{os.getpid()}-{sha256}").touch()
    return measure(sha256, data)


def dying(sha256: str, data: bytes) -> Features:
    if data == DEADLY:
        os._exit(1)
    return measure(sha256, data)
