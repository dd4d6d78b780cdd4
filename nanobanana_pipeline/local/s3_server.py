"""A real S3 server, SeaweedFS, with one bucket on loopback."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from botocore.exceptions import BotoCoreError, ClientError

from nanobanana_pipeline.local.ports import remembered_ports
from nanobanana_pipeline.local.processes import answers, child, program
from nanobanana_pipeline.storage import s3_client

__all__ = ["ACCESS_KEY", "BUCKET", "S3_PORTS", "SECRET_KEY", "s3_environment", "s3_server"]

ACCESS_KEY: Final = "nanobanana"
SECRET_KEY: Final = "local-profile-only"  # noqa: S105 - a loopback server's own
BUCKET: Final = "nanobanana"
S3_PORTS = ("s3", "master", "volume", "filer", "admin")


@contextlib.contextmanager
def s3_server(data: Path, ports: Mapping[str, int] | None = None) -> Iterator[str]:
    """Run SeaweedFS with one bucket until the block ends; gives its URL.

    Without keys its objects can be read, so that a browser shows pictures; only on loopback.

    Raises:
        LocalServerError: it did not come up.
    """
    data.mkdir(parents=True, exist_ok=True)
    ports = ports or remembered_ports(data / "ports.json", S3_PORTS)
    config = data / "s3.json"
    keys = {"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    identities = [
        {"name": "local", "credentials": [keys], "actions": actions},
        {"name": "anonymous", "actions": [f"Read:{BUCKET}"]},
    ]
    config.write_text(json.dumps({"identities": identities}))
    config.chmod(0o600)
    command = [
        *(program("weed"), "mini", f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
        f"-master.port={ports['master']}",
        f"-volume.port={ports['volume']}",
        f"-filer.port={ports['filer']}",
        f"-s3.port={ports['s3']}",
        f"-admin.port={ports['admin']}",
        *(f"-s3.config={config}", "-s3.autoCreateBucket=false", "-webdav=false"),
        *("-admin.ui=false", "-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false"),
        f"-bucket={BUCKET}",
    ]
    url = f"http://127.0.0.1:{ports['s3']}"
    # The bucket is made a moment after the server answers; without it a first write would fail.
    with child(
        "the S3 server",
        command,
        log=data.with_name("s3.log"),
        ready=lambda: answers(f"{url}/healthz") and _has_bucket(url),
    ):
        yield url


def s3_environment(url: str) -> dict[str, str]:
    """AWS's own variables for the local S3 server."""
    return {
        "AWS_ENDPOINT_URL_S3": url,
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_DEFAULT_REGION": "us-east-1",
    }


def _has_bucket(url: str) -> bool:
    client = s3_client(
        endpoint_url=url,
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
        region_name="us-east-1",
    )
    try:
        client.head_bucket(Bucket=BUCKET)
    except (BotoCoreError, ClientError):
        return False
    return True
