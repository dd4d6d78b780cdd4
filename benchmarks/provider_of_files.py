"""A provider that does nothing but answer at once, with pictures that were drawn beforehand.

``python -m benchmarks.provider_of_files PORT SIDE LEVELS``: each purchase gets a PNG of SIDE²
pixels, one of a few that are held in memory, with its own number behind the end, so that no two
have the same bytes. LEVELS of noise set the bytes of a picture: 1 is flat, 10 about 1.8 a pixel.
It shares the client's processor, but not its process: what the client costs is measured apart.
"""

import contextlib
import io
import itertools
import json
import sys
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import requests
import uvicorn
from PIL import Image

from nanobanana_pipeline import local

__all__ = ["API", "FilesProvider", "files_provider"]

API: Final = "/api/v1/enterprise/nano_banana/"
DIFFERENT: Final = 4
_Scope = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Scope]]
_Send = Callable[[_Scope], Awaitable[None]]


@dataclass(frozen=True)
class FilesProvider:
    """One that runs.

    Attributes:
        root: its address.
    """

    root: str

    @property
    def environment(self) -> dict[str, str]:
        """What this project's commands need to buy there."""
        return {
            "NANOBANANA_API_KEY": local.API_KEY,
            "NANOBANANA_BASE_URL": f"{self.root}{API}",
            "NANOBANANA_BUCKET": local.BUCKET,
            "NANOBANANA_REALM": "emulator",
            "NANOBANANA_ALLOWED_HOSTS": "127.0.0.1",
        }

    def picture(self, number: int) -> str:
        """The address of a picture; each number has other bytes."""
        return f"{self.root}/files/{number}.png"

    def facts(self) -> dict[str, int]:
        """How many were ``bought``, and the ``bytes`` of a picture."""
        found: dict[str, int] = requests.get(f"{self.root}/facts", timeout=60).json()
        return found


@contextlib.contextmanager
def files_provider(data: Path, *, side: int = 1024, levels: int = 1) -> Iterator[FilesProvider]:
    """Run one until the block ends.

    Args:
        data: where its log goes.
        side: pixels.
        levels: of noise.

    Raises:
        LocalServerError: it did not come up.
    """
    port = local.free_port()
    made = FilesProvider(f"http://127.0.0.1:{port}")

    def is_ready() -> bool:
        with contextlib.suppress(requests.RequestException):
            return bool(made.facts())
        return False

    command = [sys.executable, "-m", "benchmarks.provider_of_files", str(port), str(side)]
    with local.child(
        "the provider of files", [*command, str(levels)], log=data / "files.log", ready=is_ready
    ):
        yield made


def _draw(side: int, levels: int, seed: int) -> bytes:
    chance = np.random.default_rng(seed)
    shade = np.linspace(seed, 200, side)[:, None, None]
    pixels = (chance.integers(0, levels, (side, side, 3)) + shade).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG", compress_level=1)
    return out.getvalue()


class _App:
    def __init__(self, root: str, pictures: list[bytes]) -> None:
        self._root = root
        self._pictures = pictures
        self._numbers = itertools.count(1)
        self._bought = 0

    async def __call__(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        if scope["type"] != "http":
            return
        path: str = scope["path"]
        if path.startswith("/files/"):
            number = int(path.removeprefix("/files/").removesuffix(".png"))
            picture = self._pictures[number % len(self._pictures)]
            await _answer(send, "image/png", picture, number.to_bytes(4))
            return
        while (await receive()).get("more_body"):
            pass
        if path == "/facts":
            facts = {"bought": self._bought, "bytes": len(self._pictures[0]) + 4}
            await _answer(send, "application/json", json.dumps(facts).encode())
            return
        number = next(self._numbers)
        self._bought += 1
        bought = {
            "status": "success",
            "id": number,
            "output": [f"{self._root}/files/{number}.png"],
            "meta": {"seed": 1},
        }
        await _answer(send, "application/json", json.dumps(bought).encode())


async def _answer(send: _Send, kind: str, *parts: bytes) -> None:
    length = str(sum(map(len, parts)))
    headers = [(b"content-type", kind.encode()), (b"content-length", length.encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for part in parts:
        await send({"type": "http.response.body", "body": part, "more_body": True})
    await send({"type": "http.response.body"})


if __name__ == "__main__":
    on_port, of_side, of_levels = map(int, sys.argv[1:])
    drawn = [_draw(of_side, of_levels, seed) for seed in range(DIFFERENT)]
    app = _App(f"http://127.0.0.1:{on_port}", drawn)
    uvicorn.run(app, port=on_port, log_level="warning", access_log=False, timeout_keep_alive=60)
