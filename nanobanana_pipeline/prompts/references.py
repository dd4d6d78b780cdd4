"""Reads the reference images that a table names: each once; checks, hashes and stores them.

A cell of the column ``ref_image`` holds one name or a JSON list of names. A name is an https URL,
an ``s3://bucket/key`` or a path; paths are relative to the table, on S3 too.
"""

import hashlib
import json
import posixpath
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, NamedTuple

import tenacity

from nanobanana_pipeline.bucket_keys import reference_key
from nanobanana_pipeline.errors import (
    DownloadError,
    DownloadRefused,
    ImageBroken,
    ImageGone,
    StorageError,
    StorageUnavailable,
)
from nanobanana_pipeline.images.inspect import CONTENT_TYPES, MAX_IMAGE_BYTES, inspect
from nanobanana_pipeline.prompts.readers.base import bounded_value
from nanobanana_pipeline.provider.downloads import Downloader, public_url
from nanobanana_pipeline.request import MAX_REFERENCES
from nanobanana_pipeline.storage import ObjectStore
from nanobanana_pipeline.storage.cas import put_if_absent

__all__ = ["References", "without_secrets"]

REFERENCE_READERS: Final = 8
"""Pictures in memory at once, each of `MAX_IMAGE_BYTES` at most."""
DOWNLOADS: Final = 3
"""Times that an address is asked whose trouble may pass."""
S3_SCHEME: Final = "s3://"

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_USER = re.compile(r"(?<=://)[^\s/?#\"]*@")
_QUERY = re.compile(r"(https?://[^\s?#\"]*)[?#][^\"]*", re.IGNORECASE)


class ResolvedReference(NamedTuple):
    """The content of one reference, or of a cell of several.

    Attributes:
        sha256: of the bytes; in a cell of several, in their order, joined by one space. None where
            there is no reference, or a fault.
        width, height: pixels of the (first) picture.
        fault: why it cannot be read; None if it can.
    """

    sha256: str | None = None
    width: int | None = None
    height: int | None = None
    fault: str | None = None


class References:
    """Reads the references of prompt tables.

    Those with an https URL come by the downloader's rules, those on S3 with the store's
    credentials. With `keep` each is stored under its hash too.
    """

    def __init__(self, downloader: Downloader, store: ObjectStore, *, keep: bool) -> None:
        self._downloader = downloader
        self._store = store
        self._keep = keep

    def resolve(self, source: str, cells: Sequence[str]) -> list[ResolvedReference]:
        """Read what these cells name; equal names only once, several at a time.

        Relative names start from `source`, the path or URL of the table; the cell ``[]`` names
        nothing.

        Raises:
            StorageUnavailable: S3 gave no answer, so nothing is known of what lies there.
            StorageError: the bucket refuses to keep one.
        """
        parsed = [_parsed(cell, source) for cell in cells]
        places = list(dict.fromkeys(place for named in parsed for place in named.places))
        readers = ThreadPoolExecutor(REFERENCE_READERS)
        try:
            found = dict(zip(places, readers.map(self._read, places), strict=True))
        finally:
            readers.shutdown(cancel_futures=True)
        return [_joined(named, found) for named in parsed]

    def _read(self, place: str) -> ResolvedReference:
        try:
            data = self._bytes(place)
        except StorageUnavailable:
            raise
        except (DownloadError, StorageError, _UnreadableError) as error:
            return ResolvedReference(fault=str(error))
        except OSError as error:
            return ResolvedReference(fault=f"{bounded_value(place)}: {error.strerror or error}")
        try:
            facts = inspect(data)
        except ImageBroken as error:
            shown = public_url(place) if _is_web(place) else bounded_value(place)
            # Without the bytes that it quotes: a file may be anything, somebody's password too.
            return ResolvedReference(fault=f"{shown}: {str(error).partition('; it starts')[0]}")
        digest = hashlib.sha256(data)
        sha256 = digest.hexdigest()
        if self._keep:
            put_if_absent(
                self._store,
                reference_key(sha256),
                data,
                content_type=CONTENT_TYPES[facts.format],
                sha256=digest.digest(),
            )
        return ResolvedReference(sha256, facts.width, facts.height)

    def _bytes(self, place: str) -> bytes:
        if _is_web(place):
            return self._download(place)
        if place.startswith(S3_SCHEME):
            bucket, _, key = place.removeprefix(S3_SCHEME).partition("/")
            found = self._store.read_object(bucket, key, MAX_IMAGE_BYTES)
            if found is None:
                raise _UnreadableError(f"{bounded_value(place)} does not exist: check the URL")
            return found.body
        path = Path(place)
        if not path.is_file():  # a pipe or a device may never end
            raise _UnreadableError(f"{bounded_value(place)} is no file: check the path")
        with path.open("rb") as file:
            data = file.read(MAX_IMAGE_BYTES + 1)
        if len(data) > MAX_IMAGE_BYTES:
            what = f"has more than {MAX_IMAGE_BYTES:,} bytes"
            raise _UnreadableError(f"{bounded_value(place)} {what}")
        return data

    @tenacity.retry(
        retry=tenacity.retry_if_exception_type(DownloadError)
        & tenacity.retry_if_not_exception_type((DownloadRefused, ImageGone, ImageBroken)),
        wait=tenacity.wait_exponential_jitter(multiplier=0.3, max=5),
        stop=tenacity.stop_after_attempt(DOWNLOADS),
        reraise=True,
    )
    def _download(self, url: str) -> bytes:
        return self._downloader.download(url)


def without_secrets(cell: str) -> str:
    """A cell fit for people to see: the query of a URL may hold a signature."""
    return _QUERY.sub(r"\1?…", _USER.sub("", cell))


class _UnreadableError(Exception):
    """A reference cannot be read; the text says which, and why."""


class _Named(NamedTuple):
    """A parsed cell: where its references lie, or its fault."""

    places: tuple[str, ...] = ()
    fault: str | None = None


def _parsed(cell: str, source: str) -> _Named:
    names: list[object] = [cell]
    if cell.lstrip().startswith("["):
        try:
            names = json.loads(cell)
        except (ValueError, RecursionError):
            return _Named(fault='is not a JSON list of references: write ["a.png", "b.png"]')
    if len(names) > MAX_REFERENCES:
        return _Named(
            fault=f"names {len(names)} references, and a request has at most {MAX_REFERENCES}"
        )
    try:
        return _Named(tuple(_place(name, source) for name in names))
    except _UnreadableError as error:
        return _Named(fault=str(error))


def _place(name: object, source: str) -> str:
    """Where a reference lies: an http(s) or s3 URL, or a path from the working directory."""
    if not isinstance(name, str):
        raise _UnreadableError("holds something that is no text: name each reference in quotes")
    name = name.strip()
    if not name:
        raise _UnreadableError("holds a blank name: leave the cell empty for no reference")
    scheme, separator, rest = name.partition("://")
    if separator and _SCHEME.match(name):
        scheme = scheme.lower()
        if scheme not in {"http", "https", "s3"}:
            raise _UnreadableError(f"{scheme}:// is not read: use https, s3 or a file")
        return f"{scheme}://{rest}"
    if name.lower().startswith("data:"):
        raise _UnreadableError("holds a picture itself: name the file or URL that has it")
    if not source.startswith(S3_SCHEME):
        return str(Path(source).parent / name)
    if name.startswith("/"):
        raise _UnreadableError(
            "names a file of this machine, and the table lies on S3: name it relative to the "
            "table, or by its URL"
        )
    bucket, _, key = source.removeprefix(S3_SCHEME).partition("/")
    key = posixpath.normpath(posixpath.join(posixpath.dirname(key), name))
    if key.startswith("../") or key == "..":
        raise _UnreadableError("leads out of the table's bucket: name it by its URL")
    return f"{S3_SCHEME}{bucket}/{key}"


def _joined(named: _Named, found: Mapping[str, ResolvedReference]) -> ResolvedReference:
    pictures = [found[place] for place in named.places]
    faults = dict.fromkeys(picture.fault for picture in pictures if picture.fault)
    fault = named.fault or "; ".join(faults) or None
    if fault or not pictures:
        return ResolvedReference(fault=fault)
    hashes = " ".join(str(picture.sha256) for picture in pictures)
    return pictures[0]._replace(sha256=hashes)


def _is_web(place: str) -> bool:
    return place.startswith(("http://", "https://"))
