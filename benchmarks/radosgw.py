"""Ceph's S3 gateway with one monitor and one OSD in memory, on loopback.

Wants Debian's packages radosgw, ceph-mon, ceph-mgr, ceph-osd and ceph-common.
"""

import subprocess
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from nanobanana_pipeline import local
from nanobanana_pipeline.local.processes import answers
from nanobanana_pipeline.storage import s3_client

__all__ = ["radosgw"]

CONFIG: Final = """
[global]
fsid = {fsid}
mon host = v2:127.0.0.1:{port}
public addr = 127.0.0.1
auth cluster required = none
auth service required = none
auth client required = none
ms mon client mode = crc
ms mon cluster mode = crc
ms mon service mode = crc
run dir = {folder}
log file = {folder}/$name.log
mon data = {folder}/mon
mgr data = {folder}/mgr
osd data = {folder}/osd
keyring = {folder}/keyring
osd objectstore = memstore
osd pool default size = 1
osd pool default pg num = 8
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
"""


@contextmanager
def radosgw(folder: Path) -> Iterator[str]:
    """Run it with the local profile's keys and bucket until the block ends; gives its URL."""
    fsid, osd, port = str(uuid.uuid4()), str(uuid.uuid4()), local.free_port()
    for name in ("mon", "mgr", "osd"):
        (folder / name).mkdir(parents=True)
    (folder / "keyring").touch()
    config, monmap = folder / "ceph.conf", str(folder / "monmap")
    config.write_text(CONFIG.format(fsid=fsid, folder=folder, port=port))
    url = f"http://127.0.0.1:{local.free_port()}"

    def run(*command: str) -> None:
        subprocess.run([*command, "-c", config], check=True, capture_output=True, timeout=300)  # noqa: S603

    def start(*command: str, url: str = "") -> None:
        log, full = folder / f"{command[0]}.out", [*command, "-f", "-c", str(config)]
        ready = (lambda: answers(url)) if url else lambda: True
        stack.enter_context(local.child(command[0], full, log=log, ready=ready))

    with ExitStack() as stack:
        address = f"[v2:127.0.0.1:{port}]"
        run("monmaptool", "--create", "--fsid", fsid, "--addv", "a", address, monmap)
        run("ceph-mon", "-i", "a", "--mkfs", "--monmap", monmap)
        start("ceph-mon", "-i", "a")
        start("ceph-mgr", "-i", "x")
        run("ceph", "osd", "create", osd)
        run("ceph-osd", "-i", "0", "--mkfs", "--no-mon-config", "--osd-uuid", osd)
        start("ceph-osd", "-i", "0")
        run("ceph", "osd", "crush", "add", "osd.0", "1", "root=default", "host=localhost")
        start("radosgw", "-n", "client.rgw", f"--rgw-frontends=beast endpoint={url[7:]}", url=url)
        keys = f"--access-key={local.ACCESS_KEY}", f"--secret-key={local.SECRET_KEY}"
        run("radosgw-admin", "user", "create", "--uid=local", "--display-name=local", *keys)
        access = {"aws_access_key_id": local.ACCESS_KEY, "aws_secret_access_key": local.SECRET_KEY}
        s3_client(endpoint_url=url, **access).create_bucket(Bucket=local.BUCKET)
        yield url
