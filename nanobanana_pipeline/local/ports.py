"""Loopback ports that are free, and stay the same from one start to the next."""

import json
import secrets
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from nanobanana_pipeline.errors import LocalServerError

__all__ = ["check_port", "free_port", "remembered_ports"]

LOWEST_PORT: Final = 12_000
GRPC_OFFSET: Final = 10_000
"""SeaweedFS opens a second port this far above each of its own."""


def check_port(port: int) -> None:
    """Make sure that a port can be listened on.

    Raises:
        LocalServerError: somebody else does.
    """
    if not _is_free(port):
        raise LocalServerError(f"port {port} is in use: choose another with --port")


def free_port() -> int:
    """A loopback port that is free now, and whose neighbour 10,000 above is free too.

    On Linux it is given to no other process of ours while this one lives.
    """
    while True:
        # So that none is the neighbour of another, nor where the system takes its own from.
        port = LOWEST_PORT + secrets.randbelow(GRPC_OFFSET)
        if _is_free(port) and _is_free(port + GRPC_OFFSET) and _is_ours(port):
            return port


def remembered_ports(remembered: Path, names: Sequence[str]) -> dict[str, int]:
    """The ports of the last start if they are all free still, else new ones."""
    if remembered.exists():
        ports: dict[str, int] = json.loads(remembered.read_text())
        if set(ports) == set(names) and all(
            _is_free(port) and _is_free(port + GRPC_OFFSET) for port in ports.values()
        ):
            return ports
    ports = {}
    while len(ports) < len(names):
        port = free_port()
        if port not in ports.values():
            ports[names[len(ports)]] = port
    remembered.parent.mkdir(parents=True, exist_ok=True)
    remembered.write_text(json.dumps(ports))
    return ports


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _is_ours(port: int) -> bool:
    """Whether nobody else of us has chosen a port that he may not listen on yet."""
    if sys.platform != "linux":
        return True
    claim = socket.socket(socket.AF_UNIX)
    try:
        # A name beside the file system: it is free again when this process ends.
        claim.bind(f"\0nanobanana-port-{port}")
    except OSError:
        claim.close()
        return False
    claim.detach()
    return True
