"""`leave_out_absent`: finds which of many requests have a ledger entry, by LISTs instead of GETs.

A LIST names 1,000 entries, a GET reads one. Request keys are hashes, so entries are spread evenly
among them: after a page or two it is clear which of the two is cheaper.
"""

import threading
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Final

from nanobanana_pipeline.bucket_keys import Folder, ledger_key
from nanobanana_pipeline.storage import ObjectStore

__all__ = ["MANY", "leave_out_absent"]

MANY: Final = 200
"""Fewer are read one by one: sixteen LISTs cost as much as 200 GETs."""
PAGE: Final = 1_000
"""Keys that S3 lists in one answer."""
MIN_REQUESTS_A_PAGE: Final = 25
"""Requests that a page must decide. S3 charges 12.5 times as much for a LIST as for a GET, and the
LIST saves nothing where all of them have an entry."""
SLICES: Final = "0123456789abcdef"


def leave_out_absent(
    store: ObjectStore,
    request_keys: Sequence[str],
    *,
    page_size: int = PAGE,
    min_requests_a_page: int = MIN_REQUESTS_A_PAGE,
) -> list[str]:
    """Leave out requests without a ledger entry, as far as that is cheap to find out.

    Of fewer than `MANY` none is left out. Where a page of `page_size` keys decides fewer than
    `min_requests_a_page`, the rest is not listed.

    Returns:
        The others, in the same order: those that have an entry, and those that are cheaper to read
        one by one. An entry that is created meanwhile may be missed, as by an earlier GET.

    Raises:
        StorageError: S3 refuses or stays silent.
    """
    if len(request_keys) < MANY:
        return list(request_keys)
    slices: dict[str, list[str]] = defaultdict(list)
    for key in sorted(request_keys):
        slices[key[0]].append(key)
    stop = threading.Event()
    pool = ThreadPoolExecutor(len(SLICES))
    try:
        parts = pool.map(
            lambda first: _filter(
                store.keys(Folder.LEDGER.prefix + first),
                slices[first],
                stop,
                page_size,
                min_requests_a_page,
            ),
            list(slices),
        )
        remaining = {key for keys in parts for key in keys}
    finally:
        # An interrupt must not wait until the whole ledger is listed.
        stop.set()
        pool.shutdown(cancel_futures=True)
    return [key for key in request_keys if key in remaining]


def _filter(
    listing: Iterator[str],
    request_keys: list[str],
    stop: threading.Event,
    page_size: int,
    min_requests_a_page: int,
) -> list[str]:
    """`leave_out_absent` for sorted request keys that begin with one digit."""
    remaining: list[str] = []
    decided = pages = 0
    while page := list(islice(listing, page_size)):
        before, listed = decided, set(page)
        decided = bisect_right(request_keys, page[-1], lo=before, key=ledger_key)
        remaining += [key for key in request_keys[before:decided] if ledger_key(key) in listed]
        pages += 1
        is_whole = len(page) == page_size
        if stop.is_set() or (is_whole and decided < min_requests_a_page * pages):
            return remaining + request_keys[decided:]
    return remaining
