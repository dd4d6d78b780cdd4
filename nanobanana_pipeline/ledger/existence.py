"""Which of many requests the ledger knows, in fewer calls than one a request.

A LIST tells of 1,000 entries, and a GET of one. Request keys are hashes, so the entries between
two of them are as many everywhere: after a page or two it is known which of the two is cheaper.
"""

import threading
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Final

from nanobanana_pipeline.bucket_keys import Folder, ledger_key
from nanobanana_pipeline.storage import ObjectStore

__all__ = ["MANY", "leave_out_unknown"]

MANY: Final = 200
"""Fewer are asked for one by one: sixteen LISTs cost as much as 200 GETs."""
PAGE: Final = 1_000
"""Keys that S3 gives in one answer."""
WORTH: Final = 25
"""Requests that a page must tell of. S3 charges 12.5 times as much for a LIST as for a GET, and
where the ledger knows them all it was in vain."""
SLICES: Final = "0123456789abcdef"


def leave_out_unknown(store: ObjectStore, request_keys: Sequence[str]) -> list[str]:
    """Leave out requests of which the ledger knows nothing, as far as that is cheap to find out.

    Args:
        store: the bucket.
        request_keys: any number; of fewer than `MANY` none is left out.

    Returns:
        The others, in the same order: those that have an entry, and those that are cheaper to be
        asked for one by one. An entry that is made meanwhile may be missed, as by a GET before it.

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
        found = pool.map(lambda first: _left(store, first, slices[first], stop), list(slices))
        left = {key for keys in found for key in keys}
    finally:
        # Whoever is interrupted here must not wait for the whole ledger.
        stop.set()
        pool.shutdown(cancel_futures=True)
    return [key for key in request_keys if key in left]


def _left(
    store: ObjectStore, first: str, request_keys: list[str], stop: threading.Event
) -> list[str]:
    """What is left of sorted request keys that begin with one digit."""
    listing = store.keys(Folder.LEDGER.prefix + first)
    left: list[str] = []
    told = pages = 0
    while page := list(islice(listing, PAGE)):
        before, there = told, set(page)
        told = bisect_right(request_keys, page[-1], lo=before, key=ledger_key)
        left += [key for key in request_keys[before:told] if ledger_key(key) in there]
        pages += 1
        is_whole = len(page) == PAGE
        if stop.is_set() or (is_whole and told < WORTH * pages):
            return left + request_keys[told:]
    return left
