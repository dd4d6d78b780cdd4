"""The bucket's promises, before a real S3 server, and before some that break theirs."""

import contextlib
import hashlib
import socket
import threading
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import boto3
import pytest

from nanobanana_pipeline import local
from nanobanana_pipeline.errors import ObjectTooLarge, StorageError, StorageUnavailable
from nanobanana_pipeline.storage import ObjectStore, s3_client, s3_config
from nanobanana_pipeline.storage.bucket_check import ensure_checked
from tests.provider.servers import Server, answer, closing, free_port, serving

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

SECRET = "an-s3-secret-that-stays-one"


def client_at(url: str, *, secret: str = SECRET, key: str = local.ACCESS_KEY) -> "S3Client":
    return boto3.session.Session().client(
        "s3",
        endpoint_url=url,
        aws_access_key_id=key,
        aws_secret_access_key=secret,
        region_name="us-east-1",
        config=s3_config(),
    )


def body_of(store: ObjectStore, key: str) -> bytes:
    found = store.get(key)
    assert found is not None
    return found.body


# --- reading and writing -------------------------------------------------------------------------


def test_what_is_put_is_read_back_whole(store: ObjectStore) -> None:
    body = bytes(range(256)) * 5000
    etag = store.put("a/b.bin", body)
    found = store.get("a/b.bin")
    assert found is not None
    assert found.body == body
    assert found.etag == etag
    assert found.age_seconds >= -1


def test_nothing_is_none(store: ObjectStore) -> None:
    assert store.get("nothing") is None
    assert store.head("nothing") is None
    store.delete("nothing")


def test_metadata_comes_back(store: ObjectStore) -> None:
    told = {"request-key": "ab" * 32, "run-id": "run 1/2:é".encode("ascii", "ignore").decode()}
    store.create("a", b"x", metadata=told, content_type="image/png")
    found = store.get("a")
    assert found is not None
    assert dict(found.metadata) == told
    assert store.head("a") == told


def test_an_empty_object_is_one(store: ObjectStore) -> None:
    store.put("empty", b"")
    assert body_of(store, "empty") == b""


@pytest.mark.parametrize("key", ["a b+c", "ü/ñ", "a#b?c=d&e", "a%20b", "😀", "seed=1/x:y"])
def test_keys_are_taken_to_the_letter(store: ObjectStore, key: str) -> None:
    store.put(key, key.encode())
    assert body_of(store, key) == key.encode()
    assert list(store.keys("")) == [key]
    assert store.open_url(store.uri(key)) == key.encode()


def test_age_is_told_by_the_server_alone(store: ObjectStore) -> None:
    store.put("a", b"x")
    time.sleep(2.1)
    found = store.get("a")
    assert found is not None
    assert 1 <= found.age_seconds <= 60


# --- create and update ---------------------------------------------------------------------------


def test_create_writes_only_where_nothing_is(store: ObjectStore) -> None:
    assert store.create("a", b"1") is not None
    assert store.create("a", b"2") is None
    assert body_of(store, "a") == b"1"


def test_update_writes_only_over_what_was_read(store: ObjectStore) -> None:
    first = store.create("a", b"1")
    assert first is not None
    second = store.update("a", b"2", first)
    assert second is not None
    assert second != first
    assert store.update("a", b"3", first) is None
    assert body_of(store, "a") == b"2"


def test_update_of_what_is_gone_writes_nothing(store: ObjectStore) -> None:
    etag = store.create("a", b"1")
    assert etag is not None
    store.delete("a")
    assert store.update("a", b"2", etag) is None
    assert store.get("a") is None


def test_of_sixteen_that_create_at_once_one_wins(store: ObjectStore) -> None:
    for round_ in range(2):
        key, gate = f"race/{round_}", threading.Barrier(16)

        def create(number: int, key: str = key, gate: threading.Barrier = gate) -> int | None:
            gate.wait()
            return number if store.create(key, b"%d" % number) else None

        with ThreadPoolExecutor(16) as pool:
            winners = [won for won in pool.map(create, range(16)) if won is not None]
        assert len(winners) == 1
        assert body_of(store, key) == b"%d" % winners[0]


def test_of_sixteen_that_update_at_once_one_wins(store: ObjectStore) -> None:
    etag = store.create("a", b"start")
    assert etag is not None
    gate = threading.Barrier(16)

    def update(number: int) -> int | None:
        gate.wait()
        return number if store.update("a", b"%d" % number, etag) else None

    with ThreadPoolExecutor(16) as pool:
        winners = [won for won in pool.map(update, range(16)) if won is not None]
    assert len(winners) == 1
    assert body_of(store, "a") == b"%d" % winners[0]


def test_counting_by_compare_and_swap_loses_nothing(store: ObjectStore) -> None:
    store.create("count", b"0")

    def add(_: int) -> None:
        while True:
            found = store.get("count")
            assert found is not None
            if store.update("count", b"%d" % (int(found.body) + 1), found.etag):
                return

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(add, range(20)))
    assert body_of(store, "count") == b"20"


def test_bytes_that_are_not_those_of_the_checksum_are_refused_and_not_stored(
    store: ObjectStore,
) -> None:
    with pytest.raises(StorageError):
        store.create("a", b"damaged", sha256=hashlib.sha256(b"whole").digest())
    assert store.get("a") is None
    assert store.create("a", b"whole", sha256=hashlib.sha256(b"whole").digest())


@pytest.mark.parametrize(("size", "asks"), [(0, False), (65_536, False), (65_537, True)])
def test_s3_is_asked_before_large_bodies_only(s3_url: str, size: int, *, asks: bool) -> None:
    client = s3_client(
        endpoint_url=s3_url,
        aws_access_key_id=local.ACCESS_KEY,
        aws_secret_access_key=local.SECRET_KEY,
        region_name="us-east-1",
    )
    asked: list[bool] = []
    client.meta.events.register(
        "before-send.s3", lambda request, **_: asked.append("Expect" in request.headers)
    )
    store = ObjectStore(client, local.BUCKET, f"test-{size}")
    store.put("a", bytes(size))
    assert asked == [asks]
    assert body_of(store, "a") == bytes(size)


# --- listing -------------------------------------------------------------------------------------


def test_keys_come_in_order_over_many_pages_and_only_those_asked_for(store: ObjectStore) -> None:
    names = sorted(f"list/{number:03}" for number in range(23))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: store.put(name, b""), [*names, "other/1", "lis"]))

    def pages_of_four(params: dict[str, Any], **_: object) -> None:
        params["MaxKeys"] = 4

    small = s3_client()
    small.meta.events.register("provide-client-params.s3.ListObjectsV2", pages_of_four)
    paged = ObjectStore(small, store.bucket, store.prefix)
    assert list(paged.keys("list/")) == names
    assert list(paged.keys("list/00")) == names[:10]
    assert list(paged.keys("none/")) == []
    assert len(list(paged.keys(""))) == 25


def test_a_prefix_hides_the_rest_of_the_bucket(store: ObjectStore) -> None:
    inner = ObjectStore(store.client, store.bucket, f"/{store.prefix}inner/")
    inner.put("a", b"1")
    assert list(inner.keys("")) == ["a"]
    assert list(store.keys("")) == ["inner/a"]
    assert inner.uri("a") == f"s3://{store.bucket}/{store.prefix}inner/a"
    assert repr(inner) == f"ObjectStore({inner.uri('')})"


# --- what is wrong is told -----------------------------------------------------------------------


def test_a_bucket_that_is_not_there_is_told_with_a_hint(store: ObjectStore) -> None:
    missing = ObjectStore(store.client, "no-such-bucket")
    for call in (
        lambda: missing.get("a"),
        lambda: missing.put("a", b""),
        lambda: missing.create("a", b""),
        lambda: list(missing.keys("")),
        lambda: missing.open_url("s3://no-such-bucket/a"),
    ):
        with pytest.raises(StorageError, match=r"no-such-bucket/.*NANOBANANA_BUCKET") as told:
            call()
        assert not isinstance(told.value, StorageUnavailable)


@pytest.mark.parametrize("name", ["My Bucket", "s3://bucket", "a/b", ""])
def test_a_name_that_no_bucket_can_have_is_a_storage_error(store: ObjectStore, name: str) -> None:
    with pytest.raises(StorageError):
        ObjectStore(store.client, name).get("a")


@pytest.mark.parametrize(
    ("key", "hint"),
    [(local.ACCESS_KEY, "check AWS_SECRET_ACCESS_KEY"), ("nobody", "check AWS_ACCESS_KEY_ID")],
)
def test_wrong_keys_are_told_at_once_with_a_hint_and_without_the_secret(
    s3_url: str, key: str, hint: str
) -> None:
    store = ObjectStore(client_at(s3_url, key=key), local.BUCKET)
    for call in (lambda: store.get("a"), lambda: store.create("a", b"")):
        with pytest.raises(StorageError, match=hint) as told:
            call()
        assert not isinstance(told.value, StorageUnavailable)
        assert SECRET not in "".join(traceback.format_exception(told.value))


def test_no_keys_at_all_are_told_with_a_hint(
    s3_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert s3_url
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(StorageError, match="set AWS_ACCESS_KEY_ID"):
        ObjectStore(s3_client(), local.BUCKET).get("a")


@pytest.mark.parametrize(
    ("name", "value"), [("AWS_ENDPOINT_URL_S3", "no url"), ("AWS_PROFILE", "nobody")]
)
def test_s3_that_is_not_configured_is_told(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(StorageError, match="S3 is not configured"):
        s3_client()


def test_metadata_that_s3_cannot_hold_is_a_storage_error(store: ObjectStore) -> None:
    with pytest.raises(StorageError):
        store.create("a", b"", metadata={"who": "é"})


def test_an_object_to_read_by_url_that_is_not_there_is_an_error(store: ObjectStore) -> None:
    with pytest.raises(StorageError, match="NoSuchKey"):
        store.open_url(store.uri("nothing"))


# --- servers that give no answer -----------------------------------------------------------------


def test_a_dead_endpoint_is_told_at_once_to_conditional_writes() -> None:
    store = ObjectStore(client_at(f"http://127.0.0.1:{free_port()}"), "b")
    began = time.monotonic()
    with pytest.raises(StorageUnavailable) as told:
        store.create("a", b"")
    with pytest.raises(StorageUnavailable):
        store.update("a", b"", '"e"')
    assert SECRET not in "".join(traceback.format_exception(told.value))
    assert time.monotonic() - began < 20


def test_a_conditional_write_whose_answer_is_lost_is_sent_once() -> None:
    with serving(closing) as server:
        store = ObjectStore(client_at(server.url), "b")
        with pytest.raises(StorageUnavailable):
            store.create("a", b"")
        with pytest.raises(StorageUnavailable):
            store.update("a", b"", '"e"')
    assert server.connections == 2


class Quirky(BaseHTTPRequestHandler):
    """S3 that keeps what it is sent; what it gets wrong is up to the test."""

    protocol_version = "HTTP/1.1"
    objects: ClassVar[dict[str, bytes]]
    trouble: ClassVar[list[int]]
    refuse_conditions_with: ClassVar[int]
    seen: ClassVar[list[str]]

    def do_PUT(self) -> None:
        self.seen.append("PUT")
        body = self.rfile.read(int(self.headers["Content-Length"]))
        conditional = self.headers["If-None-Match"] or self.headers["If-Match"]
        if self.refuse_conditions_with and conditional:
            self._answer(self.refuse_conditions_with, b"<Error><Code>NotImplemented</Code></Error>")
        elif self.trouble:
            self._answer(self.trouble.pop(), b"<Error><Code>SlowDown</Code></Error>")
        else:
            self.objects[self.path] = body
            self._answer(200)

    def do_GET(self) -> None:
        self.seen.append("GET")
        if self.trouble:
            self._answer(self.trouble.pop(), b"")
        elif self.path in self.objects:
            self._answer(200, self.objects[self.path])
        else:
            self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")

    def do_DELETE(self) -> None:
        self.seen.append("DELETE")
        self.objects.pop(self.path, None)
        self._answer(204)

    def _answer(self, status: int, body: bytes = b"") -> None:
        self.send_response(status)
        self.send_header("ETag", '"constant"')
        self.send_header("Last-Modified", formatdate(usegmt=True))
        if status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if status != 204:
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def quirky(
    trouble: list[int] | None = None, refuse_conditions_with: int = 0
) -> Iterator[tuple[ObjectStore, type[Quirky]]]:
    class Handler(Quirky):
        pass

    Handler.objects, Handler.seen = {}, []
    Handler.trouble = trouble or []
    Handler.refuse_conditions_with = refuse_conditions_with
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield ObjectStore(client_at(f"http://127.0.0.1:{server.server_port}"), "b"), Handler
        finally:
            server.shutdown()
            thread.join()


def test_the_bucket_check_fails_at_once_on_a_server_that_cannot_do_conditions() -> None:
    with quirky(refuse_conditions_with=501) as (store, _):
        began = time.monotonic()
        with pytest.raises(StorageError, match="use AWS S3 or SeaweedFS") as told:
            ensure_checked(store)
        assert not isinstance(told.value, StorageUnavailable)
        assert time.monotonic() - began < 20


def test_reads_and_plain_writes_wait_for_a_server_in_trouble() -> None:
    with quirky([503]) as (store, server):
        store.put("a", b"1")
        assert server.seen == ["PUT"] * 2
        server.trouble.append(500)
        assert body_of(store, "a") == b"1"
        assert server.seen == ["PUT"] * 2 + ["GET"] * 2


@pytest.mark.parametrize("status", [500, 503])
def test_conditional_writes_are_never_repeated_here(status: int) -> None:
    with quirky([status] * 3) as (store, server):
        with pytest.raises(StorageUnavailable):
            store.create("a", b"1")
        with pytest.raises(StorageUnavailable):
            store.update("a", b"1", '"e"')
        assert server.seen == ["PUT"] * 2


# --- objects that others wrote -------------------------------------------------------------------


def adopted(store: ObjectStore, etag: str, to: str = "copy") -> bool:
    return store.adopt(
        store.bucket,
        store.prefix + "theirs/a b+%20.bin",
        etag,
        to,
        content_type="image/png",
        metadata={"request-key": "k"},
    )


@pytest.fixture
def theirs(store: ObjectStore) -> str:
    return store.put("theirs/a b+%20.bin", b"their bytes", content_type="text/plain")


def test_an_object_is_copied_with_type_and_metadata_of_our_own(
    store: ObjectStore, theirs: str
) -> None:
    assert adopted(store, theirs)
    found = store.client.get_object(Bucket=store.bucket, Key=store.prefix + "copy")
    assert found["Body"].read() == b"their bytes"
    assert (found["ContentType"], found["Metadata"]) == ("image/png", {"request-key": "k"})
    assert body_of(store, "theirs/a b+%20.bin") == b"their bytes"


def test_an_object_that_has_changed_since_it_was_read_is_not_copied(
    store: ObjectStore, theirs: str
) -> None:
    store.put("theirs/a b+%20.bin", b"other bytes")
    assert not adopted(store, theirs)
    assert store.get("copy") is None
    store.delete("theirs/a b+%20.bin")
    assert not adopted(store, theirs)
    assert store.get("copy") is None


def test_nothing_is_copied_over_what_is_there(store: ObjectStore, theirs: str) -> None:
    store.put("copy", b"ours")
    assert not adopted(store, theirs)
    assert body_of(store, "copy") == b"ours"


def test_of_many_copies_at_once_one_is_made(store: ObjectStore, theirs: str) -> None:
    with ThreadPoolExecutor(8) as everybody:
        made = list(everybody.map(lambda _: adopted(store, theirs), range(16)))
    assert made.count(True) == 1
    assert body_of(store, "copy") == b"their bytes"


def test_a_copy_from_a_bucket_that_is_not_there_is_an_error(store: ObjectStore) -> None:
    with pytest.raises(StorageError, match=r"copy s3://no-such-bucket/a to .*NoSuchBucket"):
        store.adopt("no-such-bucket", "a", '"e"', "copy", content_type="x/y", metadata={})


def test_a_copy_whose_answer_is_lost_is_sent_once() -> None:
    with serving(closing) as server:
        store = ObjectStore(client_at(server.url), "b")
        with pytest.raises(StorageUnavailable):
            store.adopt("b", "a", '"e"', "copy", content_type="x/y", metadata={})
    assert server.connections == 1


def test_any_object_is_read_up_to_a_bound(store: ObjectStore, theirs: str) -> None:
    key = store.prefix + "theirs/a b+%20.bin"
    found = store.read_object(store.bucket, key, 11)
    assert found is not None
    assert (found.body, found.etag) == (b"their bytes", theirs)
    assert store.read_object(store.bucket, key + "x", 11) is None
    with pytest.raises(ObjectTooLarge, match="has 11 bytes, more than 10"):
        store.read_object(store.bucket, key, 10)
    with pytest.raises(StorageError, match="NoSuchBucket"):
        store.read_object("no-such-bucket", key, 11)


def test_a_body_above_the_bound_is_not_read() -> None:
    """The server says how much it would send, and sends nothing: whoever reads would wait."""

    def huge(server: Server, peer: socket.socket) -> None:
        server.read(peer)
        head = {"ETag": '"e"', "Last-Modified": formatdate(usegmt=True)}
        peer.sendall(answer(b"", headers={**head, "Content-Length": str(10**12)}))
        server.stopping.wait(30)

    with serving(huge) as server, pytest.raises(ObjectTooLarge):
        ObjectStore(client_at(server.url), "b").read_object("b", "a", 2**20)


# --- listing -------------------------------------------------------------------------------------


def test_a_listing_tells_sizes_and_ages_by_the_servers_clock_over_pages(store: ObjectStore) -> None:
    for number in range(3):
        store.put(f"a/{number}", b"x" * number)
    store.put("b/9", b"")
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda number: store.put(f"many/{number:04d}", b""), range(1001)))
    found = list(store.listing("a/"))
    assert [(each.key, each.size) for each in found] == [("a/0", 0), ("a/1", 1), ("a/2", 2)]
    assert all(-1 <= each.age_seconds < 60 for each in found)
    many = [each.key for each in store.listing("many/")]
    assert many == [f"many/{number:04d}" for number in range(1001)]
    assert many == list(store.keys("many/"))
    assert list(store.listing("nothing/")) == []
