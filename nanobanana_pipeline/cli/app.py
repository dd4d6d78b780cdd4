"""`nanobanana`: its commands, and how they end.

Exit codes: 0 all settled, 1 some cells not settled, 2 wrong use or settings.
"""

import logging
import signal
from importlib.metadata import version as installed_version
from types import FrameType
from typing import NoReturn

import typer
from rich.console import Console
from rich.markup import escape

from nanobanana_pipeline.cli import audit, generate, profile, prompts, status, webhooks
from nanobanana_pipeline.cli.doubts import doubt_commands
from nanobanana_pipeline.cli.provider import provider_commands
from nanobanana_pipeline.cli.quote import quote_command
from nanobanana_pipeline.cli.recipe import recipe_commands
from nanobanana_pipeline.cli.release import release_commands
from nanobanana_pipeline.cli.trace import index_commands, trace_command
from nanobanana_pipeline.emulator.command import emulator_command
from nanobanana_pipeline.errors import NanobananaError

__all__ = ["app"]

WRONG_USE = 2
INTERRUPTED = 130


class _Commands(typer.core.TyperGroup):
    """Ends every command alike: one line for what we know, a traceback for what we do not."""

    def invoke(self, ctx: typer.Context) -> object:  # type: ignore[override]
        signal.signal(signal.SIGTERM, _interrupt)
        # A shell that starts us in the background has us ignore Ctrl-C; a supervisor may send it.
        signal.signal(signal.SIGINT, _interrupt)
        try:
            return super().invoke(ctx)
        except NanobananaError as error:
            Console(stderr=True).print(
                f"[bold red]error[/] {_plain(error)}", highlight=False, soft_wrap=True
            )
            raise typer.Exit(WRONG_USE) from None
        except KeyboardInterrupt:
            Console(stderr=True).print("stopped")
            raise typer.Exit(INTERRUPTED) from None


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help=(
        "Turn a table of prompts into image datasets on S3: nothing paid for is lost, nothing is "
        "bought twice. Start with: nanobanana demo"
    ),
)


@app.callback()
def main(
    *, verbose: bool = typer.Option(default=False, help="Log what happens to each request.")
) -> None:
    """Set up logging; library users keep theirs."""
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(installed_version("nanobanana-pipeline"))


prompt_commands = typer.Typer(no_args_is_help=True, help="Look at prompt tables.")
prompt_commands.command("check")(prompts.check)
app.add_typer(prompt_commands, name="prompts")
webhook_commands = typer.Typer(no_args_is_help=True, help="Hear of pictures that are done.")
webhook_commands.command("serve")(webhooks.serve)
app.add_typer(webhook_commands, name="webhooks")
app.add_typer(provider_commands, name="provider")
app.add_typer(doubt_commands, name="doubts")
app.add_typer(recipe_commands, name="recipe")
app.add_typer(release_commands, name="release")
app.add_typer(index_commands, name="index")
app.command("trace")(trace_command)
app.command("generate")(generate.generate)
app.command("quote")(quote_command)
app.command("status")(status.status)
app.command("audit")(audit.audit)
app.command("gc")(audit.gc)
app.command("demo")(profile.demo)
app.command("dev")(profile.dev)
app.command("environment")(profile.environment)
app.command("emulator")(emulator_command)


def _interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
    """SIGTERM and Ctrl-C end a command the same way: through its context managers."""
    raise KeyboardInterrupt


def _plain(error: NanobananaError) -> str:
    return escape(str(error))
