"""A whole prompt table, generated, measured and released in every format, by the commands.

``uv run python -m benchmarks.released_table ../shared/data/PartiPrompts.tsv [--seeds 1,2]``

The emulator answers at once, so that what is timed is this project's own work. Prints the seconds
and the peak memory of each step, and the bytes of each format; verifies every file at the end.
"""

import argparse
import os
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, Final

import pandas as pd
import yaml
from rich.console import Console

from benchmarks.measured import Cost, run, save
from nanobanana_pipeline.cli.show import table_of
from nanobanana_pipeline.datasets.release import Format, Release, find_release
from nanobanana_pipeline.local import local_profile
from nanobanana_pipeline.settings import Settings
from nanobanana_pipeline.storage.bucket import open_bucket

NAME: Final = "table"
CAP: Final = 64


def main() -> None:
    """Run it and print the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("table", type=Path)
    parser.add_argument("--seeds", default="1,2")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="released-") as folder:
        data = Path(folder)
        emulator = ["--latency", "0:0", "--cap", str(CAP)]
        with local_profile(data, emulator=emulator) as profile:
            os.environ.update(profile.environment, NANOBANANA_SLOTS=str(CAP))
            recipe = data / f"{NAME}.yaml"
            recipe.write_text(
                yaml.safe_dump(
                    {
                        "name": NAME,
                        "description": "A whole table.",
                        "licence": "Apache-2.0",
                        "prompt_sets": [NAME],
                        "formats": [each.value for each in Format],
                        "splits": {"ratios": {"train": 0.9, "test": 0.1}},
                    }
                )
            )
            nanobanana = (sys.executable, "-c", "from nanobanana_pipeline.cli import app; app()")
            many = ("--name", NAME, "--seeds", given.seeds)
            size = ("--param", "width=1024", "--param", "height=1024")
            costs = {
                "generate": run([*nanobanana, "generate", given.table, *many, *size]),
                "features": run([*nanobanana, "features"]),
                "release build": run([*nanobanana, "release", "build", recipe]),
                "release build again": run([*nanobanana, "release", "build", recipe]),
                "release verify": run([*nanobanana, "release", "verify", NAME]),
                "pull --as partiprompts": run(
                    [*nanobanana, "release", "pull", NAME, data / "pp", "--as", "partiprompts"]
                ),
                "pull --as geneval": run(
                    [*nanobanana, "release", "pull", NAME, data / "ge", "--as", "geneval"]
                ),
            }
            release = find_release(open_bucket(Settings.load()), NAME)
    found = _found(release, costs)
    where = save("released_table", found)
    console = Console()
    console.print(table_of(pd.DataFrame(found["steps"]), f"{release.rows:,} rows"))
    console.print(table_of(pd.DataFrame(found["formats"]), f"kept in {where}"))


def _found(release: Release, costs: dict[str, Cost]) -> dict[str, Any]:
    sizes: Counter[str] = Counter()
    files: Counter[str] = Counter()
    for file in release.files:
        sizes[file.format] += file.size
        files[file.format] += 1
    return {
        "rows": release.rows,
        "distinct images": release.images,
        "bytes of distinct images": release.size,
        "splits": dict(release.splits),
        "steps": [
            {
                "step": step,
                "seconds": round(cost.seconds, 1),
                "CPU seconds": round(cost.cpu_seconds, 1),
                "peak MB": round(cost.peak_mb),
            }
            for step, cost in costs.items()
        ],
        "formats": [{"format": f, "files": files[f], "bytes": n} for f, n in sizes.items()],
    }


if __name__ == "__main__":
    main()
