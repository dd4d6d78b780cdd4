"""Many requests are looked up in few calls, and none that the ledger knows is ever left out."""

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from nanobanana_pipeline.bucket_keys import ledger_key
from nanobanana_pipeline.generation.planning.cells import build_requests
from nanobanana_pipeline.ledger import Entry, Held, Ledger, StoredImage
from nanobanana_pipeline.ledger.existence import MANY, SLICES, leave_out_absent
from nanobanana_pipeline.prompts import prompt_set
from nanobanana_pipeline.provider.modelslab.request import ModelsLabRequest
from nanobanana_pipeline.request import ImageRequest, request_key
from nanobanana_pipeline.storage import ObjectStore
from tests.deploy.counting import Calls
from tests.launching import SMALL, keep_prompts, planned, prompts

CELLS = 3_000
GETS, LISTS = ("GetObject", "ledger"), ("ListObjectsV2", "ledger")


def write_entries(store: ObjectStore, requests: Sequence[ImageRequest]) -> None:
    """An entry of each: settled, as far as the ledger knows."""

    def write(request: ModelsLabRequest) -> None:
        key = request_key(request, realm="emulator")
        sha256 = hashlib.sha256(key.encode()).hexdigest()
        image = StoredImage(
            sample=0, sha256=sha256, size=1, format="png", width=1, height=1, key="images/x.png"
        )
        entry = Entry.new(request, key, realm="emulator").claim(
            run_id="before", nonce="n", lease_seconds=60
        )
        store.put(ledger_key(key), entry.accept("n", "1").settle("n", [image]).to_json())

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(write, requests))


def requests_of(store: ObjectStore) -> list[ImageRequest]:
    """What the partition of the prompt set `set` under seed 1 asks for."""
    kept = prompt_set.current(store, "set")
    assert kept is not None
    rows = prompt_set.load(store, "set", kept.fingerprint)
    parameters = {**ModelsLabRequest.default_parameters(), **SMALL}
    return list(build_requests(rows, 1, parameters, ModelsLabRequest))


def test_a_large_fresh_table_is_not_looked_up_cell_by_cell(store: ObjectStore) -> None:
    keep_prompts(store, "set", prompts(CELLS))
    others = [ModelsLabRequest(prompt=f"elsewhere {n}", seed=1) for n in range(40)]
    write_entries(store, [*others, *requests_of(store)[:10]])
    calls = Calls(store)
    made = planned(store)
    assert (made.states, made.buy) == ({"open": CELLS - 10, "settled": 10}, CELLS - 10)
    asked = calls.take()
    assert (asked[GETS], asked[LISTS]) == (10, len(SLICES))


def test_where_the_manifest_is_lost_the_ledger_is_read_whole(store: ObjectStore) -> None:
    keep_prompts(store, "set", prompts(MANY))
    write_entries(store, requests_of(store))
    calls = Calls(store)
    made = planned(store)
    assert (made.states, made.buy) == ({"settled": MANY}, 0)
    asked = calls.take()
    assert (asked[GETS], asked[LISTS]) == (MANY, len(SLICES))


def test_entries_are_read_some_at_a_time_in_the_order_they_are_asked_for(
    store: ObjectStore,
) -> None:
    keep_prompts(store, "set", prompts(10))
    requests = requests_of(store)
    write_entries(store, requests[:9])
    keys = [request_key(request, realm="emulator") for request in requests]
    calls = Calls(store)
    held = (h for h in Ledger(store).read_many(keys[::-1], read_ahead=4) if isinstance(h, Held))
    assert next(held).entry.request_key == keys[8]
    first = calls.take()[GETS]
    assert first <= 4
    assert [each.entry.request_key for each in held] == keys[7::-1]
    assert first + calls.take()[GETS] == 10


def keys_of(name: str, count: int) -> list[str]:
    return [hashlib.sha256(f"{name} {n}".encode()).hexdigest() for n in range(count)]


@pytest.fixture
def ledger(store: ObjectStore) -> Callable[[Sequence[str]], None]:
    def write(keys: Sequence[str]) -> None:
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda key: store.put(ledger_key(key), b""), keys))

    return write


def test_few_requests_are_not_listed(store: ObjectStore) -> None:
    calls, keys = Calls(store), keys_of("few", MANY - 1)
    assert leave_out_absent(store, keys) == keys
    assert not calls.take()


def test_a_ledger_of_far_more_than_is_asked_for_is_not_listed_to_its_end(
    store: ObjectStore, ledger: Callable[[Sequence[str]], None]
) -> None:
    asked, there = keys_of("asked", 1_000), keys_of("other", 1_000)
    ledger([*there, *asked[:100]])
    # Of some 70 entries in a slice, a page of 4 tells of 4 requests out of 60.
    left = leave_out_absent(store, asked, page_size=4)
    assert 800 < len(left) < 1_000
    assert left == [key for key in asked if key in set(left)]
    assert set(asked[:100]) <= set(left)
    # Where each page tells of enough, it goes on to the end.
    assert leave_out_absent(store, asked, page_size=4, min_requests_a_page=1) == asked[:100]


def test_strange_keys_in_the_ledger_hide_no_entry(
    store: ObjectStore, ledger: Callable[[Sequence[str]], None]
) -> None:
    asked = keys_of("asked", MANY)
    ledger(asked[:50])
    for place in ("ledger/0.json", "ledger/7f/zzz", "ledger/a", "ledger/zz/0", "ledger/notes.txt"):
        store.put(place, b"")
    assert leave_out_absent(store, asked) == asked[:50]
