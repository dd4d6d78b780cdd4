"""A public name has one meaning in the whole project: it is defined in one module."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import nanobanana_pipeline

DOMAIN = Path(nanobanana_pipeline.__file__).parent
DAGSTER = [DOMAIN.parent / name for name in ("dagster_nanobanana", "dagster_project")]
ALLOWED = {
    "SCHEMA": "the number of the schema that the module stores",
    "app": "where Typer and Celery look for it",
    "defs": "what Dagster loads",
    "log": "the module's logger",
    "main": "what the module runs as a program",
}


def defined_in(path: Path) -> Iterator[str]:
    """The names of a module's functions, classes and variables; not what it imports."""
    for node in ast.parse(path.read_text()).body:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                yield node.name
            case ast.Assign():
                targets = [name for target in node.targets for name in ast.walk(target)]
                yield from (name.id for name in targets if isinstance(name, ast.Name))
            case ast.AnnAssign(target=ast.Name(id=name)):
                yield name


def test_no_public_name_is_defined_in_two_modules() -> None:
    modules = defaultdict(list)
    for package in (DOMAIN, *DAGSTER):
        for path in sorted(package.rglob("*.py")):
            # The emulator shares no code with the rest, and no vocabulary either.
            if DOMAIN / "emulator" not in path.parents:
                for name in set(defined_in(path)):
                    modules[name].append(path.relative_to(DOMAIN.parent).as_posix())
    twice = {n: found for n, found in modules.items() if len(found) > 1 and n[0] != "_"}
    assert {n: found for n, found in twice.items() if n not in ALLOWED} == {}
    assert set(twice) == set(ALLOWED), "a name that has one meaning now needs no exception"
