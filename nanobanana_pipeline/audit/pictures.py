"""Whether pictures are stored as the ledger says, and whether it names all that are stored."""

import hashlib
from collections.abc import Iterator
from typing import Final

from nanobanana_pipeline.audit.cross_reference import AuditIndex, NamedPicture
from nanobanana_pipeline.audit.read_ahead import AuditProgress, find_orphans, read_ahead
from nanobanana_pipeline.audit.report import AuditReport, FindingKind
from nanobanana_pipeline.bucket_keys import Folder, image_owner_key
from nanobanana_pipeline.errors import ImageBroken, ObjectTooLarge
from nanobanana_pipeline.images.inspect import MAX_IMAGE_BYTES, inspect
from nanobanana_pipeline.storage import ObjectStore
from nanobanana_pipeline.storage.cas import RESTORE

__all__ = ["list_images", "read_images"]

IMAGE_READERS: Final = 8


def list_images(
    store: ObjectStore, index: AuditIndex, report: AuditReport, on_progress: AuditProgress
) -> None:
    """Compare what is stored with what entries name, once the ledger is in the index."""
    for count, found in enumerate(store.listing(Folder.IMAGES.prefix), 1):
        index.add_object(found)
        on_progress(f"objects under {Folder.IMAGES.prefix}", count)
    for orphan in find_orphans(store, index):
        text = (
            f"no ledger entry names it ({orphan.size:,} bytes): `nanobanana gc --dry-run` "
            "lists it once it is 7 days old"
        )
        report.add(FindingKind.IMAGE_ORPHAN, orphan.key, text)
    heads = read_ahead(lambda p: (p, store.head(p.key)), index.missing())
    for picture, head in heads:
        if head is None:
            report.add(FindingKind.IMAGE_MISSING, picture.key, _missing_text(picture))
    for picture in index.wrongly_named():
        text = (
            f"{_entries(picture)} says that it is {picture.format} with SHA-256 "
            f"{picture.sha256}, which is not its name: {RESTORE}"
        )
        report.add(FindingKind.IMAGE_DIFFERS, picture.key, text)


def read_images(
    store: ObjectStore,
    index: AuditIndex,
    report: AuditReport,
    on_progress: AuditProgress,
    *,
    sample: int | None,
    listed: bool,
) -> None:
    """Read pictures: those whose size is not what an entry says, and a sample of the others.

    `sample` says how many: None all, 0 none. `listed` says whether `list_images` went before.
    """
    report.images = index.count_pictures(stored=listed)
    other_size = index.of_other_size()
    if sample == 0:
        for picture in other_size:
            text = f"it has not the {picture.size:,} bytes that {_entries(picture)} tells of"
            report.add(FindingKind.IMAGE_DIFFERS, picture.key, f"{text}: {RESTORE}")
        return
    for pictures in (other_size, index.sample(sample, listed=listed)):
        read = read_ahead(lambda picture: _check_picture(store, picture), pictures, IMAGE_READERS)
        for picture, faults in read:
            report.images_read += 1
            for kind, text in faults:
                report.add(kind, picture.key, text)
            on_progress("pictures", report.images_read)


def _check_picture(
    store: ObjectStore, picture: NamedPicture
) -> tuple[NamedPicture, list[tuple[FindingKind, str]]]:
    key = store.prefix + picture.key
    try:
        found = store.read_object(store.bucket, key, MAX_IMAGE_BYTES)
    except ObjectTooLarge as error:
        return picture, [(FindingKind.IMAGE_DAMAGED, f"{error}: {RESTORE}")]
    if found is None:
        return picture, [(FindingKind.IMAGE_MISSING, _missing_text(picture))]
    sha256 = hashlib.sha256(found.body).hexdigest()
    if sha256 != picture.sha256:
        text = f"its bytes have the SHA-256 {sha256}, which is not its name: {RESTORE}"
        return picture, [(FindingKind.IMAGE_DAMAGED, text)]
    faults = [(FindingKind.IMAGE_DIFFERS, text) for text in _differences(picture, found.body)]
    for owner in picture.owners:
        mark = image_owner_key(sha256, owner)
        if found.metadata.get("request-key") != owner and store.head(mark) is None:
            text = (
                f"entry {owner} names it too, and nothing beside the picture says so: put an "
                f"empty object at {mark}, so that it outlives its first owner"
            )
            faults.append((FindingKind.IMAGE_UNOWNED, text))
    return picture, faults


def _entries(picture: NamedPicture) -> str:
    more = len(picture.owners) - 1
    return f"entry {picture.owners[0]}" + (f" (and {more:,} more)" if more else "")


def _missing_text(picture: NamedPicture) -> str:
    return f"{_entries(picture)} names it, and it is not there: {RESTORE}. It was paid for"


def _differences(picture: NamedPicture, body: bytes) -> Iterator[str]:
    """How right bytes are not what the entry says of them."""
    try:
        facts = inspect(body)
    except ImageBroken as error:
        yield f"its bytes have the right SHA-256, and are no good picture: {error}"
        return
    told = (picture.size, picture.format, picture.width, picture.height)
    found = (len(body), facts.format, facts.width, facts.height)
    if told != found:
        yield (
            f"{_entries(picture)} tells of {_text(*told)}, and the bytes are {_text(*found)}: "
            "restore the entry from a backup or from the bucket's versions"
        )


def _text(size: int, kind: str, width: int, height: int) -> str:
    return f"{size:,} bytes of {kind}, {width}×{height}"
