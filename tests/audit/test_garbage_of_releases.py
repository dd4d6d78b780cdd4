"""What is left of builds that were killed, and of previews, is told of; what is named is not."""

from datetime import timedelta

import pytest

from nanobanana_pipeline.audit import AuditReport, Finding, FindingKind, Waste, audit, find_garbage
from nanobanana_pipeline.bucket_keys import latest_release_key, release_key
from nanobanana_pipeline.datasets import row_images, shard_builder
from nanobanana_pipeline.datasets.publish import build_release
from nanobanana_pipeline.datasets.pull import verify
from nanobanana_pipeline.datasets.release import Release, read_latest
from nanobanana_pipeline.errors import StorageError
from nanobanana_pipeline.generation.manifest.preview import write_preview
from nanobanana_pipeline.storage import ObjectStore
from tests.conftest import Emulators, account_for
from tests.datasets.release_rows import NOTHING_REJECTED, recipe, rows_of
from tests.later import later
from tests.launching import keep_prompts, launch, prompts

DAY = timedelta(days=1, minutes=10)
WEEK = timedelta(days=7, minutes=10)


def built(store: ObjectStore, count: int) -> Release:
    parent = read_latest(store, "pets")
    return build_release(store, recipe(), rows_of(store, count), NOTHING_REJECTED, parent=parent)


def killed(
    store: ObjectStore, count: int, monkeypatch: pytest.MonkeyPatch, after: int = 3
) -> set[str]:
    """A build that ended after it had read so many pictures; gives what it has left."""
    fetch, pictures = row_images.read_image, iter(range(after))

    def picture(store: ObjectStore, row: dict[str, object]) -> bytes:
        if next(pictures, None) is None:
            raise KeyboardInterrupt
        return fetch(store, row)

    before = set(store.keys("datasets/"))
    with monkeypatch.context() as patch:
        patch.setattr(row_images, "read_image", picture)
        patch.setattr(shard_builder, "SHARDS_AT_ONCE", 1)
        with pytest.raises(KeyboardInterrupt):
            built(store, count)
    return set(store.keys("datasets/")) - before


def waste(store: ObjectStore, kind: Waste) -> set[str]:
    return {found.key for found in find_garbage(store) if found.kind is kind}


def notes(store: ObjectStore) -> list[Finding]:
    report = audit(store, sample=0)
    return [found for found in report.findings if found.kind is FindingKind.BUILD_ABANDONED]


def test_what_a_killed_build_has_left_is_noted_after_a_day_and_garbage_after_a_week(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    built(store, 4)
    left = killed(store, 12, monkeypatch, after=6)
    assert any(key.endswith(".tar") for key in left)
    assert release_key("pets", "v2", "build.json") in left
    assert notes(store) == []
    assert waste(store, Waste.BUILD) == set()

    report: AuditReport = audit(later(store, DAY), sample=0)
    [found] = [each for each in report.findings if each.kind is FindingKind.BUILD_ABANDONED]
    assert found.key == release_key("pets", "v2", "build.json")
    assert f"left {len(left)} objects" in found.text
    assert waste(later(store, DAY), Waste.BUILD) == set()

    assert waste(later(store, WEEK), Waste.BUILD) == left
    # Where one object is young, somebody goes on with the build.
    young = later(store, WEEK, young=lambda key: key == max(left))
    assert waste(young, Waste.BUILD) == set()

    # Rows that are others take the next number, and name nothing of it.
    release = built(store, 8)
    assert release.version == "v3"
    assert waste(later(store, WEEK), Waste.BUILD) == left
    for key in left:
        store.delete(key)
    assert list(verify(store, release)) == []


def test_a_build_that_went_on_and_came_to_its_end_is_nothing_to_note(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed(store, 12, monkeypatch)
    assert len(notes(later(store, DAY))) == 1
    release = built(store, 12)
    assert release.version == "v1"
    assert notes(later(store, WEEK)) == []
    assert waste(later(store, WEEK), Waste.BUILD) == set()


def test_an_abandoned_build_is_no_disagreement(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed(store, 12, monkeypatch)
    for key in list(store.keys("images/")):
        store.delete(key)
    report = audit(later(store, DAY), sample=0)
    assert report.counts == {FindingKind.BUILD_ABANDONED: 1}
    assert report.agrees


@pytest.mark.parametrize("lost", ["v1/release.json", "v2/release.json", "latest.json"])
def test_a_release_that_is_damaged_is_never_taken_for_a_build(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    built(store, 4)
    built(store, 8)
    killed(store, 12, monkeypatch)
    key = f"datasets/pets/{lost}"
    if lost == "latest.json":
        store.put(key, b"{")
    else:
        store.delete(key)
    with pytest.raises(StorageError, match="run `nanobanana audit`"):
        list(find_garbage(later(store, WEEK)))
    report = audit(later(store, WEEK), sample=0)
    told = [each for each in report.findings if each.key == latest_release_key("pets")]
    assert [each.kind for each in told] == [FindingKind.UNREADABLE]
    assert "restore it" in told[0].text
    assert FindingKind.BUILD_ABANDONED not in report.counts


def test_a_version_that_was_built_and_never_published_keeps_its_files(store: ObjectStore) -> None:
    built(store, 4)
    [latest] = [key for key in store.keys("datasets/") if key.endswith("latest.json")]
    store.delete(latest)
    assert waste(later(store, WEEK), Waste.BUILD) == set()
    assert notes(later(store, WEEK)) == []


def test_previews_of_former_manifests_are_garbage_a_week_after_the_next(
    store: ObjectStore, emulators: Emulators
) -> None:
    account = account_for(emulators().base_url, store)
    keys = []
    for count in (1, 2):
        keep_prompts(store, "set", prompts(count))
        launched = launch(store, account)
        keys.append(write_preview(store, launched.current, launched.rows))
    before, now = keys
    assert before is not None
    assert now is not None
    assert before != now
    assert waste(store, Waste.PREVIEW) == set()
    assert waste(later(store, WEEK), Waste.PREVIEW) == {before}
    assert waste(later(store, WEEK, young=lambda key: key == now), Waste.PREVIEW) == set()
