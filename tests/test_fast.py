"""The mark `fast`: which tests have it, and that these do without Dagster."""

import subprocess
import sys

import pytest

from tests.conftest import NOT_FAST, ROOT, is_fast


def test_every_file_that_is_treated_apart_exists() -> None:
    assert [name for name in NOT_FAST if not (ROOT / name).exists()] == []


@pytest.mark.timeout(900)  # imports all that tests import, on a machine that may be busy
def test_the_fast_tests_are_there_and_none_of_them_imports_dagster() -> None:
    options = ["-m", "fast", "--collect-only", "-q", "-n", "0", "-p", "no:cacheprovider"]
    program = (
        f"import sys, pytest; code = pytest.main({options}); "
        "sys.exit(code or 'dagster' in sys.modules)"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout[-2000:]
    files = [line.partition("::")[0] for line in run.stdout.splitlines() if "::" in line]
    # As many as take a minute on two quiet cores: 2,550, of which most ask servers, took nine.
    assert len(files) > 1400
    assert all(is_fast(ROOT / name) for name in files)
