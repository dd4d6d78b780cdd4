"""`nanobanana release`: build datasets, look at what was published, and take it home."""

import uuid
from functools import partial
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

from nanobanana_pipeline.bucket_keys import Folder
from nanobanana_pipeline.cli.show import table_of
from nanobanana_pipeline.cli.terminal import INCOMPLETE, make_console, print_plain
from nanobanana_pipeline.datasets.changelog import changes
from nanobanana_pipeline.datasets.layouts import Layout
from nanobanana_pipeline.datasets.publish import build_release
from nanobanana_pipeline.datasets.pull import pull, verify
from nanobanana_pipeline.datasets.recipe import read_recipe
from nanobanana_pipeline.datasets.release import (
    MANIFEST,
    REJECTED,
    Release,
    all_releases,
    dataset_names,
    find_release,
    read_latest,
    read_release_table,
)
from nanobanana_pipeline.datasets.repair import repair
from nanobanana_pipeline.datasets.selection import empty_splits, released_rows, select
from nanobanana_pipeline.errors import ReleaseError
from nanobanana_pipeline.lineage.openlineage.recorder import record_run
from nanobanana_pipeline.lineage.openlineage.run_facts import release_complete, release_start
from nanobanana_pipeline.settings import Settings
from nanobanana_pipeline.storage import ObjectStore
from nanobanana_pipeline.storage.bucket import open_bucket
from nanobanana_pipeline.wording import counted, shortened, size_text

__all__ = ["release_commands"]

CHANGES_SHOWN = 20
SHOWN_OF_ROWS = ["prompt_id", "seed", "split", "prompt"]

release_commands = typer.Typer(
    no_args_is_help=True, help="Publish datasets, and look at, check and fetch what was published."
)

DatasetName = Annotated[str, typer.Argument(help="The dataset's name, as its recipe says.")]
Version = Annotated[
    str | None, typer.Option(help="Of the release: v1, v2, …", show_default="the latest")
]


@release_commands.command("build")
def build(file: Annotated[Path, typer.Argument(help="The recipe's file.")]) -> None:
    """Publish what a recipe selects now. Goes on where an earlier try was ended; buys nothing."""
    wanted = read_recipe(file)
    store = open_bucket(Settings.load_without_key(), claim=False)
    console = make_console()
    begin = partial(release_start, wanted)
    with record_run(store, f"datasets.{wanted.name}", uuid.uuid4().hex, begin) as recording:
        latest = read_latest(store, wanted.name)
        chosen = select(store, wanted, released_rows(store, latest))
        if chosen.missing:
            console.print(
                f"{counted(chosen.missing, 'picture', 'is')} missing to what "
                f"{wanted.where('per_prompt')} asks for; see nanobanana recipe preview",
            )
        for warning in empty_splits(wanted, chosen.rows):
            print_plain(console, warning, style="yellow")
        release = build_release(
            store, wanted, chosen.rows, chosen.rejected, parent=latest, manifests=chosen.manifests
        )
        recording.set_facts(partial(release_complete, store, wanted, chosen.manifests, release))
    if latest is not None and release.version == latest.version:
        console.print(f"nothing has changed since {release.version}: no release was made")
    console.print(_table([release], store))


@release_commands.command("list")
def list_(
    dataset: Annotated[str | None, typer.Argument(help="Only this dataset's.")] = None,
) -> None:
    """Show every release, the latest of each dataset first."""
    store = open_bucket(Settings.load_without_key(), claim=False)
    names = [dataset] if dataset else dataset_names(store)
    found = [release for name in names for release in all_releases(store, name)]
    console = make_console()
    if found:
        console.print(_table(found, store))
    else:
        console.print(f"no release yet in {store.uri('')}")


@release_commands.command("diff")
def diff(
    dataset: DatasetName,
    old: Annotated[
        str | None, typer.Argument(help="An earlier version.", show_default="its parent")
    ] = None,
    new: Annotated[
        str | None, typer.Argument(help="A later version.", show_default="the latest")
    ] = None,
) -> None:
    """Say which rows came, went or changed between two releases, and why."""
    store = open_bucket(Settings.load_without_key(), claim=False)
    later = find_release(store, dataset, new)
    if old is None and later.parent is None:
        raise ReleaseError(f"{dataset} {later.version} continues no other: name an OLD version")
    earlier = find_release(store, dataset, old or later.parent)
    now, before = (
        read_release_table(store, each, MANIFEST, ["row_id", "row_sha256", *SHOWN_OF_ROWS])
        for each in (later, earlier)
    )
    found = changes(now, before, read_release_table(store, later, REJECTED, ["row_id", "reason"]))
    console = make_console()
    title = f"{dataset}: from {earlier.version} to {later.version}"
    counted = found.groupby(["change", "reason"], sort=True).size().rename("rows").reset_index()
    console.print(table_of(counted, title) if len(found) else f"{title}: the same rows")
    if len(found):
        rows = pd.concat([now, before]).drop_duplicates("row_id").set_index("row_id")
        some = found.head(CHANGES_SHOWN).join(rows[SHOWN_OF_ROWS], on="row_id")
        some["prompt"] = some["prompt"].map(shortened)
        some["row_id"] = some["row_id"].str[:12]
        console.print(table_of(some, "some of them"))


@release_commands.command("verify")
def verify_(
    dataset: DatasetName,
    *,
    version: Version = None,
    mend_: Annotated[
        bool, typer.Option("--mend", help="Make damaged shards again from their pictures.")
    ] = False,
) -> None:
    """Read every file of a release again, and compare it with what was published.

    Exits with 1 if one is damaged or missing, and was not mended.
    """
    store = open_bucket(Settings.load_without_key(), claim=False)
    release = find_release(store, dataset, version)
    console = make_console()
    faults = list(verify(store, release))
    size = sum(file.size for file in release.files)
    told = f"{dataset} {release.version}: {counted(len(release.files), 'file')}, {size_text(size)}"
    if not faults:
        console.print(f"{told}: all as published")
        return
    title = f"{told}: {len(faults):,} not as published"
    console.print(table_of([vars(fault) for fault in faults], title))
    if not mend_:
        console.print(
            "--mend makes shards again from their pictures; a folder that was pulled earlier has "
            "the same files under the same paths"
        )
        raise typer.Exit(INCOMPLETE)
    left = 0
    for fault in faults:
        try:
            repair(store, release, fault.path)
            console.print(f"{fault.path}: made again, as published")
        except ReleaseError as error:
            left += 1
            console.print(f"{fault.path}: {error}")
    if left:
        raise typer.Exit(INCOMPLETE)


@release_commands.command("pull")
def pull_(
    dataset: DatasetName,
    folder: Annotated[Path, typer.Argument(help="Where to; made if needed.")],
    *,
    version: Version = None,
    layout: Annotated[
        Layout,
        typer.Option(
            "--as", help="The layout; geneval and partiprompts are what those scorers read."
        ),
    ] = Layout.WEBDATASET,
    split: Annotated[
        str | None, typer.Option(help="Only this split.", show_default="all of them")
    ] = None,
) -> None:
    """Bring a release into a folder, every byte checked; goes on where an earlier pull ended."""
    store = open_bucket(Settings.load_without_key(), claim=False)
    release = find_release(store, dataset, version)
    pulled = pull(store, release, folder, layout, split)
    print_plain(
        make_console(),
        f"{dataset} {release.version} as {layout} in {folder}: "
        f"{counted(pulled.written, 'file')} written, {pulled.kept:,} there already, "
        f"{size_text(pulled.size)}",
    )


def _table(releases: list[Release], store: ObjectStore) -> object:
    rows = [
        {
            "dataset": release.name,
            "version": release.version,
            "continues": release.parent,
            "built": release.created,
            "rows": f"{release.rows:,}",
            "splits": ", ".join(f"{n:,} {split}" for split, n in release.splits.items()),
            "changes": ", ".join(f"{n:,} {change}" for change, n in release.changes.items())
            if release.parent
            else "first version",
            "formats": ", ".join(release.recipe["formats"]),
            "size": size_text(sum(file.size for file in release.files)),
            "fingerprint": release.fingerprint[:12],
        }
        for release in releases
    ]
    return table_of(rows, f"in {store.uri(Folder.DATASETS.prefix)}")
