"""Getting an image from the URL that the provider named, which is a stranger's word.

Only https, or http to hosts allowed by configuration; no private, loopback or link-local address
unless allowed, checked on the address that is really connected to, after every redirect too.
"""

import ipaddress
from collections.abc import Iterable
from typing import Final
from urllib.parse import urljoin, urlsplit

from nanobanana_pipeline.errors import DownloadError, DownloadRefused, ImageBroken, ImageGone
from nanobanana_pipeline.images import MAX_IMAGE_BYTES
from nanobanana_pipeline.provider.http import Http, NoAnswer, NotSentError

__all__ = ["Downloader"]

DOWNLOAD_SECONDS: Final = 120.0
MAX_REDIRECTS: Final = 5
OK: Final = 200
REDIRECTS = frozenset({301, 302, 303, 307, 308})
GONE_STATUSES = frozenset({403, 404, 410})


class Downloader:
    """Downloads output URLs. Safe to share between threads.

    Args:
        allowed_hosts: host names that may be plain http, private or loopback.
        connections: the most sockets that are kept open.
    """

    def __init__(self, allowed_hosts: Iterable[str] = (), *, connections: int = 32) -> None:
        self._allowed = frozenset(host.lower() for host in allowed_hosts)
        # Without proxies: behind one, the address that is connected to says nothing.
        self._http = Http(connections, guard=self._check_address, proxies=False)

    def download(self, url: str) -> bytes:
        """The bytes behind a URL, as they are.

        Raises:
            DownloadRefused: the URL, or one that it redirects to, must not be followed.
            ImageGone: the server answers 403, 404 or 410.
            ImageBroken: the answer has no bytes.
            DownloadError: anything else that keeps the bytes away; may pass.
        """
        for _ in range(MAX_REDIRECTS + 1):
            self._check_url(url)
            try:
                answer = self._http.call(
                    "GET",
                    url,
                    deadline_seconds=DOWNLOAD_SECONDS,
                    max_bytes=MAX_IMAGE_BYTES,
                )
            except (NotSentError, NoAnswer) as error:
                raise DownloadError(f"{_public(url)}: {error}") from error
            if answer.status in REDIRECTS and "Location" in answer.headers:
                url = urljoin(url, answer.headers["Location"])
                continue
            if answer.status in GONE_STATUSES:
                raise ImageGone(f"{_public(url)}: HTTP {answer.status}")
            if answer.status != OK:
                raise DownloadError(f"{_public(url)}: HTTP {answer.status}")
            if not answer.body:
                raise ImageBroken(f"{_public(url)}: no bytes")
            return answer.body
        raise DownloadRefused(f"{_public(url)}: more than {MAX_REDIRECTS} redirects")

    def _check_url(self, url: str) -> None:
        try:
            parts = urlsplit(url)
            host = (parts.hostname or "").lower()
        except ValueError as error:
            raise DownloadRefused(f"not a URL: {error}") from error
        if not host or parts.scheme not in {"http", "https"}:
            raise DownloadRefused(f"{_public(url)}: not an https URL")
        if parts.scheme == "http" and host not in self._allowed:
            raise DownloadRefused(
                f"{_public(url)}: plain http; allow it with NANOBANANA_ALLOWED_HOSTS={host}"
            )

    def _check_address(self, host: str, address: str) -> None:
        if host.lower().strip("[]") in self._allowed:
            return
        ip = ipaddress.ip_address(address.partition("%")[0])
        if not (getattr(ip, "ipv4_mapped", None) or ip).is_global:
            raise DownloadRefused(
                f"{host} is at {address}, which is not a public address; allow it with "
                f"NANOBANANA_ALLOWED_HOSTS={host}"
            )


def _public(url: str) -> str:
    """The URL without query and user: they may hold a signature or a password."""
    return url.partition("?")[0].rpartition("@")[2][:300]
