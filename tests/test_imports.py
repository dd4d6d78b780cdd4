"""Imports run one way: floor by floor from one table, and without a circle among modules."""

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

from nanobanana_pipeline.cli.app import COMMANDS

ROOT = Path(__file__).parents[1]
PACKAGES = ("nanobanana_pipeline", "dagster_nanobanana", "dagster_project")

FLOORS = """
    errors  wording  request  emulator  bucket_keys
    money
    settings
    storage  images
    local
    ledger  webhooks
    provider
    provider.modelslab
    provider.account
    prompts
    generation.manifest
    generation.planning
    generation.budget
    generation.engine
    generation
    generation.recovery
    features
    datasets
    datasets.formats
    datasets.layouts  datasets.shard_builder
    datasets.publish  datasets.pull  datasets.repair  datasets.top_up
    audit
    lineage.openlineage
    lineage.trace
    cli
    dagster_nanobanana.run_watch
    dagster_nanobanana.failures  dagster_nanobanana.partitions  dagster_nanobanana.resources
    dagster_nanobanana.executor  dagster_nanobanana.launch_config  dagster_nanobanana.step_lineage
    dagster_nanobanana.presentation  dagster_nanobanana.celery_worker
    dagster_nanobanana.checks
    dagster_nanobanana.assets
    dagster_nanobanana.jobs
    dagster_nanobanana.automation
    dagster_nanobanana.build_definitions
    dagster_nanobanana.definitions  dagster_project
    dagster_nanobanana.materialize_command
"""
"""From the ground up. A room (a package or a module of `nanobanana_pipeline` where no other package
is named) may import what is in itself and on lower floors, and nothing beside or above it."""

FLOOR_OF = {
    room: floor for floor, line in enumerate(FLOORS.strip().splitlines()) for room in line.split()
}


LOADED_BY_NAME = {
    *(
        (f"nanobanana_pipeline.{module}", name)
        for module, name in (command.split(":") for command in COMMANDS.values())
    ),
    ("nanobanana_pipeline.cli", "app"),
    ("dagster_nanobanana.celery_worker", "app"),
    ("dagster_nanobanana.celery_worker", "execute_plan"),
    ("dagster_nanobanana.definitions", "defs"),
    ("dagster_nanobanana.materialize_command", "main"),
    ("dagster_project.definitions", "defs"),
}
"""What no import names: commands, and what Dagster, Celery and child processes load."""


@cache
def modules() -> dict[str, Path]:
    """Every module by its name; a package by its ``__init__``."""
    found = {}
    for path in sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts).removesuffix(".__init__")] = path
    return found


def imports_of(path: Path) -> set[str]:
    """What a module imports of these packages: also within functions, and for types alone."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert not node.level, f"{path} imports relatively"
            full = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name if name in modules() else node.module for name in full}
    return names & modules().keys()


def room_of(module: str) -> str | None:
    """The room in the table that a module is in: the longest name that fits."""
    name = module.removeprefix("nanobanana_pipeline.")
    while name and name not in FLOOR_OF:
        name = name.rpartition(".")[0]
    return name or None


def test_every_module_is_on_a_floor() -> None:
    faces = {"nanobanana_pipeline", "nanobanana_pipeline.lineage", "dagster_nanobanana"}
    assert {name for name in modules() if room_of(name) is None} == faces
    assert FLOOR_OF.keys() - {room_of(name) for name in modules()} == set(), "rooms that are gone"


def test_every_import_runs_downward() -> None:
    upward = []
    for module, path in modules().items():
        room = room_of(module)
        for imported in imports_of(path):
            other = room_of(imported)
            if room and other and room != other and FLOOR_OF[other] >= FLOOR_OF[room]:
                upward.append(f"{module} imports {imported}")
    assert sorted(upward) == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    below = {module: imports_of(path) - {module} for module, path in modules().items()}
    while leaves := {module for module, others in below.items() if not others & below.keys()}:
        for module in leaves:
            del below[module]
    assert sorted(below) == [], "each of these is in a circle, or imports one that is"


def test_the_emulator_shares_no_code_with_the_client() -> None:
    emulator = {name: path for name, path in modules().items() if room_of(name) == "emulator"}
    assert {name for path in emulator.values() for name in imports_of(path)} <= emulator.keys()


def test_only_the_account_and_the_commands_for_it_know_the_vendor() -> None:
    knowing = {
        name
        for name, path in modules().items()
        if any(room_of(imported) == "provider.modelslab" for imported in imports_of(path))
        and room_of(name) != "provider.modelslab"
    }
    assert knowing == {"nanobanana_pipeline.provider.account", "nanobanana_pipeline.cli.provider"}


def test_nothing_below_the_commands_asks_where_pictures_come_from() -> None:
    asking = {
        room_of(name)
        for name, path in modules().items()
        if any(room_of(imported) == "lineage.trace" for imported in imports_of(path))
    }
    assert asking == {"cli", "lineage.trace"}


def test_the_domain_imports_without_dagster() -> None:
    domain = [name for name in modules() if name.startswith("nanobanana_pipeline")]
    domain.remove("nanobanana_pipeline.emulator.__main__")
    above = ["dagster", "dagster_nanobanana", "dagster_project"]
    program = (
        f"import sys, importlib; sys.modules.update(dict.fromkeys({above}))\n"
        f"for name in {domain}: importlib.import_module(name)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def names_taken(path: Path, modules_only: set[str]) -> set[tuple[str, str]]:
    """What a file takes from modules, by import or as an attribute of an imported module."""
    tree = ast.parse(path.read_text())
    taken: set[tuple[str, str]] = set()
    local: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in modules_only:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                if full in modules_only:
                    local[alias.asname or alias.name] = full
                if full not in modules_only or alias.name in (
                    exported(modules()[node.module]) or ()
                ):
                    taken.add((node.module, alias.name))
    return taken | {
        (local[node.value.id], node.attr)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id in local
    }


def exported(path: Path) -> set[str] | None:
    """The names in a module's ``__all__``; None if it has none."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return set(ast.literal_eval(node.value))
    return None


def test_all_holds_exactly_what_other_modules_use() -> None:
    """Tests and benchmarks may use a name of `__all__` alone, but none is there for nobody."""
    every = set(modules())
    product = {pair for path in modules().values() for pair in names_taken(path, every)}
    outside = {
        pair
        for folder in ("tests", "benchmarks")
        for path in (ROOT / folder).rglob("*.py")
        for pair in names_taken(path, every)
    }
    page = (ROOT / "docs" / "extending.md").read_text()
    promised = set(re.findall(r"^from (\S+) import (.+)$", page, re.MULTILINE))
    outside |= {(module, name) for module, names in promised for name in names.split(", ")}
    wrong = {}
    for module, path in modules().items():
        listed = exported(path)
        if listed is None or room_of(module) == "emulator":
            continue
        needed = {name for owner, name in product if owner == module}
        allowed = needed | {name for owner, name in outside if owner == module}
        allowed |= {name for owner, name in LOADED_BY_NAME if owner == module}
        if missing := needed - listed:
            wrong[module] = f"used by other modules, and not in __all__: {sorted(missing)}"
        elif unused := listed - allowed:
            wrong[module] = f"in __all__, and used by no other module: {sorted(unused)}"
    assert wrong == {}
