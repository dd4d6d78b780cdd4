"""Which URLs are objects of the customer, and how that is written down."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from nanobanana_pipeline import bucket_keys
from nanobanana_pipeline.errors import SettingsError, StorageError
from nanobanana_pipeline.provider.modelslab.own_bucket import (
    OwnBucket,
    Place,
    Places,
    change_places,
    check_apart,
    read_places,
)
from nanobanana_pipeline.storage import ObjectStore
from nanobanana_pipeline.storage.bucket_check import check_copies
from tests.s3_proxy import Loss, S3Proxy

WHEN = "2026-01-01T00:00:00.000+00:00"
LATER = "2026-01-02T00:00:00.000+00:00"


def place(public_url: str = "https://cdn.test/gen", uri: str = "s3://b/in", **more: str) -> Place:
    return Place(public_url=public_url, uri=uri, **{"since": WHEN, **more})


@pytest.mark.parametrize(
    ("url", "key"),
    [
        ("https://cdn.test/gen/a.png", "in/a.png"),
        ("HTTPS://CDN.Test/gen/a.png", "in/a.png"),
        ("https://cdn.test:443/gen/a.png", "in/a.png"),
        ("https://cdn.test/gen//a.png", "in/a.png"),
        ("https://cdn.test//gen/x///a.png", "in/x/a.png"),
        ("https://cdn.test/gen/a.png?X-Amz-Signature=1&b=../c", "in/a.png"),
        ("https://cdn.test/gen/a.png#top", "in/a.png"),
        ("https://cdn.test/g%65n/%C3%BC%20%2B.png", "in/ü +.png"),
        ("https://cdn.test/gen/a+b.png", "in/a+b.png"),
        ("https://cdn.test/gen/%2561.png", "in/%61.png"),
        ("https://cdn.test/gen/x%2Fa.png", "in/x/a.png"),
        ("https://cdn.test/gen/", None),
        ("https://cdn.test/gen", None),
        ("https://cdn.test/generations/a.png", None),
        ("https://cdn.test/Gen/a.png", None),
        ("https://cdn.test/other/a.png", None),
        ("https://cdn.test/gen/../a.png", None),
        ("https://cdn.test/gen/x/../../a.png", None),
        ("https://cdn.test/gen/%2e%2e/a.png", None),
        ("https://cdn.test/gen/..%2Fa.png", None),
        ("https://cdn.test/x/../gen/a.png", None),
        ("https://cdn.test/gen/a%00.png", None),
        ("https://cdn.test/gen/a%FF.png", None),
        ("http://cdn.test/gen/a.png", None),
        ("https://cdn.test:8443/gen/a.png", None),
        ("https://cdn.test.evil.test/gen/a.png", None),
        ("https://cdn.test@evil.test/gen/a.png", None),
        ("https://evil.test/https://cdn.test/gen/a.png", None),
        ("https://cdn.test\\@evil.test/gen/a.png", None),
        ("https://cdn.test:port/gen/a.png", None),
        ("https://[/gen/a.png", None),
        ("s3://cdn.test/gen/a.png", None),
        ("", None),
    ],
)
def test_a_url_below_the_public_one_is_an_object(url: str, key: str | None) -> None:
    assert place().key_of(url) == key


@given(st.text())
def test_no_url_leaves_its_folder_or_raises(tail: str) -> None:
    key = place().key_of(f"https://cdn.test/gen/{tail}")
    assert key is None or (key.startswith("in/") and ".." not in key.split("/"))


def test_folders_may_be_whole_hosts_and_whole_buckets() -> None:
    assert place("https://cdn.test/", "s3://b").key_of("https://cdn.test//x/a.png") == "x/a.png"
    assert place("https://cdn.test", "s3://b/in/").key_of("https://cdn.test/a.png") == "in/a.png"
    on_s3 = place("http://127.0.0.1:8333/b/in//", "s3://b/in")
    assert on_s3.key_of("http://127.0.0.1:8333/b/in//a.png") == "in/a.png"


@pytest.mark.parametrize(
    ("public_url", "uri"),
    [
        ("cdn.test/gen", "s3://b/in"),
        ("ftp://cdn.test/gen", "s3://b/in"),
        ("https://", "s3://b/in"),
        ("https://user:word@cdn.test/gen", "s3://b/in"),
        ("https://cdn.test/gen?x=1", "s3://b/in"),
        ("https://cdn.test/gen/../..", "s3://b/in"),
        ("https://[", "s3://b/in"),
        ("https://cdn.test/gen", "s3://"),
        ("https://cdn.test/gen", "b/in"),
        ("https://cdn.test/gen", "s3://b/../in"),
    ],
)
def test_addresses_that_lead_to_no_folder_are_refused(public_url: str, uri: str) -> None:
    with pytest.raises(ValidationError, match=r"no http|is not s3"):
        place(public_url, uri)


def test_the_newest_place_goes_first_and_older_ones_are_still_found() -> None:
    old, new = place(), place("https://cdn.test/new", "s3://c", since=LATER)
    places = Places().add(old).add(new)
    assert [p.until for p in places.places] == [None, LATER]
    assert places.locate("https://cdn.test/new/a.png") == ("c", "a.png")
    assert places.locate("https://cdn.test/gen/a.png") == ("b", "in/a.png")
    assert places.locate("https://modelslab.test/a.png") is None
    assert places.add(new) == places
    ended = places.end(LATER)
    assert all(p.until for p in ended.places)
    assert ended.locate("https://cdn.test/new/a.png") == ("c", "a.png")
    corrected = ended.add(place(uri="s3://b/right", since=LATER))
    assert corrected.locate("https://cdn.test/gen/a.png") == ("b", "right/a.png")
    assert len(corrected.places) == 2


def test_places_are_kept_in_the_bucket_and_read_once(store: ObjectStore, s3_url: str) -> None:
    assert read_places(store) == (Places(), None)
    change_places(store, lambda places: places.add(place()))
    found = store.get("delivery.json")
    assert found is not None
    assert json.loads(found.body) == {
        "schema": 1,
        "places": [
            {"public_url": "https://cdn.test/gen", "uri": "s3://b/in", "since": WHEN, "until": None}
        ],
    }
    with S3Proxy(s3_url) as proxy:
        own = OwnBucket(proxy.store_like(store))
        assert proxy.calls == []
        for _ in range(3):
            assert own.locate("https://cdn.test/gen/a.png") == ("b", "in/a.png")
        assert proxy.count("GET", "delivery.json") == 1
        change_places(store, lambda places: places.add(place("https://cdn.test/new")))
        assert own.locate("https://cdn.test/new/a.png") is None
        own.look_again()
        assert own.locate("https://cdn.test/new/a.png") == ("b", "in/a.png")


def test_nothing_is_written_where_nothing_changes(store: ObjectStore) -> None:
    change_places(store, lambda places: places.end(WHEN))
    assert store.get("delivery.json") is None


def test_places_that_are_added_at_once_are_all_there(store: ObjectStore) -> None:
    def add(number: int) -> None:
        change_places(store, lambda places: places.add(place(f"https://cdn.test/{number}")))

    with ThreadPoolExecutor(6) as everybody:
        list(everybody.map(add, range(6)))
    places, _ = read_places(store)
    assert {p.public_url for p in places.places} == {f"https://cdn.test/{n}" for n in range(6)}
    assert sum(p.until is None for p in places.places) == 1


@pytest.mark.parametrize("loss", Loss)
def test_a_change_whose_request_or_answer_is_lost_is_made_once(
    store: ObjectStore, s3_url: str, loss: Loss
) -> None:
    with S3Proxy(s3_url) as proxy:
        for name in ("one", "two"):
            proxy.lose_once(loss, "PUT", "delivery.json")
            change_places(
                proxy.store_like(store),
                lambda places, name=name: places.add(place(f"https://cdn.test/{name}")),  # type: ignore[misc]
            )
    places, _ = read_places(store)
    assert [p.public_url[-3:] for p in places.places] == ["two", "one"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"not JSON", "damaged"),
        (b"{}", "damaged"),
        (b'{"schema": 1, "places": [{"public_url": "x"}]}', "damaged"),
        (b'{"schema": 2, "places": "other"}', "upgrade"),
    ],
)
def test_what_cannot_be_read_is_told_and_left_alone(
    store: ObjectStore, body: bytes, said: str
) -> None:
    store.put("delivery.json", body)
    with pytest.raises(StorageError, match=said):
        OwnBucket(store).locate("https://cdn.test/gen/a.png")
    with pytest.raises(StorageError, match=said):
        change_places(store, lambda places: places.add(place()))
    found = store.get("delivery.json")
    assert found is not None
    assert found.body == body


def test_a_server_that_honours_conditional_copies_passes(store: ObjectStore) -> None:
    check_copies(store)
    assert list(store.keys("")) == ["probe/lease"]


def test_a_server_that_ignores_conditions_on_copies_is_refused(store: ObjectStore) -> None:
    class Careless(ObjectStore):
        def adopt(self, *_: object, **__: object) -> bool:
            return True

    with pytest.raises(StorageError, match="conditional copies"):
        check_copies(Careless(store.client, store.bucket, store.prefix))


@pytest.mark.parametrize(
    ("prefix", "folder", "fine"),
    [
        ("", "deliveries", True),
        ("", "deliveries/images", True),
        ("", "imagesque", True),
        ("", "", False),
        ("", "/", False),
        ("", "images", False),
        ("", "ledger/new", False),
        ("", "unfinished", False),
        ("", "prompts", False),
        ("", "nanobanana.json", False),
        ("", "delivery.json/new", False),
        ("", "Images", False),
        ("", "//runs", False),
        ("", "./runs", False),
        ("", "deliveries/../runs", False),
        ("", " runs/", False),
        ("", "%72uns", False),
        ("", "%2572uns", False),
        ("", "deliveries%2F..%2Fruns", False),
        ("", "scores", False),
        ("team/a", "team/a", False),
        ("team/a", "team/a/", False),
        ("team/a", "team", False),
        ("team/a", "", False),
        ("team/a", "team/a/images", False),
        ("team/a", "team//a//images", False),
        ("team/a", "team/a/deliveries", True),
        ("team/a", "team/abc", True),
        ("team/a", "images", True),
        ("Team/a", "team/a/images", False),
    ],
)
def test_deliveries_never_lie_among_our_own_objects(
    store: ObjectStore, *, prefix: str, folder: str, fine: bool
) -> None:
    ours = ObjectStore(store.client, "b", prefix)
    check_apart(ours, "other", folder)
    if fine:
        check_apart(ours, "b", folder)
        return
    with pytest.raises(SettingsError, match="another --directory"):
        check_apart(ours, "b", folder)


@pytest.mark.parametrize("folder", [*bucket_keys.Folder, *bucket_keys.FILES])
def test_no_delivery_goes_into_a_folder_of_ours(store: ObjectStore, folder: str) -> None:
    for place in (folder, f"{folder}/deeper"):
        with pytest.raises(SettingsError, match="another --directory"):
            check_apart(store, store.bucket, store.prefix + place)
