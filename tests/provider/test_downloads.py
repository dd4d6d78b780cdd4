"""Images come from strangers' URLs: only public https, bounded, and told apart when they fail."""

import contextlib
import socket
import traceback

import pytest
from pydantic import SecretStr

from nanobanana_pipeline.errors import DownloadError, DownloadRefused, ImageBroken, ImageGone
from nanobanana_pipeline.images.inspect import MAX_IMAGE_BYTES, inspect
from nanobanana_pipeline.provider import downloads
from nanobanana_pipeline.provider.downloads import Downloader
from nanobanana_pipeline.provider.modelslab.client import ModelsLab
from nanobanana_pipeline.provider.modelslab.request import ModelsLabRequest
from tests.conftest import API_KEY, Emulators
from tests.provider.servers import (
    Handler,
    always,
    answer,
    closing,
    dribbling,
    free_port,
    gzip_bomb,
    mute,
    once,
    serving,
    silent,
    slamming,
    within,
)

LOCAL = ("127.0.0.1",)
SECRET = "X-Amz-Signature=5ec8e7"


def exactly(kind: type[DownloadError]) -> pytest.RaisesExc[DownloadError]:
    """The class itself: its subclasses mean something else to the caller."""
    return pytest.RaisesExc(DownloadError, check=lambda error: type(error) is kind)


def test_an_image_comes_as_it_is(emulators: Emulators) -> None:
    emulator = emulators(mode="sync")
    done = ModelsLab(emulator.base_url, SecretStr(API_KEY)).submit(
        ModelsLabRequest(prompt="a cat", seed=1, width=1024, height=1024)
    )
    data = Downloader(LOCAL).download(done.output[0])  # type: ignore[union-attr]
    assert inspect(data, width=1024, height=1024).format == "png"


def test_an_allowed_host_may_be_plain_http_and_loopback() -> None:
    with serving(always(answer(b"\x00\xffbytes"))) as server:
        assert Downloader(LOCAL).download(f"{server.url}/0-a.png") == b"\x00\xffbytes"
        port = server.port
        assert Downloader(["LocalHost"]).download(f"http://LOCALHOST:{port}/") == b"\x00\xffbytes"


@pytest.mark.parametrize(
    "url",
    [
        "ftp://cdn.example/a.png",
        "file:///etc/passwd",
        "javascript:alert(1)",
        "data:image/png;base64,AAAA",
        "gopher://cdn.example/",
        "//cdn.example/a.png",
        "/a.png",
        "a.png",
        "",
        " ",
        "https://",
        "https:///a.png",
        "http://[bad/a.png",
        "https://[::1/a.png",
        "\ud800",
    ],
)
def test_what_is_no_web_address_is_refused(url: str) -> None:
    with exactly(DownloadRefused):
        Downloader(LOCAL).download(url)


def test_plain_http_is_refused_with_the_way_to_allow_it() -> None:
    with pytest.raises(DownloadRefused, match=r"NANOBANANA_ALLOWED_HOSTS=cdn\.example"):
        Downloader(LOCAL).download("http://cdn.example/a.png")


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "localhost",
        "LOCALHOST",
        "0.0.0.0",  # noqa: S104 - Linux takes it for loopback
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
    ],
)
def test_loopback_is_refused_however_it_is_written(host: str) -> None:
    with serving(always(answer(b"secret"))) as server:
        with exactly(DownloadRefused) as refused:
            Downloader().download(f"https://{host}:{server.port}/a.png")
        assert "not a public address" in str(refused.value)
    assert server.requests == []


@pytest.mark.parametrize("host", ["localhost.", "1\uff127.0.0.1", "127.0.0.1%00.cdn.example"])
def test_odd_names_for_loopback_lead_nowhere(host: str) -> None:
    with serving(always(answer(b"secret"))) as server, pytest.raises(DownloadError):
        Downloader().download(f"https://{host}:{server.port}/a.png")
    assert server.requests == []


def test_ipv6_loopback_is_refused() -> None:
    with contextlib.ExitStack() as stack:
        try:
            listener = stack.enter_context(socket.create_server(("::1", 0), family=socket.AF_INET6))
        except OSError:
            pytest.skip("no IPv6 here")
        with pytest.raises(DownloadRefused, match="not a public address"):
            Downloader().download(f"https://[::1]:{listener.getsockname()[1]}/a.png")


def test_a_name_that_leads_to_loopback_is_refused_even_where_another_host_is_allowed() -> None:
    with (
        serving(always(answer(b"secret"))) as server,
        pytest.raises(DownloadRefused, match="localhost is at"),
    ):
        Downloader(LOCAL).download(f"https://localhost:{server.port}/")
    assert server.requests == []


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1::1", True),
        ("64:ff9b::5db8:d822", True),
        ("10.0.0.1", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("127.0.0.1", False),
        ("0.0.0.0", False),  # noqa: S104 - not bound
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::1", False),
        ("::", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("ff02::1", False),
        ("::ffff:10.0.0.1", False),
        ("::10.0.0.1", False),
        ("64:ff9b::a9fe:a9fe", False),
        ("2002:7f00:1::", False),
    ],
)
def test_public_addresses_are_told_from_others(address: str, public: bool) -> None:  # noqa: FBT001
    assert downloads._is_public(address) is public


# --- redirects -----------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_followed(status: int) -> None:
    with serving(always(answer(b"bytes"))) as end:
        moved = answer(b"", f"{status} M", {"Location": f"{end.url}/b.png"})
        with serving(always(moved)) as start:
            assert Downloader(LOCAL).download(f"{start.url}/a.png") == b"bytes"


@pytest.mark.parametrize(
    "location",
    [
        "http://localhost:{port}/b.png",
        "https://localhost:{port}/b.png",
        "//localhost:{port}/b.png",
        "https://[::ffff:127.0.0.1]:{port}/b.png",
        "file:///etc/passwd",
        "http://[",
        "https://",
    ],
)
def test_a_redirect_is_guarded_like_any_url(location: str) -> None:
    with serving(always(answer(b"secret"))) as inside:
        moved = answer(b"", "302 F", {"Location": location.format(port=inside.port)})
        with serving(always(moved)) as start, exactly(ImageBroken) as failed:
            Downloader(LOCAL).download(f"{start.url}/a.png?{SECRET}")
    assert inside.requests == []
    assert f"{start.url}/a.png: redirects " in str(failed.value)
    assert SECRET not in "".join(traceback.format_exception(failed.value))


def test_the_named_url_is_refused_and_the_same_one_behind_a_redirect_is_broken() -> None:
    """The one is for the settings to mend, the other is the server's doing."""
    with serving(always(answer(b"", "302 F", {"Location": "http://localhost/"}))) as server:
        with exactly(DownloadRefused):
            Downloader(LOCAL).download("http://localhost/")
        with exactly(ImageBroken):
            Downloader(LOCAL).download(server.url)


def test_redirects_without_end_are_refused() -> None:
    with (
        serving(always(answer(b"", "302 F", {"Location": "/again"}))) as server,
        exactly(ImageBroken) as failed,
    ):
        Downloader(LOCAL).download(f"{server.url}/a.png")
    assert "more than 5 redirects" in str(failed.value)
    assert len(server.requests) == 6


def test_a_redirect_to_nowhere_is_an_error() -> None:
    with serving(always(answer(b"", "302 F"))) as server, exactly(DownloadError):
        Downloader(LOCAL).download(server.url)


# --- what goes wrong -----------------------------------------------------------------------------


@pytest.mark.parametrize("status", [403, 404, 410])
def test_an_image_that_is_not_there_is_gone(status: int) -> None:
    page = answer(b"<html>not here</html>", f"{status} X")
    with serving(always(page)) as server, exactly(ImageGone):
        Downloader(LOCAL).download(server.url)


@pytest.mark.parametrize("status", [201, 204, 206, 400, 429, 500, 503])
def test_other_statuses_are_errors_that_may_pass(status: int) -> None:
    with serving(always(answer(b"", f"{status} X"))) as server, exactly(DownloadError):
        Downloader(LOCAL).download(server.url)


def test_no_bytes_are_no_image() -> None:
    with serving(always(answer(b""))) as server, exactly(ImageBroken):
        Downloader(LOCAL).download(server.url)


@pytest.mark.parametrize(
    "handle",
    [
        closing,
        once(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf"),
        once(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhalf"),
        once(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"),
        once(b"garbage"),
        once(answer(b"no gzip", headers={"Content-Encoding": "gzip"})),
    ],
)
def test_an_answer_that_breaks_off_is_an_error_that_may_pass(handle: Handler) -> None:
    with serving(handle) as server, exactly(DownloadError):
        Downloader(LOCAL).download(server.url)


def test_a_server_that_is_not_there_is_an_error_that_may_pass() -> None:
    with exactly(DownloadError):
        Downloader(LOCAL).download(f"http://127.0.0.1:{free_port()}/a.png")


@pytest.mark.parametrize("handle", [silent, mute, dribbling(answer(b"x" * 100), 0.2)])
def test_a_slow_server_is_left_at_the_deadline(handle: Handler) -> None:
    with serving(handle) as server, within(1.5), exactly(DownloadError):
        Downloader(LOCAL, deadline_seconds=0.7).download(server.url)


def test_too_many_bytes_are_no_image() -> None:
    data = answer(bytes(MAX_IMAGE_BYTES + 1))
    with serving(once(data)) as server, exactly(ImageBroken):
        Downloader(LOCAL).download(server.url)


def test_a_gzip_bomb_is_refused_before_it_unfolds() -> None:
    bomb = answer(gzip_bomb(200), headers={"Content-Encoding": "gzip"})
    with serving(once(bomb)) as server, exactly(ImageBroken):
        Downloader(LOCAL).download(server.url)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:{dead}/a.png?{secret}",
        "http://user:{secret}@127.0.0.1:{dead}/a.png",
        "http://127.0.0.1:{dead}/a.png#{secret}",
        "http://127.0.0.1:{port}/a.png?{secret}",
        "https://127.0.0.1:{port}/a.png?{secret}",
        "https://localhost:{port}/a.png?{secret}",
        "https://cdn.invalid/a.png?{secret}",
        "https://a..b/a.png?{secret}",
        "https://exa mple/a.png?{secret}",
        "https://*bad/a.png?{secret}",
        "https://cdn.example:99999/a.png?{secret}",
        "http://[bad/a.png?{secret}",
        "ftp://cdn.example/a.png?{secret}",
    ],
)
def test_no_error_tells_the_signature_of_a_url(url: str) -> None:
    with serving(slamming) as server, pytest.raises(DownloadError) as failed:
        Downloader(LOCAL).download(url.format(secret=SECRET, port=server.port, dead=free_port()))
    assert SECRET not in "".join(traceback.format_exception(failed.value))
