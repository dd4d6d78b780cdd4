"""`trace` finds where an image comes from, and what was made from a prompt or by a run.

The index leads to the request; ledger entries, run plans and prompt set snapshots have the details.
For an image that is not indexed yet, its object's metadata name the request; for a run, its own
partition's manifest has the rows.
"""

import hashlib
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import pyarrow.compute as pc

from nanobanana_pipeline.bucket_keys import Folder, image_key, ledger_key, run_plan_key
from nanobanana_pipeline.datasets.release import MANIFEST, read_release, read_release_arrow
from nanobanana_pipeline.errors import TraceError
from nanobanana_pipeline.images.inspect import CONTENT_TYPES, MAX_IMAGE_BYTES
from nanobanana_pipeline.ledger import Ledger
from nanobanana_pipeline.lineage.trace.graph import LineageGraph
from nanobanana_pipeline.lineage.trace.index_reader import LookupOrder, TraceIndex, open_index
from nanobanana_pipeline.lineage.trace.walk import Walk, run_rows
from nanobanana_pipeline.storage import ObjectStore
from nanobanana_pipeline.wording import counted

__all__ = ["trace"]

_HASH: Final = re.compile(r"[0-9a-f]{64}")
_IMAGE: Final = re.compile(rf"{Folder.IMAGES}/[0-9a-f]{{2}}/([0-9a-f]{{64}})\.\w+")
_RELEASED: Final = re.compile(r"([A-Za-z0-9][\w.-]*)/(v[0-9]+)/([0-9]{9})")
_RUN: Final = re.compile(r"[\w.-]+")
_BEGINNING: Final = re.compile(r"[0-9a-f][0-9a-f-]{5,62}")

MAX_LISTED: Final = 10
"""An error lists so many of the names that match a prefix."""


def trace(store: ObjectStore, query: str) -> LineageGraph:
    """Find all that something was made from, up to its prompt set, and all made from it.

    Writes nothing.

    Args:
        store: the bucket.
        query: an image's file, SHA-256, ``s3://`` address or place in a release
            (``animals/v2/000000012``); a prompt's id, a run's, a request key, or the provider's id
            of a request. A unique prefix of a run's id, a request key or a SHA-256 is enough, from
            6 characters on.

    Raises:
        TraceError: nothing is known of it, and the text says what was looked for, and where; or
            several things begin so, and the text says which.
    """
    what, sha256 = _image(store, query)
    index = open_index(store)
    walk = Walk(store, index)
    if sha256 is not None:
        if not _find_image(store, walk, sha256):
            raise TraceError(_unknown_image(store, index, what, sha256))
    elif not _find_name(store, walk, what):
        whole = _complete_prefix(store, what)
        if whole is None or not _find_name(store, walk, whole):
            raise TraceError(_unknown_name(store, index, what))
    return walk.graph(query)


def _image(store: ObjectStore, query: str) -> tuple[str, str | None]:
    """The normalized query, and its SHA-256 if it certainly is an image."""
    if query.startswith("s3://"):
        ours = _IMAGE.fullmatch(query.removeprefix(store.uri("")))
        return query, ours[1] if ours else _hash_of_object(store, query)
    path = Path(query)
    try:
        if path.is_file():
            with path.open("rb") as file:
                return query, hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise TraceError(f"{query} cannot be read: {error.strerror}") from error
    released = _RELEASED.fullmatch(query)
    if released:
        return query, _hash_in_release(store, *released.groups())
    if path.suffix.lower().removeprefix(".") in {*CONTENT_TYPES, "jpeg"}:
        raise TraceError(f"there is no file {query}")
    return query.lower() if _HASH.fullmatch(query.lower()) else query, None


def _hash_of_object(store: ObjectStore, uri: str) -> str:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    image = store.read_object(bucket, key, MAX_IMAGE_BYTES) if bucket and key else None
    if image is None:
        raise TraceError(f"there is no object {uri}")
    return hashlib.sha256(image.body).hexdigest()


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
    """Add an image, by its object's metadata if it is not indexed; False if it is unknown."""
    requests = {row["request_key"] for row in walk.index.find(LookupOrder.IMAGE, [sha256])}
    if not requests:
        requests = set(_owners(store, sha256))
    if not requests and not walk.index.find(LookupOrder.RELEASE, [sha256]):
        return False
    walk.add_image(sha256, requests)
    return True


def _owners(store: ObjectStore, sha256: str) -> Iterable[str]:
    """Request keys that the image's object names in its metadata."""
    keys = [image_key(sha256, extension) for extension in CONTENT_TYPES]
    with ThreadPoolExecutor(len(keys)) as pool:
        for metadata in pool.map(store.head, keys):
            owner = (metadata or {}).get("request-key", "")
            if _HASH.fullmatch(owner):
                yield owner


def _find_name(store: ObjectStore, walk: Walk, name: str) -> bool:
    """Add everything that has this name, since several objects may; False if nothing has it."""
    cells = walk.index.find(LookupOrder.PROMPT, [name])
    walk.add_prompts(cells)
    requests = {row["request_key"] for row in walk.index.find(LookupOrder.PROVIDER, [name])}
    walk.add_requests(requests)
    is_known = bool(cells or requests)
    if _RUN.fullmatch(name) and store.head(run_plan_key(name)) is not None:
        walk.add_run(name, run_rows(store, name))
        is_known = True
    if _HASH.fullmatch(name):
        if Ledger(store).read(name) is not None or walk.index.find(LookupOrder.REQUEST, [name]):
            walk.add_requests({name})
            is_known = True
        is_known |= _find_image(store, walk, name)
    return is_known


def _complete_prefix(store: ObjectStore, prefix: str) -> str | None:
    """The one name with this prefix; None if there is none.

    Lists only keys with the prefix.

    Raises:
        TraceError: several names have it.
    """
    beginning = prefix.lower().rstrip("….")
    if not _BEGINNING.fullmatch(beginning):
        return None
    places = {
        "request": ledger_key(beginning).removesuffix(".json"),
        "picture": image_key(beginning, "").removesuffix("."),
        "run": run_plan_key(beginning).removesuffix("/plan.json"),
    }
    with ThreadPoolExecutor(len(places)) as pool:
        listed = pool.map(lambda prefix: list(store.keys(prefix)), places.values())
        names = {
            f"{kind} {name}": name
            for kind, keys in zip(places, listed, strict=True)
            for name in (_name_of(kind, key) for key in keys)
        }
    if len(names) > 1:
        named = ", ".join(list(names)[:MAX_LISTED])
        more = f", and {len(names) - MAX_LISTED:,} more" if len(names) > MAX_LISTED else ""
        raise TraceError(
            f"{counted(len(names), 'thing')} begin with {beginning}: {named}{more}. Give more of it"
        )
    return next(iter(names.values()), None)


def _name_of(kind: str, key: str) -> str:
    """The name in a key below ``ledger/``, ``images/`` or ``runs/``."""
    return key.split("/")[1 if kind == "run" else 2].partition(".")[0]


def _covers(store: ObjectStore, index: TraceIndex) -> str:
    """The tables that were looked through, with the warning of a stale index."""
    text = (
        f"the manifests of {counted(len(index.tables.partitions), 'partition')} and "
        f"{counted(len(index.tables.releases), 'release')} in {store.uri('')}"
    )
    return f"{text}; {index.stale_text}" if index.stale else text


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
