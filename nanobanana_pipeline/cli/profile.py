"""`nanobanana demo` and `nanobanana dev`: the local profile, without account or cloud.

Dagster runs as a child process: the domain and its command line do not import it.
"""

import contextlib
import os
import shlex
import shutil
import subprocess
import sys
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from nanobanana_pipeline.cli.show import partitions_table
from nanobanana_pipeline.cli.status import all_settled
from nanobanana_pipeline.cli.terminal import INCOMPLETE, make_console
from nanobanana_pipeline.errors import LocalServerError
from nanobanana_pipeline.generation.manifest.manifest import (
    CurrentManifest,
    read_current,
    read_manifest,
)
from nanobanana_pipeline.images.contact_sheet import caption, contact_sheet
from nanobanana_pipeline.local import (
    LocalProfile,
    answers,
    check_port,
    child,
    local_profile,
    running_profile,
)
from nanobanana_pipeline.settings import Settings
from nanobanana_pipeline.storage import ObjectStore
from nanobanana_pipeline.storage.bucket import open_bucket

__all__ = ["dagster_home", "demo", "dev", "environment"]

# Not with -m: processes that measure pictures would load that module too, and Dagster with it.
MATERIALIZE = "from dagster_nanobanana.materialize_command import main; raise SystemExit(main())"
SEEDS = (1, 2)
DEMO_SET = "sample"
DEMO_PICTURES = 24
DAGSTER_GRACE_SECONDS = 25
GRPC_TIMEOUT, GRPC_TIMEOUT_SECONDS = "DAGSTER_GRPC_TIMEOUT_SECONDS", "300"
"""A busy laptop's code server answers late; after Dagster's own 60 s the run would be failed."""

Data = Annotated[
    Path,
    typer.Option(help="Where the local servers and Dagster keep everything; goes on from there."),
]


def demo(*, data: Data = Path(".nanobanana")) -> None:
    """Make a small dataset on this machine: real S3 server, emulated provider, real Dagster."""
    console = make_console()
    data = data.resolve()
    with console.status("starting the S3 server and the provider emulator"):
        stack = contextlib.ExitStack()
        profile = stack.enter_context(local_profile(data, emulator=["--latency", "0.5:1.5"]))
    with stack:
        os.environ.update(profile.environment)
        command = [
            *(sys.executable, "-c", MATERIALIZE, DEMO_SET),
            *("--table", str(shipped("prompts/sample.csv"))),
            *(part for seed in SEEDS for part in ("--seed", str(seed))),
            "--onward",
        ]
        environment = {**os.environ, "DAGSTER_HOME": str(dagster_home(data))}
        code = subprocess.run(command, env=environment, check=False).returncode  # noqa: S603
        store = open_bucket(Settings.load())
        found = [read_current(store, DEMO_SET, seed)[0] for seed in SEEDS]
        manifests = [current for current in found if current]
        console.print(partitions_table(manifests, store))
        if manifests:
            sheet = data / "contact_sheet.png"
            sheet.write_bytes(_sheet(store, manifests))
            console.print(f"contact sheet   {sheet}", soft_wrap=True)
        console.print(
            f"kept in         {data}\nopen the UI     {_called()} dev --data {data}",
            soft_wrap=True,
        )
        console.print("stopping the local servers")
    if code or not manifests or not all_settled(manifests):
        raise typer.Exit(code or INCOMPLETE)


def dev(
    *,
    data: Data = Path(".nanobanana"),
    port: Annotated[int, typer.Option(help="Port of the Dagster UI.")] = 3000,
    latency: Annotated[
        str, typer.Option(help="Seconds that the emulated provider takes, shortest:longest.")
    ] = "1:3",
) -> None:
    """Keep the local servers and Dagster's UI up until Ctrl-C."""
    console = make_console()
    check_port(port)
    data = data.resolve()
    home = dagster_home(data)
    with local_profile(data, emulator=["--latency", latency]) as profile:
        url = f"http://127.0.0.1:{port}"
        command = [
            *(sys.executable, "-m", "dagster", "dev", "-w", str(_workspace())),
            *("-h", "127.0.0.1", "-p", str(port)),
        ]
        with child(
            "Dagster",
            command,
            log=data / "dagster.log",
            ready=lambda: answers(f"{url}/server_info"),
            environment={
                GRPC_TIMEOUT: os.environ.get(GRPC_TIMEOUT, GRPC_TIMEOUT_SECONDS),
                **profile.environment,
                "DAGSTER_HOME": str(home),
            },
            grace_seconds=DAGSTER_GRACE_SECONDS,
        ) as process:
            _explain(console, url, data, profile)
            with contextlib.suppress(KeyboardInterrupt):
                raise typer.Exit(process.wait())
            console.print("stopping everything")


def environment(*, data: Data = Path(".nanobanana")) -> None:
    """Print what lets the other commands reach the servers that `dev` runs; for eval in a shell."""
    for name, value in running_profile(data.resolve()).environment.items():
        typer.echo(f"export {name}={shlex.quote(value)}")


def shipped(name: str) -> Path:
    """A file of the project's root: in a wheel it lies beside this package."""
    package = Path(str(files("nanobanana_pipeline")))
    packaged = package / "shipped" / name
    return packaged if packaged.exists() else package.parent / name


def _workspace() -> Path:
    """The workspace file that `dagster_nanobanana` ships; found without importing it."""
    spec = find_spec("dagster_nanobanana")
    if spec is None or spec.origin is None:
        raise LocalServerError("dagster_nanobanana is missing: reinstall nanobanana-pipeline")
    return Path(spec.origin).with_name("workspace.yaml")


def dagster_home(data: Path) -> Path:
    """Dagster's own folder, with the instance settings that this project ships."""
    home = data / "dagster"
    home.mkdir(parents=True, exist_ok=True)
    settings = home / "dagster.yaml"
    if not settings.exists():
        shutil.copy(shipped("dagster.yaml"), settings)
    return home


def _called() -> str:
    """How this command was itself called: by `uv run`, which marks it, or as an installed tool."""
    return "uv run nanobanana" if "UV_RUN_RECURSION_DEPTH" in os.environ else "nanobanana"


def _explain(console: Console, url: str, data: Path, profile: LocalProfile) -> None:
    console.print(f"Dagster's UI       {url}")
    console.print(f"S3 server          {profile.s3_url}")
    console.print(f"provider emulator  {profile.base_url}")
    console.print(f"data and logs      {data}", soft_wrap=True)
    console.print(
        f"Put a table into {Path('prompts').resolve()}/<prompt set>.csv, materialize prompt_set "
        "with that name as its partition, then generated_images with it and a seed. "
        "For the other commands in another terminal: "
        f'eval "$({_called()} environment --data {data})". Ctrl-C ends everything.',
        soft_wrap=True,
    )


def _sheet(store: ObjectStore, manifests: list[CurrentManifest]) -> bytes:
    pictures = []
    for current in manifests:
        rows = read_manifest(store, current.manifest).dropna(subset="image_uri")
        for row in rows.head(DEMO_PICTURES // len(manifests)).itertuples():
            said = caption(str(row.prompt), str(row.prompt_id), current.seed)
            pictures.append((store.open_url(str(row.image_uri)), said))
    return contact_sheet(pictures)
