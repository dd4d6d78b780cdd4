"""`python -m nanobanana_pipeline.emulator`."""

import typer

from nanobanana_pipeline.emulator.command import emulator_command

typer.run(emulator_command)
