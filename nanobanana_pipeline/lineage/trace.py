"""Where a picture comes from, and what became of a prompt or a run.

The index leads to the request; the ledger, the run's plan and the prompt set's snapshot tell the
rest. What the index does not know is looked for at the image itself, whose metadata name its
request, and in the manifest of the run's own partition.
"""

import hashlib
import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import pyarrow.compute as pc

from nanobanana_pipeline.bucket_keys import Folder, image_key, ledger_key, run_plan_key
from nanobanana_pipeline.datasets.release import MANIFEST, read_release, read_release_arrow
from nanobanana_pipeline.errors import TraceError
from nanobanana_pipeline.images.inspect import CONTENT_TYPES, MAX_IMAGE_BYTES
from nanobanana_pipeline.ledger import Ledger
from nanobanana_pipeline.lineage.graphs import Lineage
from nanobanana_pipeline.lineage.index import TraceIndex, open_index
from nanobanana_pipeline.lineage.rows import Order
from nanobanana_pipeline.lineage.walk import Walk, run_rows
from nanobanana_pipeline.storage import ObjectStore
from nanobanana_pipeline.wording import counted

__all__ = ["trace"]

_HASH: Final = re.compile(r"[0-9a-f]{64}")
_IMAGE: Final = re.compile(rf"{Folder.IMAGES}/[0-9a-f]{{2}}/([0-9a-f]{{64}})\.\w+")
_RELEASED: Final = re.compile(r"([A-Za-z0-9][\w.-]*)/(v[0-9]+)/([0-9]{9})")
_RUN: Final = re.compile(r"[\w.-]+")
_BEGINNING: Final = re.compile(r"[0-9a-f][0-9a-f-]{5,62}")

MATCHES_NAMED: Final = 10
"""So many are named of those that begin alike."""

Find = Callable[[], bool]


def trace(store: ObjectStore, asked: str) -> Lineage:
    """Find all that is known of something, up to its prompt table and down to releases.

    Writes nothing.

    Args:
        store: the bucket.
        asked: a picture's file, whatever it is called; its SHA-256; an ``s3://`` address of it;
            its place in a release (``animals/v2/000000012``); a prompt's id, a run's, a request
            key, or the provider's id of a request. Of a run's id, a request key and a SHA-256 the
            first 6 characters or more are enough where nothing else begins with them.

    Raises:
        TraceError: nothing is known of it, and the text says what was looked for, and where; or
            several things begin so, and the text says which.
        StorageError: S3 refuses, or an object is damaged.
    """
    what, sha256 = _picture(store, asked)
    index = open_index(store)
    walk = Walk(store, index)
    if sha256 is not None:
        if not _find_image(store, walk, sha256):
            raise TraceError(_unknown_image(store, index, what, sha256))
    elif not _find_name(store, walk, what):
        whole = _completed(store, what)
        if whole is None or not _find_name(store, walk, whole):
            raise TraceError(_unknown_name(store, index, what))
    return walk.lineage(asked)


def _picture(store: ObjectStore, asked: str) -> tuple[str, str | None]:
    """What was asked for, and its SHA-256 if it surely is a picture."""
    if asked.startswith("s3://"):
        ours = _IMAGE.fullmatch(asked.removeprefix(store.uri("")))
        return asked, ours[1] if ours else _hash_of_object(store, asked)
    path = Path(asked)
    try:
        if path.is_file():
            with path.open("rb") as file:
                return asked, hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise TraceError(f"{asked} cannot be read: {error.strerror}") from error
    released = _RELEASED.fullmatch(asked)
    if released:
        return asked, _hash_in_release(store, *released.groups())
    if path.suffix.lower().removeprefix(".") in {*CONTENT_TYPES, "jpeg"}:
        raise TraceError(f"there is no file {asked}")
    return asked.lower() if _HASH.fullmatch(asked.lower()) else asked, None


def _hash_of_object(store: ObjectStore, uri: str) -> str:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    found = store.read_object(bucket, key, MAX_IMAGE_BYTES) if bucket and key else None
    if found is None:
        raise TraceError(f"there is no object {uri}")
    return hashlib.sha256(found.body).hexdigest()


def _hash_in_release(store: ObjectStore, dataset: str, version: str, key: str) -> str:
    release = read_release(store, dataset, version)
    rows = read_release_arrow(store, release, MANIFEST, ["key", "image_sha256"])
    at = pc.index(rows["key"], key).as_py()
    if at < 0:
        raise TraceError(
            f"{dataset} {version} has {counted(len(rows), 'row')}, and none with key {key}"
        )
    return str(rows["image_sha256"][at])


def _find_image(store: ObjectStore, walk: Walk, sha256: str) -> bool:
    """Whether a picture is known; its metadata are read where the index does not know it."""
    requests = {row["request_key"] for row in walk.index.find(Order.IMAGE, [sha256])}
    if not requests:
        requests = set(_owners(store, sha256))
    if not requests and not walk.index.find(Order.RELEASE, [sha256]):
        return False
    walk.add_image(sha256, requests)
    return True


def _owners(store: ObjectStore, sha256: str) -> Iterable[str]:
    """Request keys that the picture's own metadata name."""
    keys = [image_key(sha256, extension) for extension in CONTENT_TYPES]
    with ThreadPoolExecutor(len(keys)) as pool:
        for metadata in pool.map(store.head, keys):
            owner = (metadata or {}).get("request-key", "")
            if _HASH.fullmatch(owner):
                yield owner


def _find_name(store: ObjectStore, walk: Walk, name: str) -> bool:
    """Whether anything is known by a name; all things are that are."""
    finds: list[Find] = [
        lambda: _find_prompts(walk, name),
        lambda: _find_provider_id(walk, name),
    ]
    if _RUN.fullmatch(name):
        finds.append(lambda: _find_run(store, walk, name))
    if _HASH.fullmatch(name):
        finds.append(lambda: _find_request(store, walk, name))
        finds.append(lambda: _find_image(store, walk, name))
    # One after the other would stop at the first: a name may be that of several things.
    return any([find() for find in finds])  # noqa: C419


def _find_prompts(walk: Walk, prompt_id: str) -> bool:
    cells = walk.index.find(Order.PROMPT, [prompt_id])
    walk.add_prompts(cells)
    return bool(cells)


def _find_provider_id(walk: Walk, provider_id: str) -> bool:
    keys = {row["request_key"] for row in walk.index.find(Order.PROVIDER, [provider_id])}
    walk.add_requests(keys)
    return bool(keys)


def _find_request(store: ObjectStore, walk: Walk, request_key: str) -> bool:
    known = Ledger(store).read(request_key) is not None
    if known or walk.index.find(Order.REQUEST, [request_key]):
        walk.add_requests({request_key})
        return True
    return False


def _find_run(store: ObjectStore, walk: Walk, run_id: str) -> bool:
    if store.head(run_plan_key(run_id)) is None:
        return False
    walk.add_run(run_id, run_rows(store, run_id))
    return True


def _completed(store: ObjectStore, asked: str) -> str | None:
    """The one name that begins as a shortened one does; None if none does.

    Keys are listed from there on, so that however much there is, only what begins so is read.

    Raises:
        TraceError: several begin so.
    """
    beginning = asked.lower().rstrip("….")
    if not _BEGINNING.fullmatch(beginning):
        return None
    places = {
        "request": ledger_key(beginning).removesuffix(".json"),
        "picture": image_key(beginning, "").removesuffix("."),
        "run": run_plan_key(beginning).removesuffix("/plan.json"),
    }
    with ThreadPoolExecutor(len(places)) as pool:
        listed = pool.map(lambda prefix: list(store.keys(prefix)), places.values())
        found = {
            f"{kind} {name}": name
            for kind, keys in zip(places, listed, strict=True)
            for name in (_name_of(kind, key) for key in keys)
        }
    if len(found) > 1:
        named = ", ".join(list(found)[:MATCHES_NAMED])
        more = f", and {len(found) - MATCHES_NAMED:,} more" if len(found) > MATCHES_NAMED else ""
        raise TraceError(
            f"{counted(len(found), 'thing')} begin with {beginning}: {named}{more}. Give more of it"
        )
    return next(iter(found.values()), None)


def _name_of(kind: str, key: str) -> str:
    """What a key below ``ledger/``, ``images/`` or ``runs/`` is of."""
    return key.split("/")[1 if kind == "run" else 2].partition(".")[0]


def _covers(store: ObjectStore, index: TraceIndex) -> str:
    """What the index covers, and what to do where that is not all."""
    releases = sum(len(dataset.releases) for dataset in index.in_force.datasets.values())
    told = (
        f"the manifests of {counted(len(index.in_force.partitions), 'partition')} and "
        f"{counted(releases, 'release')} in {store.uri('')}"
    )
    return f"{told}; {behind}" if (behind := index.behind_text) else told


def _unknown_image(store: ObjectStore, index: TraceIndex, what: str, sha256: str) -> str:
    named = f"{what} has SHA-256 {sha256}, and nothing" if what != sha256 else f"nothing of {what}"
    key = image_key(sha256, "*")
    return (
        f"{named} is known: it is not in {_covers(store, index)}, and not stored as "
        f"{store.uri(key)}. A picture that was saved again, resized or stripped of its metadata "
        "has another hash: trace the original, or its place in a release (NAME/VERSION/KEY)"
    )


def _unknown_name(store: ObjectStore, index: TraceIndex, name: str) -> str:
    places = f"no prompt id and no provider id in {_covers(store, index)}"
    run = f"no run ({store.uri(run_plan_key(name))})"
    if _HASH.fullmatch(name):
        key = image_key(name, "*")
        also = f"no picture ({store.uri(key)}), no request ({store.uri(ledger_key(name))})"
        return f"nothing is known of {name}: it is {also}, {run}, {places}"
    return f"nothing is known of {name!r}: it is no file here, {run}, and {places}"
