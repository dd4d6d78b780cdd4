"""The project's definitions under the executor that `BENCHMARK_EXECUTOR` names."""

import os

import dagster as dg

from dagster_nanobanana.assets.generated_images import generated_images
from dagster_nanobanana.assets.prompt_set import prompt_set
from dagster_nanobanana.resources import resources

PRELOAD = ["dagster_nanobanana.definitions"]
EXECUTORS = {
    "in_process": dg.in_process_executor,
    "multiprocess": dg.multiprocess_executor.configured(
        {"max_concurrent": 4, "start_method": {"spawn": {}}}
    ),
    "forkserver": dg.multiprocess_executor.configured(
        {"max_concurrent": 4, "start_method": {"forkserver": {"preload_modules": PRELOAD}}}
    ),
}

defs = dg.Definitions(
    assets=[prompt_set, generated_images],
    resources=resources(),
    executor=EXECUTORS[os.environ["BENCHMARK_EXECUTOR"]],
)
"""Loaded by `benchmarks.executors` through ``dagster asset materialize -m``."""
