"""Mutants differ from their source in what their names say, and are valid Python."""

import pytest

from tests.mutation.__main__ import ROOMS, ROOT, files_of
from tests.mutation.mutants import mutants_of

SOURCE = '''\
"""Numbers, 1 and 2."""

LIMIT: int | None = 5


def allowed(asked: int | None, free: int = 0) -> int:
    """At most 3."""
    log.info("asked for %s", 1)
    if asked is None or asked < 0:
        raise ValueError(f"{asked + 1} is none")
    return min(asked, free)
'''


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("3:20: one more", "LIMIT: int | None = (6)"),
        ("6:43: one more", "def allowed(asked: int | None, free: int = (1)) -> int:"),
        ("9:7: Or swapped", "    if (asked is None and asked < 0):"),
        ("9:7: condition negated", "    if (not (asked is None or asked < 0)):"),
        ("9:7: Is 0 flipped", "    if (asked is not None) or asked < 0:"),
        ("9:24: Lt 0 flipped", "    if asked is None or (asked <= 0):"),
        ("9:32: one more", "    if asked is None or asked < (1):"),
        ("10:8: dropped", "        pass"),
        ("11:4: returns None", "    return None"),
        ("11:11: min swapped", "    return (max(asked, free))"),
        ("11:11: arguments 0 and 1 swapped", "    return (min(free, asked))"),
    ],
)
def test_each_kind_changes_one_place(name: str, line: str) -> None:
    found = {mutant.name: mutant for mutant in mutants_of("m.py", SOURCE)}
    assert len(found) == 11, sorted(found)
    mutant = found[f"m.py:{name}"]
    assert f"+{line}\n" in mutant.diff
    number = int(name.partition(":")[0])
    assert mutant.lines is None if number < 9 else number in (mutant.lines or ())


def test_rooms_name_files_and_tests_that_there_are() -> None:
    for room in ROOMS.values():
        assert all(files_of([path]) for path in room.files)
        for test in (*room.tests, *room.then):
            path, _, name = test.partition("::")
            assert (ROOT / path).exists()
            assert f"def {name}(" in (ROOT / path).read_text() if name else True
