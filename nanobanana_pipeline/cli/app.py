"""`nanobanana`: its commands, and how they end.

Exit codes: 0 all is well, 1 something is missing or not as it should be (cells that are not
settled, doubts, damaged files), 2 wrong use or settings, 130 stopped.
"""

import logging
import os
import signal
from importlib import import_module
from importlib.metadata import version as installed_version
from types import FrameType
from typing import Annotated, Any, Final, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

from nanobanana_pipeline.errors import NanobananaError

__all__ = ["app"]

# As in `dagster_nanobanana`: Arrow's own allocator keeps what was freed.
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")

WRONG_USE = 2
INTERRUPTED = 130

COMMANDS: Final = {
    "demo": "cli.profile:demo",
    "dev": "cli.profile:dev",
    "environment": "cli.profile:environment",
    "prompts": "cli.prompts:prompt_commands",
    "quote": "cli.quote:quote_command",
    "generate": "cli.generate:generate_command",
    "status": "cli.status:status",
    "doubts": "cli.doubts:doubt_commands",
    "features": "cli.features:features_command",
    "recipe": "cli.recipe:recipe_commands",
    "release": "cli.release:release_commands",
    "trace": "cli.trace:trace_command",
    "budget": "cli.budget:budget_commands",
    "index": "cli.index:index_commands",
    "audit": "cli.audit:audit_command",
    "gc": "cli.audit:gc",
    "reconcile": "cli.reconcile:reconcile_command",
    "bucket": "cli.bucket:bucket_commands",
    "provider": "cli.provider:provider_commands",
    "webhooks": "cli.webhooks:webhook_commands",
    "emulator": "emulator.command:emulator_command",
}
"""Where each command, or group of commands, is; imported when it is called, since all together
take longer to import than some take to run."""


class _Commands(typer.core.TyperGroup):
    """Ends every command alike: one line for what we know, a traceback for what we do not."""

    def list_commands(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]
        return [*COMMANDS, *super().list_commands(ctx)]

    def get_command(self, ctx: typer.Context, cmd_name: str) -> Any:  # type: ignore[override]  # noqa: ANN401 - typer keeps the class to itself
        if cmd_name not in COMMANDS:
            return super().get_command(ctx, cmd_name)
        module, _, name = COMMANDS[cmd_name].partition(":")
        found = getattr(import_module(f"nanobanana_pipeline.{module}"), name)
        if isinstance(found, typer.Typer):
            group = typer.main.get_group(found)
            group.name = cmd_name
            return group
        alone = typer.Typer(add_completion=False)
        alone.command(cmd_name)(found)
        return typer.main.get_command(alone)

    def invoke(self, ctx: typer.Context) -> object:  # type: ignore[override]
        signal.signal(signal.SIGTERM, _interrupt)
        # A shell that starts us in the background has us ignore Ctrl-C; a supervisor may send it.
        signal.signal(signal.SIGINT, _interrupt)
        try:
            return super().invoke(ctx)
        except NanobananaError as error:
            Console(stderr=True).print(
                f"[bold red]error[/] {escape(str(error))}", highlight=False, soft_wrap=True
            )
            raise typer.Exit(WRONG_USE) from None
        except KeyboardInterrupt:
            # A further Ctrl-C has nothing left to stop, and would end us by signal, not with ours.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            Console(stderr=True).print("stopped")
            raise typer.Exit(INTERRUPTED) from None


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help=(
        "Turn a table of prompts into image datasets on S3: nothing paid for is lost, nothing is "
        "bought twice. Start with: nanobanana demo\n\n"
        "Exit codes: 0 all is well, 1 something is missing or not as it should be, 2 wrong use or "
        "settings, 130 stopped; the same command then goes on where it was."
    ),
)


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(installed_version("nanobanana-pipeline"))


def _version_at_once(wanted: bool) -> None:  # noqa: FBT001 - as typer calls it
    if wanted:
        version()
        raise typer.Exit


@app.callback()
def main(
    *,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Log what happens to each request.")
    ] = False,
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version_at_once, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Set up logging; library users keep theirs."""
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )


def _interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
    """SIGTERM and Ctrl-C end a command the same way: through its context managers."""
    raise KeyboardInterrupt
