"""The terminal: how wide it is, and whether there is somebody to ask."""

import sys

import typer
from rich.console import Console

from nanobanana_pipeline.errors import SettingsError

__all__ = ["INCOMPLETE", "confirm", "make_console", "print_plain"]

INCOMPLETE = 1
"""Exit code: something is missing, or is not as it should be."""
WIDE = 160


def make_console() -> Console:
    """The terminal, or a page wide enough for tables where the output goes elsewhere.

    It prints to the letter: no markup, no highlighting, no emoji codes.
    """
    console = Console(markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = max(WIDE, console.width)
    return console


def print_plain(console: Console, text: str, *, style: str | None = None) -> None:
    """Print a text to the letter: no markup, no highlighting, and no line breaks of its own."""
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def confirm(what: str, *, yes: bool) -> None:
    """Ask before others are disturbed; without anybody to ask, `--yes` is the answer.

    Raises:
        SettingsError: there is nobody to ask.
        typer.Abort: somebody said no.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise SettingsError(f"{what}. Nothing was done: there is no terminal to ask on; add --yes")
    typer.confirm(f"{what}. Go on?", abort=True)
