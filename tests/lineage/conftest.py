"""The commands, as tests of commands run them."""

from tests.cli.conftest import emulator, nanobanana

__all__ = ["emulator", "nanobanana"]
