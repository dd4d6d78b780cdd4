"""The project's own commands as the benchmarks call them, and the tables that they give them."""

import json
from collections.abc import Sequence
from pathlib import Path

__all__ = ["audit", "generate", "materialize", "prompt_table"]


def prompt_table(folder: Path, name: str, count: int) -> Path:
    """Write a table of so many different prompts."""
    path = folder / f"{name}.csv"
    rows = (f"a paper fox by the river {name} {number}\n" for number in range(count))
    path.write_text("prompt\n" + "".join(rows))
    return path


def generate(table: Path, side: int = 1024) -> Sequence[str | Path]:
    """The engine without Dagster, for `watched.run_watched`."""
    size = ("--param", f"width={side}", "--param", f"height={side}")
    return ["nanobanana_pipeline.cli:app", "generate", table, "--seeds", "1", *size]


def materialize(table: Path, side: int = 1024) -> Sequence[str | Path]:
    """The same through Dagster; ``DAGSTER_HOME`` says where its storage is."""
    config = json.dumps({"width": side, "height": side})
    target = ("dagster_nanobanana.materialize_command:main", table.stem)
    return [*target, "--table", table, "--seed", "1", "--config", config]


def audit() -> Sequence[str | Path]:
    """Look whether everything agrees."""
    return ["nanobanana_pipeline.cli:app", "audit"]
