"""Getting an image from the URL that the provider named, which is a stranger's word.

Only https, or http to hosts allowed by configuration; no private, loopback or link-local address
unless allowed, checked on the address that is really connected to, after every redirect too.
Where the named URL itself breaks a rule, settings can mend it; a server that leads astray or sends
too much has given a broken image.
"""

import ipaddress
import re
from collections.abc import Iterable
from typing import Final
from urllib.parse import urljoin, urlsplit

from nanobanana_pipeline.errors import DownloadError, DownloadRefused, ImageBroken, ImageGone
from nanobanana_pipeline.images.inspect import MAX_IMAGE_BYTES
from nanobanana_pipeline.provider.http import Answer, Http, NoAnswer, NotSentError, TooLarge

__all__ = ["Downloader", "is_url", "public_url"]

DOWNLOAD_SECONDS: Final = 120.0
MAX_REDIRECTS: Final = 5
OK: Final = 200
REDIRECTS = frozenset({301, 302, 303, 307, 308})
GONE_STATUSES = frozenset({403, 404, 410})
IPV4_AT_THE_END = (ipaddress.IPv6Network("64:ff9b::/96"), ipaddress.IPv6Network("::/96"))
"""IPv6 addresses that stand for an IPv4 address: NAT64, and the old compatible ones."""
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def is_url(output: str) -> bool:
    """Whether an output names a place, rather than being the picture itself."""
    return _URL.match(output.strip()) is not None


class Downloader:
    """Downloads output URLs. Safe to share between threads.

    Args:
        allowed_hosts: host names that may be plain http, private or loopback.
        connections: the most sockets that are kept open.
        deadline_seconds: for one request.
    """

    def __init__(
        self,
        allowed_hosts: Iterable[str] = (),
        *,
        connections: int = 32,
        deadline_seconds: float = DOWNLOAD_SECONDS,
    ) -> None:
        self._deadline_seconds = deadline_seconds
        self._allowed = frozenset(host.lower() for host in allowed_hosts)
        # Without proxies: behind one, the address that is connected to says nothing.
        self._http = Http(connections, guard=self._check_address, proxies=False)

    def download(self, url: str) -> bytes:
        """The bytes behind a URL, as they are.

        Raises:
            DownloadRefused: the URL itself must not be followed.
            ImageGone: the server answers 403, 404 or 410.
            ImageBroken: no bytes, more than an image may have, redirects without end, or one to
                where no URL may lead.
            DownloadError: anything else that keeps the bytes away; may pass.
        """
        place = url
        for redirects in range(MAX_REDIRECTS + 1):
            try:
                answer = self._get(place)
            except DownloadRefused as error:
                if not redirects:
                    raise
                # Without its advice: nobody should allow what a stranger's redirect leads to.
                why = str(error).partition("; allow it")[0]
                raise ImageBroken(f"{public_url(url)}: redirects astray: {why}") from error
            if answer.status in REDIRECTS and "Location" in answer.headers:
                place = _redirected(place, answer.headers["Location"])
                continue
            if answer.status in GONE_STATUSES:
                raise ImageGone(f"{public_url(place)}: HTTP {answer.status}")
            if answer.status != OK:
                raise DownloadError(f"{public_url(place)}: HTTP {answer.status}")
            if not answer.body:
                raise ImageBroken(f"{public_url(place)}: no bytes")
            return answer.body
        raise ImageBroken(f"{public_url(url)}: more than {MAX_REDIRECTS} redirects")

    def _get(self, url: str) -> Answer:
        self._check_url(url)
        try:
            return self._http.call(
                "GET", url, deadline_seconds=self._deadline_seconds, max_bytes=MAX_IMAGE_BYTES
            )
        except TooLarge as error:
            raise ImageBroken(f"{public_url(url)}: {error}") from error
        except (NotSentError, NoAnswer) as error:
            raise DownloadError(f"{public_url(url)}: {_without_query(str(error), url)}") from None

    def _check_url(self, url: str) -> None:
        try:
            parts = urlsplit(url)
            host = (parts.hostname or "").lower()
        except ValueError as error:
            raise DownloadRefused(f"not a URL: {error}") from error
        if not host or parts.scheme not in {"http", "https"}:
            raise DownloadRefused(f"{public_url(url)}: not an https URL")
        if parts.scheme == "http" and host not in self._allowed:
            raise DownloadRefused(
                f"{public_url(url)}: plain http; allow it with NANOBANANA_ALLOWED_HOSTS={host}"
            )

    def _check_address(self, host: str, address: str) -> None:
        if host.lower().strip("[]") in self._allowed:
            return
        if not _is_public(address):
            raise DownloadRefused(
                f"{host} is at {address}, which is not a public address; allow it with "
                f"NANOBANANA_ALLOWED_HOSTS={host}"
            )


def _is_public(address: str) -> bool:
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        within = ip.ipv4_mapped or ip.sixtofour
        if any(ip in network for network in IPV4_AT_THE_END):
            within = ipaddress.IPv4Address(int(ip) & 0xFFFF_FFFF)
        ip = within or ip
    return ip.is_global and not ip.is_multicast


def _redirected(url: str, location: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError as error:
        raise ImageBroken(f"{public_url(url)}: redirects to no URL: {error}") from None


def public_url(url: str) -> str:
    """The URL without query, fragment and user: they may hold a signature or a password."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "a malformed URL"
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"[:300]


def _without_query(text: str, url: str) -> str:
    """An error's text, should it quote the URL."""
    text = text.replace(url, public_url(url))
    for secret in (urlsplit(url).query, urlsplit(url).netloc.rpartition("@")[0]):
        text = text.replace(secret, "…") if secret else text
    return text
