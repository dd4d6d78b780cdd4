"""The one list of settings, shared by the command line and Dagster.

S3 itself is configured by AWS's own variables (``AWS_ENDPOINT_URL_S3``, ``AWS_ACCESS_KEY_ID``, …),
which boto3 reads.
"""

import ipaddress
import os
from decimal import Decimal
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final, Self
from urllib.parse import quote, urlsplit

from pydantic import BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from nanobanana_pipeline.errors import SettingsError
from nanobanana_pipeline.money import Budget, Cap

__all__ = ["VENDOR_BASE_URL", "Settings", "VendorBook", "split_names"]

VENDOR_BASE_URL: Final = "https://modelslab.com/api/v1/enterprise/nano_banana/"
VENDOR_HOST: Final = "modelslab.com"
VENDOR_REALM: Final = "modelslab"
EMULATOR_REALM: Final = "emulator"
MIN_SECRET_CHARACTERS: Final = 16
AWS_CREDENTIALS: Final = (
    "AWS_ACCESS_KEY_ID",
    "AWS_PROFILE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)


class VendorBook(StrEnum):
    """A call by which the account asks the provider about itself."""

    ASSETS = "assets"
    BALANCE = "balance"
    COUNT = "count"


def split_names(value: object) -> object:
    """Take a comma-separated list of names as a tuple, in lower case."""
    if isinstance(value, str):
        return tuple(name.strip().lower() for name in value.split(",") if name.strip())
    return value


Money = Annotated[Decimal, Field(gt=0, allow_inf_nan=False)]
Price = Annotated[Decimal, Field(ge=0, allow_inf_nan=False)]
ImageCount = Annotated[int, Field(ge=0)]


class Settings(BaseSettings):
    """Where pictures are bought and where they are kept, from ``NANOBANANA_*`` variables.

    Use `Settings.load`, which checks everything at once.
    """

    model_config = SettingsConfigDict(
        env_prefix="NANOBANANA_", extra="ignore", frozen=True, str_strip_whitespace=True
    )

    api_key: SecretStr | None = Field(None, description="the provider's API key")
    base_url: str = Field(VENDOR_BASE_URL, description="where the provider answers")
    bucket: str | None = Field(None, description="the S3 bucket that everything is written to")
    prefix: str = Field("", description="a path inside the bucket")
    realm: str | None = Field(None, description="whose pictures these are; part of every key")
    slots: int = Field(10, ge=1, le=1000, description="most requests at the provider at once")
    allowed_hosts: Annotated[tuple[str, ...], NoDecode, BeforeValidator(split_names)] = Field(
        (), description="hosts whose output URLs may be plain http, private or loopback"
    )
    webhook_url: str | None = Field(
        None, description="where the provider reaches `nanobanana webhooks serve`, for webhooks"
    )
    webhook_secret: SecretStr | None = Field(
        None, description="what the addresses of webhooks are signed with"
    )
    preview_url: str | None = Field(
        None, description="the bucket's address for browsers, in which Dagster shows pictures"
    )
    vendor_books: Annotated[tuple[VendorBook, ...], NoDecode, BeforeValidator(split_names)] = Field(
        (), description="calls by which the provider is asked about the account"
    )
    price_per_image: Price | None = Field(
        None, description="what an image costs, in your currency; unknown if not set"
    )
    max_images_per_day: ImageCount | None = Field(
        None, description="cap on the images of a UTC day, over all runs and machines"
    )
    max_cost_per_day: Money | None = Field(None, description="the same in money")
    max_images_per_partition: ImageCount | None = Field(
        None, description="cap on the images ever bought for one prompt set under one seed"
    )
    max_cost_per_partition: Money | None = Field(None, description="the same in money")
    max_images_per_run: ImageCount | None = Field(None, description="cap on the images of one run")
    max_cost_per_run: Money | None = Field(None, description="the same in money")

    @classmethod
    def load(cls, **given: Any) -> Self:  # noqa: ANN401 - any setting, checked by pydantic
        """Read the environment, overridden by `given`, and check it whole.

        Raises:
            SettingsError: names everything that is missing or contradictory, and how to set it.
        """
        return cls._load(given, buying=True)

    @classmethod
    def load_without_key(cls, **given: Any) -> Self:  # noqa: ANN401
        """The same for what never speaks to the provider, and so does not need its key.

        Raises:
            SettingsError: as `load`.
        """
        return cls._load(given, buying=False)

    @classmethod
    def _load(cls, given: dict[str, Any], *, buying: bool) -> Self:
        problems = []
        try:
            settings = cls(**given)
        except ValidationError as error:
            bad = {str(e["loc"][0]): e for e in error.errors(include_url=False)}
            problems = [
                f"NANOBANANA_{_quoted(name, e['input'])}: {e['msg']}" for name, e in bad.items()
            ]
            # Without the values that cannot be read, so that the rest is checked in the same go.
            usable = {name: cls.model_fields[name].default for name in bad}
            if "price_per_image" in bad:
                usable["price_per_image"] = Decimal(0)  # it is wrong, and not missing
            settings = cls(**given | usable)
        problems += settings.problems(buying=buying)
        if problems:
            raise SettingsError(_listed(problems))
        return settings.model_copy(update={"realm": settings.realm or settings._own_realm()})

    @property
    def budget(self) -> Budget:
        """The price and the caps."""
        return Budget(
            self.price_per_image,
            day=Cap(self.max_images_per_day, self.max_cost_per_day),
            partition=Cap(self.max_images_per_partition, self.max_cost_per_partition),
            run=Cap(self.max_images_per_run, self.max_cost_per_run),
        )

    def preview_of(self, key: str, version: str = "") -> str | None:
        """The address under which a browser reads an object; None if there is no such way.

        With the `version` of what lies there now, a browser shows no older one that it has kept.
        """
        if not self.preview_url:
            return None
        prefix = f"{self.prefix.strip('/')}/" if self.prefix else ""
        address = f"{self.preview_url.rstrip('/')}/{quote(prefix + key)}"
        return f"{address}?v={version}" if version else address

    @property
    def host(self) -> str:
        """The provider's host name, in lower case; "" if the base URL has none."""
        try:
            return (urlsplit(self.base_url).hostname or "").lower()
        except ValueError:
            return ""

    def problems(self, *, buying: bool = True) -> list[str]:
        """Everything that keeps these settings from being used, a sentence each."""
        return [*self._missing(buying=buying), *self._contradictions()]

    def _missing(self, *, buying: bool) -> list[str]:
        found = []
        if buying and (self.api_key is None or not self.api_key.get_secret_value().strip()):
            found.append(
                "NANOBANANA_API_KEY is not set: export NANOBANANA_API_KEY=<your ModelsLab key>, or "
                "try without an account: nanobanana demo"
            )
        if not self.bucket:
            found.append("NANOBANANA_BUCKET is not set: export NANOBANANA_BUCKET=<your S3 bucket>")
        # Where nothing else is missing S3 itself says so: a machine may have a role of its own.
        if found and not _has_aws_credentials():
            found.append(
                "no AWS credentials are set: export AWS_ACCESS_KEY_ID=… and "
                "AWS_SECRET_ACCESS_KEY=…, or AWS_PROFILE; not needed where the machine has a role"
            )
        return found

    def _contradictions(self) -> list[str]:
        found = [*self._contradictions_of_the_base_url(), *self._contradictions_of_webhooks()]
        if self.preview_url:
            why = "pictures' addresses are made of it, and stand in Dagster's event log"
            found += filter(None, [_read_url("NANOBANANA_PREVIEW_URL", self.preview_url, why)[1]])
        if "//" in self.prefix or self.prefix.startswith("/"):
            found.append(
                f"NANOBANANA_PREFIX={self.prefix!r} starts with a slash or has an empty part"
            )
        capped = [name for name in type(self).model_fields if name.startswith("max_cost_")]
        found += [
            f"NANOBANANA_{name.upper()} is set and NANOBANANA_PRICE_PER_IMAGE is not: a cap on "
            "money cannot be kept while the price is unknown; set the price, or "
            f"NANOBANANA_{name.upper().replace('COST', 'IMAGES')}"
            for name in capped
            if self.price_per_image is None and getattr(self, name) is not None
        ]
        return found

    def _contradictions_of_the_base_url(self) -> list[str]:
        found = []
        why = "the API key travels in the body of each request, from NANOBANANA_API_KEY"
        scheme, wrong = _read_url("NANOBANANA_BASE_URL", self.base_url, why)
        if wrong:
            return [wrong]
        if scheme == "http" and not _is_loopback(self.host) and self.host not in self.allowed_hosts:
            found.append(
                f"NANOBANANA_BASE_URL={self.base_url!r} would send the key in plain text: use "
                f"https, or allow it with NANOBANANA_ALLOWED_HOSTS={self.host}"
            )
        own = self._own_realm()
        if own is None and not self.realm:
            found.append(
                f"NANOBANANA_REALM is not set, and {self.host} is neither the vendor's host nor "
                "the local emulator: export NANOBANANA_REALM=<a name for this provider>"
            )
        if (self.realm or "").lower() == VENDOR_REALM != own:
            found.append(
                f"NANOBANANA_REALM={self.realm} contradicts NANOBANANA_BASE_URL={self.base_url!r}"
                f": pictures from {self.host} are not the vendor's; name another realm"
            )
        if own == VENDOR_REALM != (self.realm or VENDOR_REALM):
            found.append(
                f"NANOBANANA_REALM={self.realm} contradicts NANOBANANA_BASE_URL={self.base_url!r}: "
                f"leave it unset or set it to {VENDOR_REALM}"
            )
        return found

    def _contradictions_of_webhooks(self) -> list[str]:
        url, secret = self.webhook_url, self.webhook_secret
        found = []
        if url and (wrong := _what_is_wrong_with_webhooks_at(url, self.host)):
            found.append(wrong)
        if url and not secret:
            found.append(
                "NANOBANANA_WEBHOOK_URL is set and NANOBANANA_WEBHOOK_SECRET is not: export "
                "NANOBANANA_WEBHOOK_SECRET=$(openssl rand -hex 32), the same for everything that "
                "buys or receives; or unset NANOBANANA_WEBHOOK_URL"
            )
        if secret and not url:
            found.append(
                "NANOBANANA_WEBHOOK_SECRET is set and NANOBANANA_WEBHOOK_URL is not: export "
                "NANOBANANA_WEBHOOK_URL=<the https address where the provider reaches `nanobanana "
                "webhooks serve`>; or unset NANOBANANA_WEBHOOK_SECRET"
            )
        if secret and len(secret) < MIN_SECRET_CHARACTERS:
            found.append(
                f"NANOBANANA_WEBHOOK_SECRET has fewer than {MIN_SECRET_CHARACTERS} characters: "
                "export NANOBANANA_WEBHOOK_SECRET=$(openssl rand -hex 32)"
            )
        return found

    def _own_realm(self) -> str | None:
        """The realm that the base URL itself stands for, where it stands for one."""
        if self.host == VENDOR_HOST or self.host.endswith(f".{VENDOR_HOST}"):
            return VENDOR_REALM
        return EMULATOR_REALM if _is_loopback(self.host) else None


def _read_url(variable: str, url: str, why_bare: str) -> tuple[str, str | None]:
    """A URL's scheme, and what is wrong with it; `why_bare` says why nothing may hang on to it."""
    unreadable = f"{variable}={url!r} is not an http(s) URL"
    try:
        parts = urlsplit(url)
        readable = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:
        return "", unreadable
    if "@" in parts.netloc or parts.query or parts.fragment:
        # Not quoted: it may hold a password.
        return parts.scheme, f"{variable} must have no user, password, ? or #: {why_bare}"
    return parts.scheme, None if readable else unreadable


def _what_is_wrong_with_webhooks_at(url: str, provider_host: str) -> str | None:
    variable = "NANOBANANA_WEBHOOK_URL"
    scheme, wrong = _read_url(variable, url, "the path of each webhook is put behind it")
    if wrong:
        return wrong
    loopback = _is_loopback((urlsplit(url).hostname or "").lower())
    if loopback and not _is_loopback(provider_host):
        return (
            f"{variable}={url!r} is on this machine, where {provider_host} cannot reach it: give "
            "the public https address of `nanobanana webhooks serve`"
        )
    if scheme == "http" and not loopback:
        return f"{variable}={url!r} would show its tokens in plain text: use https"
    return None


def _quoted(name: str, value: object) -> str:
    secret = Settings.model_fields[name].annotation == SecretStr | None
    return f"{name.upper()}={'***' if secret else repr(value)}"


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _has_aws_credentials() -> bool:
    """Whether the environment or AWS's own files name any; no network is asked."""
    named = any(os.environ.get(name) for name in AWS_CREDENTIALS)
    return named or (Path.home() / ".aws" / "credentials").exists()


def _listed(problems: list[str]) -> str:
    return "the settings cannot be used:\n" + "\n".join(f"  - {problem}" for problem in problems)
