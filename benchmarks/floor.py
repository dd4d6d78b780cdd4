"""The least that a picture can cost: the bytes' way without any logic, in Rust where it matters.

``python -m benchmarks.floor PROVIDER_URL BUCKET COUNT``, in an environment that has obstore. For
each picture one POST and one GET, one SHA-256, one PUT of the picture and three of a ledger entry's
size; nothing is looked at, resumed or promised. S3 is that of AWS's variables.
"""

import hashlib
import http.client
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

from obstore.store import HTTPStore, S3Store  # type: ignore[import-not-found]

THREADS = 8
ENTRY = b"x" * 1500
FIELDS = b'{"prompt": "a paper fox by the river", "width": 1024, "height": 1024, "seed": 1}'


def bring_all(provider: str, bucket: str, count: int) -> None:
    """Bring so many pictures, each with the writes that a promise would need."""
    pictures = HTTPStore(provider, client_options={"allow_http": True})
    s3 = S3Store(
        bucket,
        client_options={"allow_http": True},
        virtual_hosted_style_request=False,
        unsigned_payload=True,
    )
    mine = threading.local()
    place = urlsplit(provider).netloc

    def bring(number: int) -> None:
        if not hasattr(mine, "provider"):
            mine.provider = http.client.HTTPConnection(place)
        mine.provider.request("POST", "/text2img", FIELDS)
        mine.provider.getresponse().read()
        s3.put(f"floor/{number}.json", ENTRY)
        s3.put(f"floor/{number}.json", ENTRY)
        data = pictures.get(f"files/{number}.png").bytes()
        s3.put(f"floor/{hashlib.sha256(data).hexdigest()}.png", data, use_multipart=False)
        s3.put(f"floor/{number}.json", ENTRY)

    with ThreadPoolExecutor(THREADS) as pool:
        for _ in pool.map(bring, range(count)):
            pass


if __name__ == "__main__":
    bring_all(sys.argv[1], sys.argv[2], int(sys.argv[3]))
