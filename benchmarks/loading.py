"""What loading the definitions takes, beyond ``import dagster``.

``uv run python -m benchmarks.loading``
"""

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd
from rich.console import Console

from nanobanana_pipeline.cli.show import table_of

ROOT = Path(__file__).parents[1]
TIMES = 9
PROGRAM = """
import time
import dagster
start, cpu = time.perf_counter(), time.process_time()
from dagster_nanobanana.definitions import defs
defs.resolve_asset_graph()
defs.get_repository_def()
print(time.perf_counter() - start, time.process_time() - cpu)
"""


def main() -> None:
    """Load with one recipe and with a hundred, some times each, and print the medians."""
    recipe = (ROOT / "recipes" / "sample.yaml").read_text()
    found = []
    for count in (1, 100):
        with tempfile.TemporaryDirectory() as folder:
            recipes = Path(folder, "recipes")
            recipes.mkdir()
            for number in range(count):
                text = recipe.replace("name: sample", f"name: sample_{number}")
                (recipes / f"{number}.yaml").write_text(text)
            loads = [_load(folder) for _ in range(TIMES)]
        seconds, cpu = (statistics.median(each) for each in zip(*loads, strict=True))
        found.append({"recipes": count, "seconds": round(seconds, 2), "CPU s": round(cpu, 2)})
    Console().print(table_of(pd.DataFrame(found), f"median of {TIMES} loads"))


def _load(folder: str) -> tuple[float, float]:
    run = subprocess.run(  # noqa: S603 - this very interpreter
        [sys.executable, "-c", PROGRAM],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    seconds, cpu = map(float, run.stdout.split())
    return seconds, cpu


if __name__ == "__main__":
    main()
