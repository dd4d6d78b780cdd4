"""What is in the wheel, and that the version stands in one place."""

import re
import subprocess
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.version import Version

from tests.test_provider_page import ROOT

PACKAGES = ("nanobanana_pipeline", "dagster_nanobanana")
OUTSIDE = ("tests/", "benchmarks/", "dagster_project/")
"""Not in the wheel: a team's own module is often called `dagster_project`."""
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SHIPPED = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel, built from the source distribution as an index would."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(["uv", "build", "--quiet", "--out-dir", str(folder), str(ROOT)], check=True)
    [built] = folder.glob("*.whl")
    return zipfile.ZipFile(built)


def test_the_wheel_has_every_file_of_both_packages(wheel: zipfile.ZipFile) -> None:
    listed = ["git", "-C", str(ROOT), "ls-files", "-z", *PACKAGES]
    tracked = subprocess.run(listed, capture_output=True, text=True, check=True).stdout
    names = {name for name in tracked.split("\0") if name and Path(ROOT, name).exists()}
    assert {f"{package}/py.typed" for package in PACKAGES} < names
    assert names - set(wheel.namelist()) == set()
    assert {Path(name).suffix for name in names} >= {".py", ".html", ".css", ".js", ".json"}


def test_the_wheel_ships_what_the_demo_needs_as_it_is(wheel: zipfile.ZipFile) -> None:
    for source, there in SHIPPED.items():
        assert wheel.read(there) == (ROOT / source).read_bytes()
    assert not [name for name in wheel.namelist() if name.startswith(OUTSIDE)]


def test_the_wheel_says_who_it_is(wheel: zipfile.ZipFile) -> None:
    info = f"nanobanana_pipeline-{PROJECT['project']['version']}.dist-info"
    scripts = wheel.read(f"{info}/entry_points.txt").decode()
    assert "nanobanana = nanobanana_pipeline.cli:app" in scripts
    assert wheel.read(f"{info}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
    told = wheel.read(f"{info}/METADATA").decode()
    for extra in PROJECT["project"]["optional-dependencies"]:
        assert f"Provides-Extra: {extra}\n" in told


def test_the_version_is_the_changelogs_and_stands_nowhere_else() -> None:
    number = PROJECT["project"]["version"]
    assert version(PROJECT["project"]["name"]) == number
    heads = re.findall(r"^## \[(.+?)\](.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert heads[0] == ("Unreleased", "")
    released = Version(heads[1][0])
    assert Version(number) == released or (
        Version(number).is_devrelease and Version(number) > released
    )
    assert re.fullmatch(r" - \d{4}-\d\d-\d\d", heads[1][1])
    literal = re.compile(rf"[\"']{re.escape(number)}[\"']")
    sources = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    assert [path for path in sources if literal.search(path.read_text())] == []
    pages = [path for path in (ROOT / "deploy").rglob("*") if path.is_file()]
    images = {
        tag for path in pages for tag in re.findall(r"nanobanana:(\d[\w.]*)", path.read_text())
    }
    assert images == {number}
