"""What may be asked of the provider besides pictures: its server, deliveries, the account's books.

Each call is one POST, sent once. The account's own calls lie beside the server's: below the parent
path of the base URL, and its books below the root of the API.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from pydantic import SecretStr

from nanobanana_pipeline.errors import OperationFailed, OperationInDoubt, SettingsError
from nanobanana_pipeline.provider.http import Http, NoAnswer, NotSentError
from nanobanana_pipeline.provider.modelslab.answers import parse_operation
from nanobanana_pipeline.provider.modelslab.secrets import mask
from nanobanana_pipeline.provider.outcomes import Answered, Failed, Unknown

__all__ = ["Operations", "S3Details"]

SECONDS: Final = 60.0
MAX_OPERATION_BYTES: Final = 2**20
DEPLOYMENT: Final = "nano_banana"
"""The last part of the base URL, and what the account's calls call it."""
ENTERPRISE: Final = "/v1/enterprise"
"""What stands before it; the calls for the account's books have no such part."""
ASSETS_A_PAGE: Final = 30


@dataclass(frozen=True)
class S3Details:
    """Where the provider is to write pictures, and with which credentials.

    Attributes:
        public_url: what it joins file names to in its answers.
        region: as S3 calls it.
        endpoint_url: where S3 answers, with the bucket in its path or host.
        directory: the folder in the bucket.
        access_key_id: of a key that may write there and set ACLs, and nothing else.
        secret_access_key: its secret.
    """

    public_url: str
    region: str
    endpoint_url: str
    directory: str
    access_key_id: SecretStr
    secret_access_key: SecretStr


class Operations:
    """The calls that draw nothing.

    Args:
        base_url: ends in ``/nano_banana/``; the key is sent nowhere else but to its host.
        api_key: travels in each body, and is struck out of every answer.

    Every method raises `OperationFailed` when the provider refuses, with its own words, and
    `OperationInDoubt` when it was asked and gave no answer that tells.
    """

    def __init__(self, base_url: str, api_key: SecretStr) -> None:
        self._base_url = base_url.rstrip("/")
        self._api_key = api_key
        self._http = Http(1)

    def __repr__(self) -> str:
        return f"Operations({self._base_url})"

    def details(self) -> dict[str, str]:
        """What the server tells of itself, by name: version and use, or models and queue."""
        answer = self._ask(f"{self._base_url}/system_details")
        inner = answer.get("data")
        told = inner if isinstance(inner, dict) else answer
        return {
            str(name): value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            for name, value in told.items()
            if name not in {"status", "message"}
        }

    def clear_queue(self) -> None:
        """Forget every request that waits or is drawn, whoever paid for it."""
        self._ask(f"{self._base_url}/clear_queue")

    def clear_cache(self) -> None:
        """Empty the server's cache."""
        self._ask(f"{self._base_url}/clear_cache")

    def restart_server(self) -> None:
        """Restart the server under everybody."""
        self._ask(f"{self._base_url}/restart_server")

    def update_server(self) -> None:
        """Bring the server's software up to date, under everybody."""
        self._ask(f"{self._base_url}/update_server")

    def update_s3(self, details: S3Details) -> None:
        """Have all of the account's pictures written into a bucket of the customer's.

        Raises:
            SettingsError: the base URL does not tell where the account's calls are.
        """
        self._ask(
            self._account_url("update_s3"),
            deploy_type=DEPLOYMENT,
            public_url=details.public_url,
            region_name=details.region,
            endpoint_url=details.endpoint_url,
            aws_access_key_id=details.access_key_id.get_secret_value(),
            aws_secret_access_key=details.secret_access_key.get_secret_value(),
            image_directory=details.directory,
        )

    def reset_s3(self) -> None:
        """Have the provider keep pictures itself again, for 24 hours each.

        Raises:
            SettingsError: the base URL does not tell where the account's calls are.
        """
        self._ask(self._account_url("reset_s3"), deploy_type=DEPLOYMENT)

    def assets_generated(self, page: int) -> Mapping[str, Any]:
        """One page of what was drawn for the account, at most `ASSETS_A_PAGE` requests.

        Raises:
            SettingsError: the base URL does not tell where the account's books are.
        """
        url = self._books_url("v6/assets_generated")
        return self._ask(url, type="image", per_page=ASSETS_A_PAGE, page=page)

    def wallet_balance(self) -> Mapping[str, Any]:
        """What is left in the account's wallet.

        Raises:
            SettingsError: the base URL does not tell where the account's books are.
        """
        return self._ask(self._books_url("wallet_balance"))

    def request_count(self) -> Mapping[str, Any]:
        """How many of the account's requests are under way; answers 30 times a minute.

        Raises:
            SettingsError: the base URL does not tell where the account's books are.
        """
        return self._ask(self._books_url("v6/processing/request_count"))

    def _books_url(self, path: str) -> str:
        account = self._account_url("")
        root = account.rstrip("/").removesuffix(ENTERPRISE)
        if root == account.rstrip("/"):
            raise SettingsError(
                f"NANOBANANA_BASE_URL={self._base_url!r} does not end in {ENTERPRISE}/{DEPLOYMENT}/"
                ", so the address of the account's books is unknown: correct it, or unset "
                "NANOBANANA_VENDOR_BOOKS"
            )
        return f"{root}/{path}"

    def _account_url(self, name: str) -> str:
        account, _, deployment = self._base_url.rpartition("/")
        if deployment != DEPLOYMENT:
            raise SettingsError(
                f"NANOBANANA_BASE_URL={self._base_url!r} does not end in /{DEPLOYMENT}/, so nobody "
                f"can tell where the account's own calls are: correct it"
            )
        return f"{account}/{name}"

    def _ask(self, url: str, **fields: str | int) -> Mapping[str, Any]:
        secrets = [self._api_key.get_secret_value()]
        secrets += [str(fields[name]) for name in fields if name.startswith("aws_")]
        body = json.dumps({"key": secrets[0], **fields}, ensure_ascii=False).encode()
        name = url.rpartition("/")[2]
        try:
            answer = self._http.call(
                "POST",
                url,
                body=body,
                headers={"Content-Type": "application/json", "Accept": "application/json"},
                deadline_seconds=SECONDS,
                max_bytes=MAX_OPERATION_BYTES,
                fresh=True,  # a kept-alive one that is closed unread leaves in doubt what was done
            )
        except NotSentError as error:
            raise OperationFailed(f"{name} could not be sent to {url}: {error}") from None
        except NoAnswer as error:
            raise OperationInDoubt(
                f"{name} was sent to {url}, and nobody knows whether it was done: {error}"
            ) from None
        told = mask(answer.body, *secrets)
        match parse_operation(answer.status, answer.headers, told):
            case Answered(all_fields):
                return all_fields
            case Failed(reason):
                raise OperationFailed(f"the provider did not do {name}: {reason}")
            case Unknown(reason):
                raise OperationInDoubt(f"nobody knows whether {name} was done: {reason}")
