"""`nanobanana budget`: the counters of what was spent."""

from dataclasses import asdict

import typer

from nanobanana_pipeline.cli.show import table_of
from nanobanana_pipeline.cli.terminal import make_console, print_plain
from nanobanana_pipeline.generation.budget.reclaim import recount
from nanobanana_pipeline.settings import Settings
from nanobanana_pipeline.storage.bucket import open_bucket

__all__ = ["budget_commands"]

budget_commands = typer.Typer(no_args_is_help=True, help="Look after the counters of spending.")


@budget_commands.callback()
def _group() -> None:
    """Keep `recount` a command of its own."""


@budget_commands.command("recount")
def recount_() -> None:
    """Count what ended shards have bought anew from the ledger. Buys nothing.

    What was in doubt when a shard ended counts as spent; once it is settled that it was not bought,
    this frees it. It also closes what expired shards left reserved.
    """
    changed = list(recount(open_bucket(Settings.load_without_key())))
    if changed:
        make_console().print(table_of([asdict(each) for each in changed], "counted anew"))
    else:
        print_plain(make_console(), "the counters agree with the ledger")
