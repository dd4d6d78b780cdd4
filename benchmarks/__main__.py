"""``python -m benchmarks`` lists the benchmarks, ``python -m benchmarks NAME …`` runs one."""

import ast
import runpy
import sys
from pathlib import Path
from typing import Final

BENCHMARKS: Final = (
    "ceiling",
    "cost_per_image",
    "dagsters_toll",
    "nothing_to_do",
    "growth",
    "packing",
    "trace",
    "features",
    "prompt_tables",
    "whole_table",
    "released_table",
    "executors",
    "loading",
    "sharing",
    "kills",
    "caps",
    "chaos",
    "every_quirk",
    "emulator_pictures",
    "scaling",
    "many_partitions",
)


def main() -> None:
    """Run what the command line names, with the arguments behind it; or say what there is.

    Raises:
        SystemExit: there is no such benchmark.
    """
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in {"--help", "-h"}:
        sys.stdout.writelines(f"{each:18} {_first_line(each)}\n" for each in BENCHMARKS)
        return
    if name not in BENCHMARKS:
        raise SystemExit(f"there is no benchmark {name!r}: there are {', '.join(BENCHMARKS)}")
    sys.argv = [name, *arguments]
    runpy.run_module(f"benchmarks.{name}", run_name="__main__", alter_sys=True)


def _first_line(name: str) -> str:
    """What a benchmark says of itself; read and not imported, for each loads the whole project."""
    source = Path(__file__).with_name(f"{name}.py").read_text()
    return str(ast.get_docstring(ast.parse(source))).partition("\n")[0]


if __name__ == "__main__":
    main()
