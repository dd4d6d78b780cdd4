"""How this project speaks S3."""

from typing import TYPE_CHECKING, Any

from botocore.exceptions import BotoCoreError

from nanobanana_pipeline.errors import StorageError

if TYPE_CHECKING:
    from botocore.config import Config
    from mypy_boto3_s3 import S3Client

__all__ = ["s3_client", "s3_config"]


def s3_config(connections: int = 64) -> "Config":
    """How this project speaks S3: no retries inside boto3, bounded waits, `connections` sockets."""
    # Dagster loads this module in every process, also in those that never speak S3.
    from botocore.config import Config  # noqa: PLC0415

    return Config(
        retries={"total_max_attempts": 1, "mode": "standard"},
        connect_timeout=5,
        read_timeout=20,
        max_pool_connections=connections,
        user_agent_extra="nanobanana-pipeline",
    )


def s3_client(profile: str | None = None, **given: Any) -> "S3Client":  # noqa: ANN401
    """Make an S3 client from AWS's own variables and files (``AWS_ENDPOINT_URL_S3``, …).

    Args:
        profile: of AWS's configuration files.
        given: further arguments of boto3's `Session.client`, which go first.

    Raises:
        StorageError: they contradict each other.
    """
    import boto3  # noqa: PLC0415 - as above

    try:
        session = boto3.session.Session(profile_name=profile)
        return session.client("s3", config=s3_config(), **given)
    except (BotoCoreError, ValueError) as error:
        raise StorageError(f"S3 is not configured: {error}") from None
