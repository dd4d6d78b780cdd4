"""Loading the definitions: quick, and without a look at the outside world.

Seconds depend on the machine, so what is tested is what makes them: modules that no definition
needs. `docs/architecture.md` has the seconds.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
SAMPLE = REPOSITORY / "recipes" / "sample.yaml"
RECIPES = 100

# How long each takes was measured with `python -X importtime`; a function that needs one imports
# it itself.
SLOW = [
    *("scipy", "boto3", "botocore.config", "dagster_aws", "openlineage", "opentelemetry"),
    *("pyarrow.dataset", "rich", "typer", "uvicorn", "starlette"),
]

PROGRAM = f"""
import socket, sys

def refuse(*args, **kwargs):
    raise AssertionError("the network is touched while definitions are loaded")

socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
import dagster
before = set(sys.modules)
from dagster_nanobanana.definitions import defs
graph = defs.resolve_asset_graph()
defs.get_repository_def().get_all_jobs()
datasets = [key for key in graph.get_all_asset_keys() if key.path[0] == "datasets"]
assert len(datasets) == {RECIPES}, datasets
slow = sorted((set({SLOW}) - before) & set(sys.modules))
assert not slow, slow
"""


def test_a_hundred_recipes_load_without_network_settings_or_slow_modules(tmp_path: Path) -> None:
    """A code server must come up before S3 does, and every run's process loads all of this."""
    (tmp_path / "recipes").mkdir()
    text = SAMPLE.read_text()
    for number in range(RECIPES):
        recipe = text.replace("name: sample", f"name: sample_{number}")
        (tmp_path / "recipes" / f"{number}.yaml").write_text(recipe)
    subprocess.run(
        [sys.executable, "-c", PROGRAM],
        check=True,
        cwd=tmp_path,
        env={"PATH": "", "PYTHONPATH": str(REPOSITORY)},
    )


@pytest.mark.parametrize("module", ["dagster_nanobanana.definitions", "nanobanana_pipeline.cli"])
def test_arrow_gives_back_what_it_has_freed(module: str) -> None:
    """With its own allocator 100,000 cells took a fifth more memory."""
    program = f"import {module}, pyarrow; print(pyarrow.default_memory_pool().backend_name)"
    environment = {k: v for k, v in os.environ.items() if k != "ARROW_DEFAULT_MEMORY_POOL"}
    said = subprocess.run(
        [sys.executable, "-c", program],
        check=True,
        capture_output=True,
        text=True,
        env={**environment, "PYTHONPATH": str(REPOSITORY)},
    )
    assert said.stdout == "system\n"
