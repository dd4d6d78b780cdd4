"""Makes a frozen bucket: ``python -m tests.stored.freeze ARCHIVE [FILE...]``; see README.md."""

import io
import json
import sys
import tarfile
from pathlib import Path
from urllib.parse import urlsplit

import requests
from typer.testing import CliRunner

from nanobanana_pipeline.cli import app
from nanobanana_pipeline.settings import Settings
from nanobanana_pipeline.storage import ObjectStore, s3_client
from tests.stored.frozen import kind_of


def freeze(archive: Path, named: list[Path]) -> None:
    """Write everything below the settings' prefix into an archive, and the files that are named."""
    settings = Settings.load()
    store = ObjectStore(s3_client(), str(settings.bucket), settings.prefix)
    files = {path.name: path.read_bytes() for path in named}
    files["status.json"] = CliRunner().invoke(app, ["status", "--json"]).stdout.encode()
    root = urlsplit(str(settings.base_url))._replace(path="/admin/purchases").geturl()
    files["purchases.json"] = requests.get(root, timeout=60).content
    index = []
    for key in store.keys(""):
        kind_of(key)
        found = store.client.get_object(Bucket=store.bucket, Key=store.prefix + key)
        files[f"objects/{key}"] = found["Body"].read()
        index.append(
            {
                "key": key,
                "content_type": found["ContentType"],
                "metadata": found["Metadata"],
                "size": found["ContentLength"],
            }
        )
    files["index.jsonl"] = "".join(f"{json.dumps(each)}\n" for each in index).encode()
    with tarfile.open(archive, "w:gz") as written:
        for name, body in sorted(files.items()):
            member = tarfile.TarInfo(name)
            member.size = len(body)
            written.addfile(member, io.BytesIO(body))


if __name__ == "__main__":
    freeze(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]])
