"""What each answer to a generation call makes of its cell, and a further launch of that."""

import base64
import io
import json
import socket

import pytest
from PIL import Image

from nanobanana_pipeline.storage import ObjectStore
from tests.conftest import Emulators, account_for
from tests.launching import bought, check_images, keep_prompts, launch
from tests.provider.servers import Handler, Server, always, answer, closing, serving

RULE = "width must be divisible by 32"
BROKEN = "CUDA out of memory"
POSTS_OF_FAILED = 3


def said(line: str, **fields: object) -> Handler:
    return always(answer(fields, line))


def error(line: str, **fields: object) -> Handler:
    return said(line, **{"status": "error", **fields})


ANSWERS: dict[str, tuple[Handler, str, int, str, str]] = {
    # The answer; the cell, POSTs and words of the reason; the cell after a launch that is answered
    # well.
    "string": (error("400 Bad", message=RULE), "refused", 1, RULE, "refused"),
    "list": (error("400 Bad", errors=[RULE, "and more"]), "refused", 1, RULE, "refused"),
    "map": (error("400 Bad", errors={"width": [RULE]}), "refused", 1, f"width: {RULE}", "refused"),
    "messege": (error("400 Bad", messege=RULE), "refused", 1, RULE, "refused"),
    "map_in_200": (error("200 OK", errors={"width": [RULE]}), "refused", 1, RULE, "refused"),
    "error_in_200": (
        error("200 OK", message=RULE),
        "failed",
        POSTS_OF_FAILED,
        RULE,
        "failed",
    ),
    "failed_in_200": (
        said("200 OK", status="failed", message=BROKEN),
        "failed",
        POSTS_OF_FAILED,
        BROKEN,
        "failed",
    ),
    "401": (error("401 No", message="Invalid API key"), "pending", 1, "API key", "settled"),
    "402": (error("402 Pay", message="Insufficient credits"), "pending", 1, "credits", "settled"),
    "403": (error("403 No", message="plan too small"), "pending", 1, "plan", "settled"),
    "account_in_200": (
        error("200 OK", message="Invalid API key"),
        "pending",
        1,
        "API key",
        "settled",
    ),
    "404": (
        always(answer(b"<html>no page</html>", "404 Not Found")),
        "pending",
        1,
        "NANOBANANA_BASE_URL",
        "settled",
    ),
    "302": (
        always(answer(b"", "302 Found", {"Location": "https://elsewhere.invalid/"})),
        "pending",
        1,
        "NANOBANANA_BASE_URL",
        "settled",
    ),
    "500": (error("500 Oh", message="Server Error"), "in_doubt", 1, "HTTP 500", "in_doubt"),
    "503": (error("503 Oh", message="restarting"), "in_doubt", 1, "HTTP 503", "in_doubt"),
    "nothing": (said("200 OK"), "in_doubt", 1, "neither done", "in_doubt"),
    "nothing_400": (said("400 Bad", queued=True), "in_doubt", 1, "neither done", "in_doubt"),
    "nothing_403": (said("403 No"), "in_doubt", 1, "neither done", "in_doubt"),
    "html": (always(answer(b"<html>hi</html>")), "in_doubt", 1, "no JSON", "in_doubt"),
    "cut_json": (always(answer(b'{"status": "proc')), "in_doubt", 1, "no JSON", "in_doubt"),
    "empty_body": (always(answer(b"")), "in_doubt", 1, "no JSON", "in_doubt"),
    "no_id": (said("200 OK", status="processing"), "in_doubt", 1, "neither done", "in_doubt"),
    "other_word": (said("200 OK", status="queued"), "in_doubt", 1, "neither done", "in_doubt"),
    "lost": (closing, "in_doubt", 1, "RemoteDisconnected", "in_doubt"),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_and_what_the_next_launch_makes_of_it(
    store: ObjectStore, emulators: Emulators, name: str
) -> None:
    handler, state, posts, reason, later = ANSWERS[name]
    keep_prompts(store, "set", ["a fox"])
    with serving(handler) as server:
        made = launch(store, account_for(f"{server.url}/nano_banana/", store, realm="emulator"))
    assert made.states == {state: 1}
    assert reason in made.rows["reason"][0]
    assert len(server.requests) == posts
    emulator = emulators()
    assert launch(store, account_for(emulator.base_url, store)).states == {later: 1}
    assert bought(emulator) == (later == "settled")


def scripted(script: dict[str, dict[str, object]]) -> Handler:
    """Answers each path as the script says, and whatever is not in it with a picture."""

    def handle(server: Server, peer: socket.socket) -> None:
        while (request := server.read(peer)) is not None:
            path = request.split(b" ")[1].decode().rpartition("nano_banana/")[2]
            peer.sendall(answer(script[path] if path in script else drawn()))

    return handle


def drawn() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (1024, 1024), (20, 80, 160)).save(out, "PNG")
    return out.getvalue()


def paths(server: Server) -> list[str]:
    return [request.split(b" ")[1].decode().rpartition("/")[2] for request in server.requests]


def test_links_that_are_promised_are_not_followed(store: ObjectStore) -> None:
    inline = base64.b64encode(drawn()).decode()
    keep_prompts(store, "set", ["a fox"])
    with serving(always(answer(b"too early"))) as trap:
        queued: dict[str, object] = {
            "status": "processing",
            "id": 5,
            "future_links": [f"{trap.url}/early.png"],
            "fetch_result": f"{trap.url}/fetch/5",
        }
        done: dict[str, object] = {"status": "success", "output": [inline]}
        script = {"text2img": queued, "fetch/5": done}
        with serving(scripted(script)) as server:
            made = launch(store, account_for(f"{server.url}/nano_banana/", store, realm="emulator"))
    assert made.states == {"settled": 1}
    assert paths(server) == ["text2img", "5"]
    assert trap.connections == 0


@pytest.mark.parametrize("output", [True, False])
@pytest.mark.parametrize("as_map", [True, False])
def test_proxy_links_are_followed_only_where_there_is_no_output(
    store: ObjectStore, *, output: bool, as_map: bool
) -> None:
    keep_prompts(store, "set", ["a fox"])
    done: dict[str, object] = {"status": "success", "id": 5}
    with serving(scripted({"text2img": done})) as server:
        link = f"{server.url}/proxy.png"
        done["proxy_links"] = {"0": link} if as_map else [link]
        done["output"] = [f"{server.url}/own.png"] if output else ""
        made = launch(store, account_for(f"{server.url}/nano_banana/", store, realm="emulator"))
    assert made.states == {"settled": 1}
    check_images(store, made.rows)
    assert paths(server) == ["text2img", "own.png" if output else "proxy.png"]


def test_more_is_waited_for_where_the_body_names_no_seconds(store: ObjectStore) -> None:
    """A header alone says how long; then the very same request is sent again."""
    answers = [
        answer({"status": "error", "message": "slow down"}, "429 Slow", {"Retry-After": "0.2"}),
        answer({"status": "error"}, "429 Slow", {"X-RateLimit-Reset": "0.2"}),
        answer({"status": "success", "id": 1, "output": [base64.b64encode(drawn()).decode()]}),
    ]

    def handle(server: Server, peer: socket.socket) -> None:
        while server.read(peer) is not None:
            peer.sendall(answers[len(server.requests) - 1])

    keep_prompts(store, "set", ["a fox"])
    with serving(handle) as server:
        made = launch(store, account_for(f"{server.url}/nano_banana/", store, realm="emulator"))
    assert (made.states, made.report.rate_limited) == ({"settled": 1}, 2)
    bodies = [json.loads(each.partition(b"\r\n\r\n")[2]) for each in server.requests]
    assert len({each.pop("track_id").partition(".")[0] for each in bodies}) == 1
    assert bodies[0] == bodies[1] == bodies[2]


def test_an_id_that_the_provider_does_not_know_is_lost_and_looked_for_again(
    store: ObjectStore,
) -> None:
    queued: dict[str, object] = {"status": "processing", "id": 5}
    gone: dict[str, object] = {"status": "failed", "message": "Request not found", "id": ""}
    script = {"text2img": queued, "fetch/5": gone}
    keep_prompts(store, "set", ["a fox"])
    with serving(scripted(script)) as server:
        account = account_for(f"{server.url}/nano_banana/", store, realm="emulator")
        first = launch(store, account)
        assert first.states == {"lost": 1}
        assert paths(server) == ["text2img", "5", "5", "5"]
        script["fetch/5"] = {"status": "success", "output": [f"{server.url}/0.png"]}
        assert launch(store, account).states == {"settled": 1}
    assert paths(server).count("text2img") == 1
