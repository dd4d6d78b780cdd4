"""`nanobanana doubts`: what may have been paid for and is not here."""

import json
import re
import uuid
from collections import Counter
from dataclasses import asdict
from datetime import timedelta
from typing import Annotated

import typer
from rich.console import Console

from nanobanana_pipeline.audit.vendor_books import BookMatches, settle_by_books
from nanobanana_pipeline.cli.generate import read_money
from nanobanana_pipeline.cli.show import partitions_table, table_of
from nanobanana_pipeline.cli.terminal import INCOMPLETE, confirm, make_console
from nanobanana_pipeline.generation.recovery.doubts import (
    Action,
    Doubt,
    DoubtFilter,
    find_doubts,
    hints,
    name_id,
    settle_doubts,
)
from nanobanana_pipeline.ledger import State
from nanobanana_pipeline.lineage.openlineage.facts import RunFacts
from nanobanana_pipeline.lineage.openlineage.recorder import record_run
from nanobanana_pipeline.lineage.openlineage.run_facts import RelaunchReason, relaunch_complete
from nanobanana_pipeline.money import cost_text
from nanobanana_pipeline.provider.account import Account
from nanobanana_pipeline.settings import Settings
from nanobanana_pipeline.storage import ObjectStore
from nanobanana_pipeline.storage.bucket import open_bucket
from nanobanana_pipeline.wording import counted, shortened, time_text

__all__ = ["doubt_commands"]

KEY_SHOWN = 12
SALES_SHOWN = 20
UNITS = {"m": "minutes", "h": "hours", "d": "days"}

doubt_commands = typer.Typer(
    no_args_is_help=True,
    help="See and settle what is in doubt or lost: it may have been paid for, and is not here.",
)

Keys = Annotated[
    list[str] | None, typer.Argument(help="Request keys, or their first digits; all if left out.")
]
StateOf = Annotated[str | None, typer.Option("--state", help="Only these: in_doubt or lost.")]
Cause = Annotated[str | None, typer.Option(help="Only those whose cause contains this text.")]
RunOption = Annotated[str | None, typer.Option(help="Only those whose attempt this run made.")]
Older = Annotated[
    str | None, typer.Option(metavar="AGE", help="Only those at least so old: 30m, 2h, 3d.")
]
MinCost = Annotated[
    str | None,
    typer.Option(
        metavar="AMOUNT",
        help="Only those that cost at least so much, by NANOBANANA_PRICE_PER_IMAGE.",
    ),
]


@doubt_commands.command("list")
def list_doubts(
    keys: Keys = None,
    *,
    state: StateOf = None,
    cause: Cause = None,
    run: RunOption = None,
    older: Older = None,
    min_cost: MinCost = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead.")] = False,
) -> None:
    """Show what is in doubt or lost, the oldest first. Exits with 1 if there is any."""
    settings = Settings.load()
    account, store = Account.open(settings), open_bucket(settings)
    wanted = _filter(keys, state, cause, run, older, min_cost)
    found = [d for d in find_doubts(store, settings.price_per_image) if wanted.allows(d)]
    if as_json:
        perhaps = hints(store, account, found)
        rows = [{**asdict(doubt), "hints": perhaps[doubt.request_key]} for doubt in found]
        typer.echo(json.dumps(rows, indent=1, default=str))
    else:
        _show(make_console(), store, account, found)
    if found:
        raise typer.Exit(INCOMPLETE)


@doubt_commands.command("resolve")
def resolve(
    keys: Keys = None,
    *,
    provider_id: Annotated[
        str | None,
        typer.Option(
            help="The provider's id of the one request that is chosen; the provider has to confirm "
            "it."
        ),
    ] = None,
    rebuy: Annotated[
        bool, typer.Option("--rebuy", help="Buy again where no evidence settles it.")
    ] = False,
    abandon: Annotated[
        bool, typer.Option("--abandon", help="Give up: no longer missed, and never bought again.")
    ] = False,
    state: StateOf = None,
    cause: Cause = None,
    run: RunOption = None,
    older: Older = None,
    min_cost: MinCost = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Settle what is in doubt or lost, by evidence: asks the provider, and brings what it has.

    Nothing is bought again or given up without --rebuy or --abandon. Exits with 1 if any is left.
    """
    if sum([provider_id is not None, rebuy, abandon]) > 1:
        raise typer.BadParameter("choose one of --provider-id, --rebuy and --abandon")
    settings = Settings.load()
    account, store = Account.open(settings), open_bucket(settings)
    wanted = _filter(keys, state, cause, run, older, min_cost)
    chosen = [d for d in find_doubts(store, settings.price_per_image) if wanted.allows(d)]
    console = make_console()
    if not chosen:
        console.print("nothing is in doubt or lost that this names")
        return
    action = Action.REBUY if rebuy else Action.ABANDON if abandon else Action.LOOK
    if action is not Action.LOOK:
        _ask(chosen, action, yes=yes)
    if provider_id is not None and len(chosen) != 1:
        raise typer.BadParameter(
            f"--provider-id names one request, and {len(chosen):,} are chosen: give its key"
        )
    with record_run(store, "resolve_doubts", uuid.uuid4().hex, RunFacts) as recording:
        if provider_id is not None:
            name_id(store, account, chosen[0], provider_id)
        elif action is not Action.ABANDON:
            _show_matches(console, settle_by_books(store, account, chosen))
        settled = list(settle_doubts(store, account, chosen, action))
        keys_chosen = {doubt.request_key for doubt in chosen}
        found = find_doubts(store, settings.price_per_image)
        left = [doubt for doubt in found if doubt.request_key in keys_chosen]
        recording.set_facts(
            lambda: relaunch_complete(
                store,
                settled,
                settings.price_per_image,
                reason=RelaunchReason(action),
                chosen=len(chosen),
                left=len(left),
            )
        )
    for reason, count in sum((one.report.reasons for one in settled), Counter[str]()).items():
        console.print(f"  {counted(count, 'request')}: {reason}", style="yellow")
    console.print(partitions_table([s.current for s in settled], store))
    console.print(f"settled {len(chosen) - len(left):,} of {counted(len(chosen), 'request')}")
    if left:
        raise typer.Exit(INCOMPLETE)


def _show_matches(console: Console, matches: BookMatches) -> None:
    """Say what the vendor's books have named, and which of its sales settle nothing."""
    if matches.fault:
        console.print(matches.fault, style="yellow")
    for key, provider_id in matches.named.items():
        console.print(f"{key[:KEY_SHOWN]}: sold as {provider_id}, by the vendor's books")
    for sale in matches.unknown[:SALES_SHOWN]:
        console.print(
            f"sold as {sale.provider_id}, and no request is known to be it: {sale.told}",
            soft_wrap=True,
        )
    if len(matches.unknown) > SALES_SHOWN:
        console.print(f"and {len(matches.unknown) - SALES_SHOWN:,} more such sales")


def _ask(chosen: list[Doubt], action: Action, *, yes: bool) -> None:
    images = sum(doubt.images for doubt in chosen)
    costs = [doubt.cost for doubt in chosen if doubt.cost is not None]
    cost = cost_text(sum(costs)) if costs else "an unknown cost"  # type: ignore[arg-type]
    what = (
        f"buys {counted(images, 'image')} again for {cost}: what was paid for already is paid for "
        "twice"
        if action is Action.REBUY
        else f"gives up {counted(images, 'image')} that may have been paid for"
    )
    confirm(f"{action} {what}", yes=yes)


def _show(console: Console, store: ObjectStore, account: Account, found: list[Doubt]) -> None:
    if not found:
        console.print("nothing is in doubt or lost")
        return
    rows = [
        {
            "request": doubt.request_key[:KEY_SHOWN],
            "state": doubt.state.value,
            "partition": f"{doubt.prompt_set}, seed {doubt.seed}",
            "prompt": shortened(doubt.prompt),
            "cause": shortened(doubt.cause),
            "age": time_text(doubt.age.total_seconds()),
            "images": doubt.images,
            "cost": cost_text(doubt.cost),
            "provider id": doubt.provider_id,
        }
        for doubt in found
    ]
    console.print(table_of(rows, f"{counted(len(found), 'request')} in doubt or lost"))
    for key, objects in hints(store, account, found).items():
        for uri in objects:
            console.print(f"{key[:KEY_SHOWN]}: perhaps {uri}", soft_wrap=True)
    console.print(
        "nanobanana doubts resolve [KEY] looks for evidence, and costs nothing; with --rebuy it "
        "buys again, with --abandon it gives up"
    )


def _filter(
    keys: list[str] | None,
    state: str | None,
    cause: str | None,
    run: str | None,
    older: str | None,
    min_cost: str | None,
) -> DoubtFilter:
    if state not in {None, State.IN_DOUBT, State.LOST}:
        raise typer.BadParameter(f"--state wants in_doubt or lost, not {state!r}")
    found = re.fullmatch(r"(\d{1,6})([mhd])", older) if older else None
    if older and not found:
        raise typer.BadParameter(f"--older wants 30m, 2h or 3d, not {older!r}")
    return DoubtFilter(
        keys=tuple(keys or ()),
        state=State(state) if state else None,
        cause=cause,
        run_id=run,
        older=timedelta(**{UNITS[found[2]]: int(found[1])}) if found else None,
        cost=read_money("--min-cost", min_cost),
    )
