import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor

import pytest

from nanobanana_pipeline.datasets.object_streams import PART_BYTES, Upload, pieces
from nanobanana_pipeline.errors import StorageError, StorageUnavailable
from nanobanana_pipeline.storage import Multipart, ObjectStore, abort_uploads
from tests.datasets.release_rows import read

TYPE = "application/x-tar"


@pytest.fixture
def helpers() -> Iterator[Executor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


@pytest.mark.parametrize(
    "sizes", [[], [1], [PART_BYTES], [PART_BYTES - 1, 2], [3 * PART_BYTES + 5], [700_000] * 40]
)
def test_what_is_written_in_pieces_is_one_object(
    store: ObjectStore, helpers: Executor, sizes: list[int]
) -> None:
    body = os.urandom(sum(sizes))
    with Upload(store, "big", TYPE, helpers) as upload:
        for size in sizes:
            start = upload.tell()
            assert upload.write(body[start : start + size]) == size
    assert (upload.size, upload.sha256) == (len(body), hashlib.sha256(body).hexdigest())
    assert read(store, "big") == body
    found = list(pieces(store, "big", len(body)))
    assert b"".join(found) == body
    assert all(len(piece) <= PART_BYTES for piece in found)
    assert abort_uploads(store, "", 0) == 0


@pytest.mark.parametrize("size", [10, 3 * PART_BYTES])
def test_a_block_that_is_left_by_an_error_leaves_nothing(
    store: ObjectStore, helpers: Executor, size: int
) -> None:
    store.put("big", b"before")
    upload = Upload(store, "big", TYPE, helpers)

    def fail_in_the_middle() -> None:
        with upload:
            upload.write(bytes(size))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_in_the_middle()
    upload.close()
    assert read(store, "big") == b"before"
    assert abort_uploads(store, "", 0) == 0


def test_uploads_that_a_killed_build_has_begun_are_given_up_by_their_age(
    store: ObjectStore,
) -> None:
    upload = Multipart(store, "datasets/a/v1/x.tar", content_type=TYPE)
    etag = upload.part(1, b"1")
    assert abort_uploads(store, "datasets/b/", 0) == 0
    assert abort_uploads(store, "datasets/a/", 3600) == 0
    assert abort_uploads(store, "datasets/a/", 0) == 1
    with pytest.raises(StorageError):
        upload.finish([etag], 1)
    assert store.get("datasets/a/v1/x.tar") is None
    upload.abort()


def test_an_upload_whose_last_answer_is_lost_is_finished(
    store: ObjectStore, helpers: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete, asked = store.client.complete_multipart_upload, []

    def lose_the_first_answer(**given: object) -> object:
        answer = complete(**given)  # type: ignore[arg-type]
        asked.append(given["UploadId"])
        if len(asked) == 1:
            raise StorageUnavailable("no answer")
        return answer

    monkeypatch.setattr(store.client, "complete_multipart_upload", lose_the_first_answer)
    with Upload(store, "big", TYPE, helpers) as upload:
        upload.write(bytes(PART_BYTES + 1))
    assert len(set(asked)) == 1
    assert len(read(store, "big")) == upload.size


def test_a_piece_that_is_not_there_is_an_error(store: ObjectStore) -> None:
    store.put("short", b"12345")
    assert store.get_range("short", 1, 3) == b"234"
    assert store.get_range("none", 0, 3) is None
    with pytest.raises(StorageError, match=r"has 3 bytes where bytes=2-5 should be"):
        store.get_range("short", 2, 4)
    with pytest.raises(StorageError, match="could not read bytes=9-9"):
        store.get_range("short", 9, 1)
    with pytest.raises(StorageError, match="is missing"):
        list(pieces(store, "none", 1))
