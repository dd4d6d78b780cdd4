"""How this project speaks S3."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from botocore.exceptions import BotoCoreError

from nanobanana_pipeline.errors import StorageError

if TYPE_CHECKING:
    from botocore.config import Config
    from mypy_boto3_s3 import S3Client

__all__ = ["s3_client", "s3_config"]

SMALL_BYTES: Final = 65_536
"""What fits into the system's own buffers, so that it is sent before any answer could stop it."""


def s3_config() -> "Config":
    """How this project speaks S3: no retries inside boto3, bounded waits, 64 sockets.

    Bodies are not hashed for the signature: each carries its SHA-256 as its checksum, which S3
    compares, and which is signed. boto3 leaves that out over TLS anyway.
    """
    # Dagster loads this module in every process, also in those that never speak S3.
    from botocore.config import Config  # noqa: PLC0415

    return Config(
        retries={"total_max_attempts": 1, "mode": "standard"},
        connect_timeout=5,
        read_timeout=20,
        max_pool_connections=64,
        # Not added to boto3's own, which is put together anew for each call (a tenth of its CPU).
        user_agent="nanobanana-pipeline",
        s3={"payload_signing_enabled": False},
    )


def s3_client(profile: str | None = None, **given: Any) -> "S3Client":  # noqa: ANN401
    """Make an S3 client from AWS's own variables and files (``AWS_ENDPOINT_URL_S3``, …).

    Further arguments of boto3's `Session.client` go first.

    Raises:
        StorageError: they contradict each other.
    """
    import boto3  # noqa: PLC0415 - as above

    try:
        session = boto3.session.Session(profile_name=profile)
        client = session.client("s3", config=s3_config(), **given)
    except (BotoCoreError, ValueError) as error:
        raise StorageError(f"S3 is not configured: {error}") from None
    client.meta.events.register_last("before-call.s3", _ask_before_large_bodies_only)
    return client


def _ask_before_large_bodies_only(params: Mapping[str, Any], **_: object) -> None:
    """Ask S3 whether it wants a body (``Expect: 100-continue``) only where sending it costs more.

    boto3 asks before each, which is one more wait for S3: a ledger entry was written twice as fast
    without.
    """
    from botocore.utils import determine_content_length  # noqa: PLC0415 - as above

    size = determine_content_length(params["body"])
    if size is not None and size <= SMALL_BYTES:
        params["headers"].pop("Expect", None)
