"""The exchange: sent once or surely not sent, over by its deadline, bounded in size."""

import contextlib
import socket
import threading
import time
import traceback
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nanobanana_pipeline.provider.http import Answer, Http, NoAnswer, NotSentError, TooLarge
from tests.provider.servers import (
    Handler,
    Server,
    always,
    answer,
    certificate,
    closing,
    closing_kept_connections,
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

BODY = b'{"key": "k", "prompt": "a cat"}'
OK = answer({"status": "success"})


def post(
    http: Http,
    url: str,
    *,
    deadline_seconds: float = 5.0,
    max_bytes: int = 10_000,
    fresh: bool = False,
) -> Answer:
    return http.call(
        "POST",
        url,
        body=BODY,
        deadline_seconds=deadline_seconds,
        max_bytes=max_bytes,
        fresh=fresh,
    )


@pytest.mark.parametrize("handle", [closing, once(b"HTTP/1.1 20"), once(b"\x16\x03\x01 garbage")])
def test_a_post_whose_answer_is_lost_was_sent_once_and_is_not_called_unsent(
    handle: Handler,
) -> None:
    with serving(handle) as server, pytest.raises(NoAnswer):
        post(Http(4), server.url)
    assert len(server.requests) == 1
    assert server.connections == 1


def test_a_post_on_a_connection_that_dies_under_it_is_not_sent_again() -> None:
    def first_well_then_dead(server: Server, peer: socket.socket) -> None:
        server.read(peer)
        peer.sendall(OK)
        server.read(peer)

    http = Http(4)
    with serving(first_well_then_dead) as server:
        assert post(http, server.url).status == 200
        with pytest.raises(NoAnswer):
            post(http, server.url)
    assert (server.connections, len(server.requests)) == (1, 2)


def test_a_connection_closed_unread_counts_as_sent() -> None:
    with serving(slamming) as server, pytest.raises(NoAnswer):
        post(Http(4), server.url)
    assert server.connections == 1


def test_a_fresh_call_meets_no_connection_that_the_server_closes_under_it() -> None:
    http = Http(4)
    with serving(closing_kept_connections(OK)) as server:
        assert post(http, server.url).status == 200
        with pytest.raises(NoAnswer):
            post(http, server.url)
        for _ in range(20):
            assert post(http, server.url, fresh=True).status == 200
    assert (server.connections, len(server.requests)) == (21, 21)


def test_a_fresh_call_leaves_its_connection_to_others() -> None:
    http = Http(4)
    with serving(always(OK)) as server:
        for fresh in (True, False, False, True, False):
            post(http, server.url, fresh=fresh)
    assert (server.connections, len(server.requests)) == (2, 5)


def test_a_refused_connection_sent_nothing() -> None:
    with pytest.raises(NotSentError, match="refused"):
        post(Http(4), f"http://127.0.0.1:{free_port()}/")


@pytest.mark.parametrize(
    "url",
    [
        "http://no-such-host.invalid/",
        "http://a..b/",
        "http://127.0.0.1:99999/",
        "nothing",
        "http://[bad/",
        "ftp://127.0.0.1/",
        "http://\ud800.example/",
    ],
)
def test_an_address_that_leads_nowhere_sent_nothing(url: str) -> None:
    with pytest.raises(NotSentError):
        post(Http(4), url)


def test_tls_that_fails_sent_nothing(tmp_path: Path) -> None:
    context, _ = certificate(tmp_path)
    with serving(always(OK), context) as server, pytest.raises(NotSentError, match="CERTIFICATE"):
        post(Http(4), server.url)
    assert server.requests == []


def test_connections_are_reused() -> None:
    http = Http(4)
    with serving(always(OK)) as server:
        for _ in range(5):
            post(http, server.url)
    assert (server.connections, len(server.requests)) == (1, 5)


def test_a_post_never_goes_out_on_a_connection_idle_over_two_seconds() -> None:
    http = Http(4)
    with serving(always(OK)) as server:
        post(http, server.url)
        time.sleep(2.1)
        post(http, server.url)
    assert (server.connections, len(server.requests)) == (2, 2)


def test_a_connection_that_the_server_closed_meanwhile_is_not_used() -> None:
    http = Http(4)
    with serving(once(OK)) as server:
        for _ in range(5):
            assert post(http, server.url).status == 200
            time.sleep(0.5)  # the end of the connection arrives
    assert (server.connections, len(server.requests)) == (5, 5)


@pytest.mark.parametrize(
    "handle",
    [silent, mute, dribbling(OK), dribbling(answer(b"x" * 100), 0.05), dribbling(b"HTTP/1.1")],
    ids=["silent", "mute", "dribbles", "dribbles the body", "dribbles the status line"],
)
def test_the_deadline_holds_against_servers_that_are_never_late_for_a_socket(
    handle: Handler,
) -> None:
    with serving(handle) as server, within(1.3), pytest.raises(NoAnswer, match=r"within 0\.5 s"):
        post(Http(4), server.url, deadline_seconds=0.5)


def test_the_deadline_holds_against_a_body_that_dribbles_after_its_headers() -> None:
    def handle(server: Server, peer: socket.socket) -> None:
        server.read(peer)
        peer.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while not server.stopping.wait(0.1):
            peer.sendall(b"1\r\nx\r\n")

    with serving(handle) as server, within(1.3), pytest.raises(NoAnswer, match=r"within 0\.5 s"):
        post(Http(4), server.url, deadline_seconds=0.5)


def test_the_deadline_holds_against_a_body_that_dribbles_over_tls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, trusted = certificate(tmp_path)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(trusted))
    with (
        serving(dribbling(OK, 0.1), context) as server,
        within(1.3),
        pytest.raises(NoAnswer, match=r"within 0\.5 s"),
    ):
        post(Http(4), server.url, deadline_seconds=0.5)
    assert len(server.requests) == 1


def test_a_tls_handshake_that_never_ends_sent_nothing_and_meets_the_deadline() -> None:
    with serving(mute) as server, within(1.3), pytest.raises(NotSentError):
        post(Http(4), f"https://127.0.0.1:{server.port}/", deadline_seconds=0.5)


def test_a_tls_handshake_that_dribbles_sent_nothing_and_meets_the_deadline() -> None:
    def handle(server: Server, peer: socket.socket) -> None:
        peer.sendall(b"\x16\x03\x03\x40\x00")
        while not server.stopping.wait(0.1):
            peer.sendall(b"\x02")

    with serving(handle) as server, within(1.3), pytest.raises(NotSentError):
        post(Http(4), f"https://127.0.0.1:{server.port}/", deadline_seconds=0.5)


def test_a_connection_that_is_never_accepted_sent_nothing_and_meets_the_deadline() -> None:
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        port = full.getsockname()[1]
        for _ in range(4):  # the queue of the kernel is full now, and further SYNs are dropped
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)  # noqa: FBT003 - the socket's own signature
            waiting.connect_ex(("127.0.0.1", port))
        with within(1.3), pytest.raises(NotSentError):
            post(Http(4), f"http://127.0.0.1:{port}/", deadline_seconds=0.5)


def test_a_deadline_that_cuts_one_exchange_leaves_the_others_alone() -> None:
    def handle(server: Server, peer: socket.socket) -> None:
        while (request := server.read(peer)) is not None:
            if b"/slow" in request.partition(b"\r\n")[0]:
                server.stopping.wait(20)
            peer.sendall(OK)

    http = Http(32)

    def call(number: int) -> str:
        slow = number % 4 == 0
        try:
            post(
                http,
                f"{server.url}/{'slow' if slow else 'fast'}",
                deadline_seconds=2 if slow else 10,
            )
        except NoAnswer:
            return "cut" if slow else "wrongly cut"
        return "wrongly served" if slow else "served"

    with serving(handle) as server, ThreadPoolExecutor(12) as pool:
        assert Counter(pool.map(call, range(48))) == {"cut": 12, "served": 36}


def test_threads_that_share_connections_get_their_own_answers() -> None:
    def echo(server: Server, peer: socket.socket) -> None:
        while (request := server.read(peer)) is not None:
            peer.sendall(answer(request.split(b" ", 2)[1]))

    http = Http(8)

    def call(number: int) -> bool:
        return post(http, f"{server.url}/{number}").body == f"/{number}".encode()

    with serving(echo) as server, ThreadPoolExecutor(20) as pool:
        assert all(pool.map(call, range(400)))
    assert len(server.requests) == 400


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "307 Temporary", "308 Permanent"])
def test_a_redirect_is_an_answer_and_leads_nowhere(status: str) -> None:
    with serving(always(OK)) as other:
        moved = answer(b"moved", status, {"Location": f"{other.url}/elsewhere"})
        with serving(always(moved)) as server:
            assert post(Http(4), server.url).body == b"moved"
    assert (len(server.requests), len(other.requests)) == (1, 0)


@pytest.mark.parametrize("location", ["http://[", "\xff\xfe", "http://\x80", "//", "javascript:1"])
def test_a_redirect_to_nonsense_is_an_answer_too(location: str) -> None:
    with serving(once(answer(b"moved", "302 Found", {"Location": location}))) as server:
        assert post(Http(4), server.url).status == 302


def test_a_redirect_cannot_bring_more_bytes_than_allowed() -> None:
    bomb = answer(gzip_bomb(50), "302 Found", {"Location": "/again", "Content-Encoding": "gzip"})
    with serving(once(bomb)) as server, pytest.raises(TooLarge):
        post(Http(4), server.url)


@pytest.mark.parametrize(
    "data",
    [answer(b"x" * 10_001), answer(gzip_bomb(50), headers={"Content-Encoding": "gzip"})],
    ids=["plain", "gzip bomb"],
)
def test_more_bytes_than_allowed_are_not_read(data: bytes) -> None:
    with serving(once(data)) as server, within(2), pytest.raises(TooLarge, match="10,000"):
        post(Http(4), server.url)


def test_a_body_shorter_than_announced_is_no_answer() -> None:
    with (
        serving(once(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")) as server,
        pytest.raises(NoAnswer),
    ):
        post(Http(4), server.url)


def test_cookies_are_not_kept() -> None:
    http = Http(4)
    with serving(always(answer(b"", headers={"Set-Cookie": "a=b; Path=/"}))) as server:
        post(http, server.url)
        post(http, server.url)
    assert b"cookie" not in server.requests[1].lower()


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.one_of(
        st.binary(max_size=200),
        st.builds(
            lambda status, headers, body: (
                b"HTTP/1.1 " + status + b"\r\n" + b"\r\n".join(headers) + b"\r\n\r\n" + body
            ),
            st.sampled_from([b"200 OK", b"301 x", b"204 No", b"999", b"-1 x", b"abc", b"100 C"]),
            st.lists(
                st.sampled_from(
                    [
                        b"Content-Length: 5",
                        b"Content-Length: 5, 7",
                        b"Content-Length: -1",
                        b"Content-Length: abc",
                        b"Transfer-Encoding: chunked",
                        b"Content-Encoding: gzip",
                        b"Content-Encoding: gzip, gzip, deflate, br, zstd, gzip, gzip",
                        b"Location: http://[",
                        b"Location: \xff",
                        b"Set-Cookie: \xff=;;;=; expires=never",
                        b": nameless",
                        b"no colon",
                        b" folded",
                        b"Connection: close",
                    ]
                ),
                max_size=4,
            ),
            st.binary(max_size=60),
        ),
    )
)
def test_whatever_a_server_answers_the_call_gives_an_answer_or_says_there_is_none(
    data: bytes,
) -> None:
    with serving(once(data)) as server:
        http = Http(1)
        with contextlib.suppress(NoAnswer):
            assert isinstance(post(http, server.url, deadline_seconds=2), Answer)
    assert len(server.requests) == 1


def test_an_error_quotes_no_query() -> None:
    with serving(closing) as server:
        for url in (f"{server.url}/?sig=s3cret", f"http://127.0.0.1:{free_port()}/?sig=s3cret"):
            try:
                post(Http(4), url)
            except (NoAnswer, NotSentError) as error:
                assert "s3cret" not in "".join(traceback.format_exception(error))  # noqa: PT017
            else:
                pytest.fail("that was no answer")


# --- behind a proxy ------------------------------------------------------------------------------


@pytest.fixture
def proxied(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    return monkeypatch


@pytest.mark.parametrize("handle", [closing, silent])
def test_what_a_proxy_swallowed_may_have_been_sent(
    handle: Handler, proxied: pytest.MonkeyPatch
) -> None:
    with serving(handle) as proxy:
        proxied.setenv("http_proxy", proxy.url)
        with within(2), pytest.raises(NoAnswer):
            post(Http(4), "http://provider.invalid/text2img", deadline_seconds=0.5)
    assert len(proxy.requests) == 1


def test_a_proxy_that_is_not_there_sent_nothing(proxied: pytest.MonkeyPatch) -> None:
    proxied.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(NotSentError):
        post(Http(4), "http://provider.invalid/text2img")


def test_a_socks_proxy_is_refused_and_not_passed_by(proxied: pytest.MonkeyPatch) -> None:
    with serving(always(OK)) as server:
        proxied.setenv("http_proxy", "socks5://127.0.0.1:1")
        with pytest.raises(NotSentError, match="SOCKS"):
            post(Http(4), server.url)
    assert server.connections == 0


def test_a_new_connection_through_a_proxy_builds_its_tunnel_again(
    tmp_path: Path, proxied: pytest.MonkeyPatch
) -> None:
    def tunnel(server: Server, peer: socket.socket) -> None:
        server.read(peer)
        with socket.create_connection(("127.0.0.1", provider.port)) as onward:
            peer.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            back = threading.Thread(target=relay, args=(onward, peer), daemon=True)
            back.start()
            relay(peer, onward)

    def relay(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    context, trusted = certificate(tmp_path)
    proxied.setenv("REQUESTS_CA_BUNDLE", str(trusted))
    http = Http(4)
    with serving(always(OK), context) as provider, serving(tunnel) as proxy:
        proxied.setenv("https_proxy", proxy.url)
        assert post(http, provider.url).status == 200
        assert post(http, provider.url).status == 200
        time.sleep(2.1)
        assert post(http, provider.url).status == 200
    assert [request[:8] for request in proxy.requests] == [b"CONNECT "] * 2
    assert (provider.connections, len(provider.requests)) == (2, 3)
