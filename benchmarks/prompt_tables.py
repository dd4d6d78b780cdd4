"""How long a large prompt table takes to read, check and fingerprint, and how much memory.

``uv run python -m benchmarks.prompt_tables [--rows 1000000]``: the same table in every format, each
in a process of its own. Prints a table and writes ``artifacts/prompt_tables.json``.
"""

import argparse
import itertools
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console

from nanobanana_pipeline.cli.show import table_of
from nanobanana_pipeline.prompts.checked_prompts import fingerprint
from nanobanana_pipeline.prompts.table import read_prompt_table
from nanobanana_pipeline.prompts.validation import check_prompts

WORDS = "red fox river glass mountain lantern paper city winter garden quiet bright ocean stone"
BAD_EVERY = 1000
ARTIFACTS = Path("artifacts")


def main() -> None:
    """Measure every format, or one file when called for that."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.file:
        sys.stdout.write(json.dumps(_measure(args.file)))
        return
    with tempfile.TemporaryDirectory() as folder:
        found = [_in_its_own_process(path) for path in _write(args.rows, Path(folder))]
    ARTIFACTS.mkdir(exist_ok=True)
    (ARTIFACTS / "prompt_tables.json").write_text(json.dumps(found, indent=1))
    Console().print(table_of(pd.DataFrame(found), f"{args.rows:,} rows"))


def _write(rows: int, folder: Path) -> list[Path]:
    draw = np.random.default_rng(0)
    words = np.array(WORDS.split())
    chosen = words[draw.integers(0, len(words), (rows, 12))]
    frame = pd.DataFrame(
        {
            "id": [f"row-{number:07d}" for number in range(rows)],
            "prompt": [f"{' '.join(some)} {number}" for number, some in enumerate(chosen)],
            "width": draw.choice([1024, 1536, 2048], rows),
            "samples": draw.integers(1, 5, rows),
            "seed": draw.integers(1, 2**32, rows),
            "noise_clip_std": draw.normal(2, 1, rows).round(6),
            "category": draw.choice(words, rows),
            "score": draw.random(rows).round(6),
        }
    )
    frame.loc[::BAD_EVERY, "width"] = 1000
    paths = [folder / f"table.{suffix}" for suffix in ("csv", "tsv", "jsonl", "parquet")]
    frame.to_csv(paths[0], index=False)
    frame.to_csv(paths[1], index=False, sep="\t")
    frame.to_json(paths[2], orient="records", lines=True)
    frame.to_parquet(paths[3], index=False)
    return paths


def _in_its_own_process(path: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.prompt_tables", "--file", str(path)]
    done = subprocess.run(command, check=True, capture_output=True)  # noqa: S603 - our own command
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _measure(path: Path) -> dict[str, Any]:
    moments = [time.monotonic()]
    table = read_prompt_table(path)
    moments.append(time.monotonic())
    checked = check_prompts(table)
    moments.append(time.monotonic())
    fingerprinted = fingerprint(checked.prompts)
    moments.append(time.monotonic())
    read, check, finger = (round(b - a, 1) for a, b in itertools.pairwise(moments))
    return {
        "format": path.suffix.lstrip("."),
        "file MB": round(path.stat().st_size / 1e6),
        "read s": read,
        "check s": check,
        "fingerprint s": finger,
        "total s": round(moments[-1] - moments[0], 1),
        "peak MB": _peak_mb(),
        "good rows": len(checked.prompts),
        "fingerprint": fingerprinted[:8],
    }


def _peak_mb() -> int:
    """This process's own peak; `getrusage` would count what its parent had before the fork."""
    status = Path("/proc/self/status").read_text()
    return round(int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024)  # type: ignore[index]


if __name__ == "__main__":
    main()
