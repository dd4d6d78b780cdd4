"""The script that one writes first: threads, three tries, and what is in S3 already is skipped.

``python -m benchmarks.plain_script BASE_URL API_KEY BUCKET PREFIX PROMPTS.txt``

It stands beside the pipeline in `benchmarks.kills`. Nothing in it is wrong on purpose: it finds
every picture again that it has stored, waits after a 429, and draws until all are there.
"""

import hashlib
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import requests
from botocore.exceptions import BotoCoreError, ClientError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

THREADS = 10
TRIES = 3


def draw_all(
    base_url: str, api_key: str, s3: "S3Client", bucket: str, prefix: str, prompts: Iterable[str]
) -> None:
    """Draw every prompt whose picture is not in the bucket yet.

    Raises:
        requests.RequestException: the provider failed one of them three times.
    """

    def draw(prompt: str) -> None:
        key = f"{prefix}{hashlib.sha256(prompt.encode()).hexdigest()}.png"
        if "Contents" in s3.list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1):
            return
        for attempt in range(1, TRIES + 1):
            try:
                s3.put_object(Bucket=bucket, Key=key, Body=_generate(base_url, api_key, prompt))
            except (requests.RequestException, BotoCoreError, ClientError):
                if attempt == TRIES:
                    raise
                time.sleep(2**attempt)
            else:
                return

    with ThreadPoolExecutor(THREADS) as pool:
        for _ in pool.map(draw, prompts):
            pass


def _generate(base_url: str, api_key: str, prompt: str) -> bytes:
    fields = {"prompt": prompt, "width": 1024, "height": 1024, "samples": 1, "seed": 1}
    answer = _post(f"{base_url}text2img", {"key": api_key, **fields})
    while answer["status"] == "processing":
        time.sleep(0.2)
        answer = {**answer, **_post(f"{base_url}fetch/{answer['id']}", {"key": api_key})}
    picture = requests.get(answer["output"][0], timeout=60)
    picture.raise_for_status()
    return picture.content


def _post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    response = requests.post(url, json=body, timeout=60)
    while response.status_code == HTTPStatus.TOO_MANY_REQUESTS:
        time.sleep(response.json().get("retry_after", 1))
        response = requests.post(url, json=body, timeout=60)
    response.raise_for_status()
    answer: dict[str, Any] = response.json()
    return answer


def main() -> None:
    """Draw what the command line says."""
    url, key, to_bucket, below, table = sys.argv[1:]
    lines = Path(table).read_text().splitlines()
    draw_all(url, key, boto3.client("s3"), to_bucket, below, lines)


if __name__ == "__main__":
    main()
