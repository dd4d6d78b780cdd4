"""Real servers on loopback, as child processes: the local profile, and what tests run on."""

from nanobanana_pipeline.local.ports import check_port, free_port
from nanobanana_pipeline.local.processes import answers, child
from nanobanana_pipeline.local.profile import API_KEY, LocalProfile, local_profile, running_profile
from nanobanana_pipeline.local.s3_server import (
    ACCESS_KEY,
    BUCKET,
    SECRET_KEY,
    s3_environment,
    s3_server,
)

__all__ = [
    "ACCESS_KEY",
    "API_KEY",
    "BUCKET",
    "SECRET_KEY",
    "LocalProfile",
    "answers",
    "check_port",
    "child",
    "free_port",
    "local_profile",
    "running_profile",
    "s3_environment",
    "s3_server",
]
