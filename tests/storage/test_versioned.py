"""The pointer to the table in force, where S3's answers are lost."""

import pytest

from nanobanana_pipeline.errors import StorageFull, StorageUnavailable
from nanobanana_pipeline.storage import ObjectStore
from nanobanana_pipeline.storage.versioned import swap_pointer

KEY = "tables/current.json"


def test_a_write_whose_answer_is_lost_has_won(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for verb in ("create", "update"):
        found = store.get(KEY)
        real = getattr(store, verb)

        def silent(*given: object, real: object = real, **more: object) -> None:
            assert callable(real)
            assert real(*given, **more) is not None
            raise StorageUnavailable("no answer")

        monkeypatch.setattr(store, verb, silent)
        assert swap_pointer(store, KEY, {"table": verb}, found.etag if found else None)


def test_a_write_that_never_arrived_has_lost(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unheard(*_given: object, **_more: object) -> None:
        raise StorageUnavailable("no answer")

    monkeypatch.setattr(store, "create", unheard)
    assert not swap_pointer(store, KEY, {"table": "a"}, None)
    assert store.get(KEY) is None


def test_of_two_the_first_wins(store: ObjectStore) -> None:
    assert swap_pointer(store, KEY, {"table": "a"}, None)
    assert not swap_pointer(store, KEY, {"table": "b"}, None)


def test_a_full_bucket_is_said_and_not_tried_again(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_given: object, **_more: object) -> None:
        raise StorageFull("no room")

    monkeypatch.setattr(store, "create", full)
    with pytest.raises(StorageFull):
        swap_pointer(store, KEY, {"table": "a"}, None)
