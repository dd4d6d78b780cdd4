"""`nanobanana features`: what pictures look like, measured without Dagster."""

import uuid
from functools import partial
from typing import Annotated

import typer
from rich.console import Console

from nanobanana_pipeline.bucket_keys import Folder
from nanobanana_pipeline.cli.generate import parse_seeds
from nanobanana_pipeline.cli.show import table_of
from nanobanana_pipeline.cli.terminal import make_console
from nanobanana_pipeline.errors import PlanError
from nanobanana_pipeline.features.table import refresh_features
from nanobanana_pipeline.generation.manifest.manifest import read_all_current
from nanobanana_pipeline.lineage.openlineage.recorder import record_run
from nanobanana_pipeline.lineage.openlineage.run_facts import features_complete, features_start
from nanobanana_pipeline.settings import Settings
from nanobanana_pipeline.storage.bucket import open_bucket
from nanobanana_pipeline.wording import counted

__all__ = ["features_command"]


def features_command(
    name: Annotated[
        str | None, typer.Argument(help="The prompt set.", show_default="all of them")
    ] = None,
    *,
    seeds: Annotated[
        str | None, typer.Option(help="Seeds: 1-4, or 1,7,9-12.", show_default="all that there are")
    ] = None,
) -> None:
    """Measure the pictures that are new: what recipes filter and split by. Costs nothing."""
    chosen = None if seeds is None else set(parse_seeds(seeds))
    store = open_bucket(Settings.load_without_key(), claim=False)
    wanted = [
        (current.prompt_set, current.seed)
        for current in read_all_current(store)
        if name in (None, current.prompt_set) and (chosen is None or current.seed in chosen)
    ]
    if not wanted:
        raise PlanError(
            f"there are no pictures of this kind in {store.uri('')}: see nanobanana status"
        )
    rows = []
    console = Console(stderr=True)
    with console.status("measuring") as status:
        for prompt_set, seed in wanted:

            def tell(pictures: int, measured: int, of: str = f"{prompt_set}, seed {seed}") -> None:
                status.update(f"{of}: {measured:,} of {counted(pictures, 'picture')}")

            begin = partial(features_start, store, prompt_set, seed)
            with record_run(store, "image_features", uuid.uuid4().hex, begin) as recording:
                done = refresh_features(store, prompt_set, seed, tell)
                recording.set_facts(partial(features_complete, store, done))
            rows.append(
                {
                    "prompt set": prompt_set,
                    "seed": seed,
                    "pictures": done.current.rows,
                    "measured now": done.measured,
                    "blank": done.current.blank,
                    "not measurable": done.current.errors,
                    "missing cells": done.gaps,
                }
            )
    make_console().print(table_of(rows, f"in {store.uri(Folder.FEATURES.prefix)}"))
