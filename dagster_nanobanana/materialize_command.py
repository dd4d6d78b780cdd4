"""Materialize the graph for one prompt table and some seeds, from the command line.

``python -m dagster_nanobanana.materialize_command sample --table sample.csv --seed 1 --onward``

What `nanobanana demo` runs: the same assets and the same instance as the UI's.
"""

import argparse
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg

from dagster_nanobanana.assets.datasets import recipes_here
from dagster_nanobanana.definitions import defs
from dagster_nanobanana.partitions import add_partitions, read_partition_key
from nanobanana_pipeline.datasets.recipe import Recipe
from nanobanana_pipeline.errors import NanobananaError

__all__ = ["main"]

_NOT_DONE, _WRONG_USE = 1, 2


def main() -> int:
    """Run it; 0 if every partition was materialized, 1 if not, 2 for wrong use."""
    parser = argparse.ArgumentParser(
        prog="dagster_nanobanana.materialize_command", description=__doc__
    )
    parser.add_argument("prompt_set")
    parser.add_argument("--table", required=True)
    parser.add_argument("--seed", type=int, action="append", required=True)
    parser.add_argument("--config", type=json.loads, default={}, help="of generated_images, JSON")
    onward = "then features, and the releases of recipes for which no more is needed"
    parser.add_argument("--onward", action="store_true", help=onward)
    args = parser.parse_args()
    try:
        for seed in args.seed:
            read_partition_key(f"{args.prompt_set}|{seed}")
    except NanobananaError as error:
        parser.error(str(error))
    with dg.DagsterInstance.get() as instance:
        add_partitions(instance, [args.prompt_set], args.seed)
        table = {"ops": {"prompt_set": {"config": {"table": args.table}}}}
        if not _materialize(instance, "prompt_set", args.prompt_set, table):
            return _WRONG_USE
        pictures = {"ops": {"generated_images": {"config": args.config}}}
        cells = [f"{args.prompt_set}|{seed}" for seed in args.seed]
        done = [_materialize(instance, "generated_images", cell, pictures) for cell in cells]
        if all(done) and args.onward:
            done += [_materialize(instance, "image_features", cell) for cell in cells]
            done += [
                _materialize(instance, f"datasets/{recipe.name}")
                for recipe in recipes_here()
                if all(done) and _is_ready(recipe, args.prompt_set, args.seed)
            ]
    return 0 if all(done) else _NOT_DONE


def _is_ready(recipe: Recipe, prompt_set: str, made: Sequence[int]) -> bool:
    """Whether a recipe wants nothing but what was made here."""
    wants_no_other = recipe.seeds == "all" or set(recipe.seeds) <= set(made)
    return recipe.prompt_sets == (prompt_set,) and wants_no_other and recipe.per_prompt is None


def _materialize(
    instance: dg.DagsterInstance,
    asset: str,
    partition_key: str | None = None,
    config: Mapping[str, Any] | None = None,
) -> bool:
    job = defs.resolve_implicit_global_asset_job_def()
    sys.stdout.write(f"{asset} [{partition_key}]\n" if partition_key else f"{asset}\n")
    sys.stdout.flush()
    run = job.with_logger_defs({"console": dg.LoggerDefinition(_terse)}).execute_in_process(
        instance=instance,
        asset_selection=[dg.AssetKey(asset.split("/"))],
        partition_key=partition_key,
        run_config={**(config or {}), "loggers": {"console": {}}},
        raise_on_error=False,
    )
    return run.success


def _terse(_context: dg.InitLoggerContext) -> logging.Logger:
    """The steps' own words and failures, without Dagster's events."""
    logger = logging.Logger("nanobanana")  # noqa: LOG001 - one a run, shared with nobody
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("  %(message)s"))
    handler.addFilter(_is_ours)
    logger.addHandler(handler)
    return logger


def _is_ours(record: logging.LogRecord) -> bool:
    event = getattr(record, "dagster_meta", {}).get("dagster_event")
    record.msg = str(record.msg).rpartition(" - ")[2]
    return event is None or event.is_step_failure


if __name__ == "__main__":
    sys.exit(main())
