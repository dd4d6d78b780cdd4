"""Hosts of one machine: network namespaces on a bridge, and relays to servers on loopback."""

import asyncio
import contextlib
import shutil
import subprocess
import threading
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

__all__ = ["Hosts", "hosts_apart", "relay"]


@dataclass(frozen=True)
class Hosts:
    """Where commands run, and where they find servers.

    Attributes:
        address: of the servers, as each host knows it.
        begin: what a command begins with on each host.
        why_together: why they are no hosts of their own but processes of one; None if they are.
    """

    address: str
    begin: Sequence[Sequence[str]]
    why_together: str | None = None


@contextlib.contextmanager
def hosts_apart(count: int) -> Iterator[Hosts]:
    """Network namespaces that reach this machine by a bridge, and neither loopback nor the world.

    Where they are not permitted, the hosts are this machine.
    """
    tag = uuid.uuid4().hex[:6]
    bridge, names = f"nb{tag}", [f"nb{tag}-{number}" for number in range(count)]
    network = f"198.18.{int(tag[:2], 16)}"  # set apart for tests of networks: RFC 2544
    try:
        try:
            _ip(f"link add {bridge} type bridge")
            _ip(f"addr add {network}.1/24 dev {bridge}")
            _ip(f"link set {bridge} up")
            for number, name in enumerate(names):
                _ip(f"netns add {name}")
                _ip(f"link add {bridge}{number} type veth peer name eth0 netns {name}")
                _ip(f"link set {bridge}{number} master {bridge} up")
                _ip(f"-n {name} addr add {network}.{number + 10}/24 dev eth0")
                _ip(f"-n {name} link set eth0 up")
                _ip(f"-n {name} link set lo up")
        except subprocess.CalledProcessError as error:
            refused = f"{' '.join(error.cmd)}: {error.stderr.strip()}"
            yield Hosts("127.0.0.1", [[] for _ in names], refused)
        else:
            ip = shutil.which("ip") or "ip"
            yield Hosts(f"{network}.1", [[ip, "netns", "exec", name] for name in names])
    finally:
        for name in names:
            _ip(f"netns del {name}", check=False)
        _ip(f"link del {bridge}", check=False)


def _ip(words: str, *, check: bool = True) -> None:
    subprocess.run(["ip", *words.split()], check=check, capture_output=True, text=True)


@contextlib.contextmanager
def relay(address: str, port: int) -> Iterator[int]:
    """Pass connections on to a port of loopback; gives the port at the address."""

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.CancelledError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            writer.close()
            return
        await asyncio.gather(pump(reader, there[1]), pump(there[0], writer))

    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_server(serve, address, 0))
    thread = threading.Thread(target=loop.run_forever, name=f"relay-{port}", daemon=True)
    thread.start()
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.run_until_complete(_end(server))
        loop.close()


async def _end(server: asyncio.Server) -> None:
    server.close()
    under_way = asyncio.all_tasks() - {asyncio.current_task()}
    for task in under_way:
        task.cancel()
    await asyncio.gather(*under_way, return_exceptions=True)
