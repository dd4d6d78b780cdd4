"""The customer's own bucket, into which the provider writes with the credentials it was given.

They are kept in memory only, and shown nowhere.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import boto3
from botocore.config import Config
from pydantic import SecretStr

from nanobanana_pipeline.emulator.background import may_be_called
from nanobanana_pipeline.emulator.rules import Schema
from nanobanana_pipeline.emulator.validation import InvalidOrderError

_URLS = ("endpoint_url", "public_url")
_REQUIRED = (
    *_URLS,
    "region_name",
    "aws_access_key_id",
    "aws_secret_access_key",
    "image_directory",
)
_PLAIN_URL = (  # surely taken; what else is, reading tells
    r"^(https://[0-9A-Za-z.-]+|http://(127\.0\.0\.1|localhost))"
    r"(:([1-9][0-9]{0,3}|[1-5][0-9]{4}))?(/[!-~]*)?$"
)
_PATIENCE = Config(
    connect_timeout=5,
    read_timeout=20,
    retries={"total_max_attempts": 2},
    s3={"addressing_style": "path"},
    request_checksum_calculation="when_required",
)


@dataclass(frozen=True, slots=True)
class Bucket:
    """The S3 details of an account.

    Attributes:
        public_url: What the names of pictures are joined to in answers.
        region: As S3 calls it.
        endpoint_url: Where S3 is, without the bucket.
        name: The bucket.
        directory: What keys begin with; without slashes around it.
        access_key_id: The customer's.
        secret_access_key: The customer's.
    """

    public_url: str
    region: str
    endpoint_url: str
    name: str
    directory: str
    access_key_id: SecretStr = field(repr=False)
    secret_access_key: SecretStr = field(repr=False)

    def address(self, name: str, *, naive: bool) -> str:
        """Tell where a picture can be had; joined naively, a slash may come twice."""
        return f"{self.public_url.rstrip('/')}{'//' if naive else '/'}{name}"

    def put(self, name: str, content: bytes, media_type: str) -> None:
        """Write one picture, and make it public by its ACL, as the provider does.

        Raises:
            BotoCoreError: It did not work out.
            ClientError: S3 refused it.
        """
        s3 = boto3.session.Session().client(
            "s3",
            region_name=self.region,
            endpoint_url=self.endpoint_url,
            aws_access_key_id=self.access_key_id.get_secret_value(),
            aws_secret_access_key=self.secret_access_key.get_secret_value(),
            config=_PATIENCE,
        )
        key = f"{self.directory}/{name}" if self.directory else name
        s3.put_object(
            Bucket=self.name, Key=key, Body=content, ContentType=media_type, ACL="public-read"
        )


def bucket_schema() -> dict[str, Schema]:
    """Tell what each required field of `update_s3` takes, as a JSON Schema."""
    words: Schema = {"type": "string", "pattern": "^[ -~]*[!-~][ -~]*$"}
    url = {"type": "string", "pattern": _PLAIN_URL, "description": "HTTPS, or on loopback."}
    return {name: url if name in _URLS else words for name in _REQUIRED}


def read_bucket(body: Mapping[str, object]) -> Bucket:
    """Read the body of `update_s3`.

    Raises:
        InvalidOrderError: Fields are missing, or name addresses that are not called.
    """
    errors: dict[str, list[str]] = {}
    values: dict[str, str] = {}
    for name in _REQUIRED:
        value = body.get(name)
        if isinstance(value, str) and value.strip() and value.isprintable():
            values[name] = value.strip()
        else:
            errors[name] = [f"{name} is required"]
    if errors:
        raise InvalidOrderError(errors)
    endpoint_url, public_url = values["endpoint_url"], values["public_url"]
    for name in _URLS:
        if not may_be_called(values[name]):
            errors[name] = [f"{name} must be an HTTPS URL"]
    if errors:
        raise InvalidOrderError(errors)
    endpoint = urlsplit(endpoint_url)
    name, _, directory = _folder(endpoint_url, public_url, values["image_directory"]).partition("/")
    return Bucket(
        public_url=public_url,
        region=values["region_name"],
        endpoint_url=f"{endpoint.scheme}://{endpoint.netloc}",
        name=name,
        directory=directory,
        access_key_id=SecretStr(values["aws_access_key_id"]),
        secret_access_key=SecretStr(values["aws_secret_access_key"]),
    )


def _folder(endpoint_url: str, public_url: str, image_directory: str) -> str:
    """Find the path on the S3 server; the documented fields have no place for the bucket.

    Where the pictures are public on the S3 server itself, the public URL names it. Else it is the
    endpoint's path, or its host, and for S3 the signature and the path are then the same.
    """
    endpoint, public = urlsplit(endpoint_url), urlsplit(public_url)
    directory, path = image_directory.strip("/"), public.path.strip("/")
    if endpoint.netloc == public.netloc and path:
        inside = f"/{path}".endswith(f"/{directory}")
        return path if inside else f"{path.split('/')[0]}/{directory}"
    return f"{endpoint.path.strip('/')}/{directory}".strip("/")
