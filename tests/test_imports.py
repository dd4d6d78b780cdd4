"""Imports run one way: the domain does not know Dagster, the emulator knows nobody."""

import ast
import subprocess
import sys
from pathlib import Path

import nanobanana_pipeline

PACKAGE = Path(nanobanana_pipeline.__file__).parent


def imports_of(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def imported_by(folder: Path) -> set[str]:
    return {name for path in folder.rglob("*.py") for name in imports_of(path)}


def test_the_domain_imports_without_dagster() -> None:
    modules = [
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.name != "__main__.py"
    ]
    blocked = (
        "sys.modules.update(dict.fromkeys(['dagster', 'dagster_nanobanana', 'dagster_project']))"
    )
    program = (
        f"import sys, importlib; {blocked}\nfor name in {modules}: importlib.import_module(name)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_emulator_shares_no_code_with_the_client() -> None:
    ours = {name for name in imported_by(PACKAGE / "emulator") if "nanobanana_pipeline" in name}
    assert {name for name in ours if not name.startswith("nanobanana_pipeline.emulator")} == set()


def test_nothing_below_the_commands_asks_where_pictures_come_from() -> None:
    asking = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if path.parts[len(PACKAGE.parts)] not in {"cli", "lineage"}
        and any("lineage.trace" in name or "lineage.ind" in name for name in imports_of(path))
    }
    assert asking == set()


def test_only_the_account_and_the_commands_for_it_know_the_vendor() -> None:
    vendor = "nanobanana_pipeline.provider.modelslab"
    root = PACKAGE.parent
    importers = {
        str(path.relative_to(root))
        for package in (PACKAGE, root / "dagster_nanobanana", root / "dagster_project")
        for path in package.rglob("*.py")
        if any(name.startswith(vendor) for name in imports_of(path))
    }
    inside = {name for name in importers if name.startswith(vendor.replace(".", "/"))}
    assert inside, "the vendor's own modules import each other"
    assert importers - inside == {
        "nanobanana_pipeline/provider/account.py",
        "nanobanana_pipeline/cli/provider.py",
    }
