"""What `--help` says of each command: everything is explained, and called alike everywhere."""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from nanobanana_pipeline.cli import app


def commands() -> Iterator[tuple[str, Any]]:
    """Every command and group, by the words that call it."""
    root: Any = typer.main.get_command(app)
    todo = [("nanobanana", root)]
    for name, command in todo:
        yield name, command
        context = command.make_context(name, [], resilient_parsing=True)
        below: list[str] = getattr(command, "list_commands", lambda _: [])(context)
        todo += [(f"{name} {each}", command.get_command(context, each)) for each in below]


COMMANDS = dict(commands())


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_and_all_that_it_takes_are_explained(name: str) -> None:
    command = COMMANDS[name]
    assert command.help
    assert command.help.startswith(tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ"))
    for given in command.params:
        assert given.help or given.name in {"help", "install_completion"}, given.name
        # A flag that is left out is off: there is nothing to say no to.
        assert not getattr(given, "secondary_opts", []), given.name


def test_an_option_has_one_form_in_all_commands() -> None:
    forms: dict[str, set[tuple[str | None, bool]]] = defaultdict(set)
    for command in COMMANDS.values():
        for given in command.params:
            for option in given.opts:
                if option.startswith("--"):
                    forms[option].add((given.metavar, bool(getattr(given, "is_flag", False))))
    # The seed that makes an emulator repeatable, and the version of a release, are other things.
    assert {option for option, seen in forms.items() if len(seen) > 1} <= {"--version"}
    assert forms["--max-cost"] == {("AMOUNT", False)}


def test_the_first_page_begins_with_what_a_newcomer_does_first() -> None:
    names = [name.partition(" ")[2] for name in COMMANDS if name.count(" ") == 1]
    assert names[:2] == ["demo", "dev"]
    assert names.index("quote") < names.index("generate") < names.index("release")
    said = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"}).output
    assert all(name in said for name in names)
    assert "Exit codes: 0 all is well, 1 something is missing" in said
