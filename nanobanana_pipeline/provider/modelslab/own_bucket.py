"""The customer's own bucket: where the provider writes pictures, and which URLs stand for them.

`delivery.json` in the bucket says it for every worker; it holds no credentials.
"""

import posixpath
from collections.abc import Callable
from typing import Final, Self
from urllib.parse import unquote, urlsplit

from pydantic import BaseModel, ConfigDict, Field, model_validator

from nanobanana_pipeline.bucket_keys import FILES, Folder, delivery_key
from nanobanana_pipeline.errors import SettingsError
from nanobanana_pipeline.storage import ObjectStore, StoredObject
from nanobanana_pipeline.storage.cas import parse_json, swap

__all__ = [
    "OwnBucket",
    "Place",
    "Places",
    "change_places",
    "check_apart",
    "read_places",
]

SCHEMA: Final = 1
DEFAULT_PORTS: Final = {"https": 443, "http": 80}


class Place(BaseModel):
    """A folder on S3 that the provider writes into, or has written into.

    Attributes:
        public_url: what the provider joins file names to in its answers.
        uri: the same folder as ``s3://bucket/folder``, as our own credentials find it.
        since: when the provider was told of it (UTC, ISO 8601).
        until: when it was told of another, or of none; None while it writes there.
    """

    model_config = ConfigDict(frozen=True)

    public_url: str
    uri: str
    since: str
    until: str | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        """Refuse addresses under which no picture could ever be found."""
        known = _parts_of(self.public_url)
        if known is None or urlsplit(self.public_url).query or urlsplit(self.public_url).fragment:
            # Not quoted: it may hold a password.
            raise ValueError(
                "the public URL is no http(s) URL of a folder: it needs a host, and no user, "
                "password, ?, # or .."
            )
        bucket, folder = self.bucket_and_folder
        if not self.uri.startswith("s3://") or not bucket or _clean(folder) is None:
            raise ValueError(f"{self.uri!r} is not s3://bucket/folder")
        return self

    @property
    def bucket_and_folder(self) -> tuple[str, str]:
        """The bucket's name, and the folder in it without slashes around."""
        bucket, _, folder = self.uri.removeprefix("s3://").partition("/")
        return bucket, folder.strip("/")

    def key_of(self, url: str) -> str | None:
        """The key of the object that a URL below `public_url` stands for; None for any other."""
        folder, found = _parts_of(self.public_url), _parts_of(url)
        if folder is None or found is None or folder[0] != found[0]:
            return None
        depth = len(folder[1])
        if found[1][:depth] != folder[1] or len(found[1]) == depth:
            return None
        own = self.bucket_and_folder[1]
        return "/".join([*([own] if own else []), *found[1][depth:]])


class Places(BaseModel):
    """What `delivery.json` holds: every place there was, the newest first."""

    model_config = ConfigDict(frozen=True)

    schema_version: int = Field(SCHEMA, alias="schema")
    places: tuple[Place, ...] = ()

    def add(self, place: Place) -> "Places":
        """Put a place first; the provider writes into one at a time, so the others are past."""
        past = self.end(place.since).places
        rest = (each for each in past if each.public_url != place.public_url)
        return self.model_copy(update={"places": (place, *rest)})

    def end(self, when: str) -> "Places":
        """The provider writes into none of them any more; what lies there is still found."""
        ended = (p.model_copy(update={"until": p.until or when}) for p in self.places)
        return self.model_copy(update={"places": tuple(ended)})

    def locate(self, url: str) -> tuple[str, str] | None:
        """Bucket and key of the object that an output URL stands for; None if it is not ours."""
        for place in self.places:
            key = place.key_of(url)
            if key is not None:
                return place.bucket_and_folder[0], key
        return None


class OwnBucket:
    """Tells output URLs that are objects of the customer. Safe to share between threads.

    Reads `delivery.json` of our own bucket on first use.
    """

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._places: Places | None = None

    def locate(self, url: str) -> tuple[str, str] | None:
        """Bucket and key of the object that an output URL stands for; None if it is not ours.

        Raises:
            StorageError: `delivery.json` is damaged or newer than this version.
        """
        places = self._places
        if places is None:
            places, _ = read_places(self._store)
            self._places = places
        return places.locate(url)

    def look_again(self) -> None:
        """Read `delivery.json` anew on next use: the provider may have been told meanwhile."""
        self._places = None


def read_places(store: ObjectStore) -> tuple[Places, str | None]:
    """The places as they are now, and the ETag of `delivery.json`; None if there is none.

    Raises:
        StorageError: it is damaged or was written by a newer version.
    """
    found = store.get(delivery_key())
    return _parsed(store, found), found.etag if found else None


def change_places(store: ObjectStore, change: Callable[[Places], Places]) -> tuple[Places, Places]:
    """Change `delivery.json` by compare-and-swap; returns the places before and after.

    `change` may be called again, on newer places. Nothing is written if they stay the same.

    Raises:
        StorageError: S3 refuses, or the file is damaged.
    """
    return swap(
        store,
        delivery_key(),
        lambda found: _parsed(store, found),
        change,
        lambda places: places.model_dump_json(by_alias=True, indent=1).encode(),
    )


def check_apart(store: ObjectStore, bucket: str, folder: str) -> None:
    """Make sure that strangers' objects do not lie among our own.

    Below our prefix only new top-level folders are free. Names are compared without regard to
    case, repeated slashes and percent-encoding: what the provider makes of those is unknown.

    Args:
        store: ours.
        bucket: that the provider writes into.
        folder: in that bucket, as the provider is told.

    Raises:
        SettingsError: the folder holds, or is part of, what this project keeps.
    """
    if bucket != store.bucket:
        return
    ours = _parts_of_path(store.prefix)
    theirs = _parts_of_path(folder)
    holds_ours = ours[: len(theirs)] == theirs
    if not holds_ours and (
        theirs[: len(ours)] != ours or theirs[len(ours)] not in {*Folder, *FILES}
    ):
        return
    raise SettingsError(
        f"s3://{bucket}/{folder} holds what this project keeps in {store.uri('')}: a key that "
        "writes there could change it, and a rule that deletes old deliveries would delete it. "
        "Choose another --directory, such as deliveries"
    )


def _parsed(store: ObjectStore, found: StoredObject | None) -> Places:
    if found is None:
        return Places()
    where = store.uri(delivery_key())
    return parse_json(found.body, where, Places.model_validate_json, SCHEMA)


def _parts_of(url: str) -> tuple[tuple[str, str, int | None], list[str]] | None:
    """Scheme, host and port, and the path's decoded parts; None if it is no address for us.

    Slashes may come twice, where a folder and a name were joined naively.
    """
    try:
        parts = urlsplit(url)
        scheme, host = parts.scheme.lower(), (parts.hostname or "").lower()
        port = parts.port or DEFAULT_PORTS.get(scheme)
        path = _clean(unquote(parts.path, errors="strict"))
    except ValueError:
        return None
    if scheme not in DEFAULT_PORTS or not host or "@" in parts.netloc or path is None:
        return None
    return (scheme, host, port), path


def _parts_of_path(path: str) -> list[str]:
    """A path's parts in their plainest spelling: decoded, in lower case, without ``..``."""
    while (decoded := unquote(path)) != path:
        path = decoded
    parts = posixpath.normpath(f"/{path.casefold()}").split("/")
    return [part.strip() for part in parts if part.strip()]


def _clean(path: str) -> list[str] | None:
    """A path's parts without empty ones; None where it tries to leave its folder."""
    parts = [part for part in path.split("/") if part]
    if any(part in {".", ".."} or not part.isprintable() for part in parts):
        return None
    return parts
