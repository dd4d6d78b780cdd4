"""Pictures in the customer's own bucket, on a real S3 server."""

import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError

from nanobanana_pipeline.emulator import EmulatorConfig, running
from tests.emulator.account import Account
from tests.s3_proxy import S3Proxy

BUCKET = "nanobanana"


@pytest.fixture
def account(tmp_path: Path) -> Iterator[Account]:
    config = EmulatorConfig(latency_seconds=(0, 0), data_dir=tmp_path)
    with running(config) as base_url:
        yield Account(base_url)


def told(account: Account, call: str, **fields: object) -> dict[str, Any]:
    at_account = Account(account.base_url.replace("nano_banana/", ""))
    answer: dict[str, Any] = at_account.post(call, {"deploy_type": "nano_banana"} | fields).json()
    return answer


def details(s3_url: str, directory: str) -> dict[str, object]:
    return {
        "public_url": f"https://cdn.test/{directory}/",
        "region_name": "us-east-1",
        "endpoint_url": f"{s3_url}/{BUCKET}",
        "aws_access_key_id": os.environ["AWS_ACCESS_KEY_ID"],
        "aws_secret_access_key": os.environ["AWS_SECRET_ACCESS_KEY"],
        "image_directory": directory,
    }


def finished(account: Account, **fields: object) -> list[str]:
    purchase = account.buy(**fields)
    deadline = time.monotonic() + 60
    while (answer := account.fetch(purchase["id"]))["status"] == "processing":
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert answer["status"] == "success"
    output: list[str] = answer["output"]
    return output


def stored(s3_url: str, key: str) -> Any:
    return boto3.client("s3", endpoint_url=s3_url).get_object(Bucket=BUCKET, Key=key)


@pytest.mark.parametrize("public_on_s3", [False, True])
def test_pictures_are_put_into_the_bucket_with_the_credentials_given(
    account: Account, s3_url: str, *, public_on_s3: bool
) -> None:
    directory = f"generations-{uuid.uuid4().hex}"
    own = details(s3_url, directory)
    if public_on_s3:
        own |= {"public_url": f"{s3_url}/{BUCKET}/{directory}", "endpoint_url": s3_url}
    [plain] = finished(account, seed=4)
    assert told(account, "update_s3", **own)["status"] == "success"
    first, second = finished(account, seed=4, samples=2)
    head, _, name = first.rpartition("/")
    assert head == str(own["public_url"]).rstrip("/")
    put = stored(s3_url, f"{directory}/{name}")
    assert put["ContentType"] == "image/png"
    assert put["Body"].read()[:4] == b"\x89PNG"
    stored(s3_url, f"{directory}/{second.rpartition('/')[2]}")
    assert finished(account, temp="yes")[0].startswith(account.root_url)
    told(account, "reset_s3")
    assert finished(account, seed=4)[0].startswith(account.root_url)
    assert plain.startswith(account.root_url)


def test_a_naive_join_doubles_the_slash(account: Account, s3_url: str) -> None:
    told(account, "update_s3", **details(s3_url, "generations"))
    account.tell("moods", double_slash=1)
    assert finished(account)[0].startswith("https://cdn.test/generations//")


def test_details_that_do_not_work_leave_the_pictures_with_the_provider(
    account: Account, s3_url: str
) -> None:
    told(account, "update_s3", **details(s3_url, "generations") | {"aws_secret_access_key": "no"})
    assert account.get(finished(account)[0]).content[:4] == b"\x89PNG"


def test_credentials_are_kept_nowhere_and_shown_nowhere(
    account: Account, s3_url: str, tmp_path: Path
) -> None:
    secret = "a-secret-that-nobody-repeats"
    own = details(s3_url, "generations") | {"aws_secret_access_key": secret}
    shown = [str(told(account, "update_s3", **own))]
    finished(account)
    shown += [str(account.admin(name)) for name in ("purchases", "stats", "moods")]
    on_disk = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"a red panda" in on_disk
    assert secret.encode() not in on_disk
    assert secret not in str(shown)


def test_details_are_checked_and_those_of_other_deployments_change_nothing(
    account: Account, s3_url: str
) -> None:
    own = details(s3_url, "generations")
    missing = told(account, "update_s3", **own | {"image_directory": " "})
    assert missing["errors"] == {"image_directory": ["image_directory is required"]}
    plain = told(account, "update_s3", **own | {"endpoint_url": "http://s3.test"})
    assert plain["errors"] == {"endpoint_url": ["endpoint_url must be an HTTPS URL"]}
    for unreadable in ("https://[", "https://\ud800.test/", "https://x.test:port/"):
        assert told(account, "update_s3", **own | {"public_url": unreadable})["status"] == "error"
    other = told(account, "update_s3", **own, deploy_type="text_to_image")
    assert other["status"] == "success"
    assert finished(account)[0].startswith(account.root_url)


def test_pictures_are_made_public_by_an_acl_and_a_bucket_that_refuses_it_gets_nothing(
    account: Account, s3_url: str
) -> None:
    with S3Proxy(s3_url) as proxy:
        proxy.refuse_acls()
        told(account, "update_s3", **details(proxy.url, "generations"))
        [address] = finished(account)
        assert proxy.count("PUT", "generations") == 1
    assert address.startswith("https://cdn.test/generations/")
    with pytest.raises(ClientError, match="NoSuchKey"):
        stored(s3_url, f"generations/{address.rpartition('/')[2]}")
