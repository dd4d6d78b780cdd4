"""`nanobanana reconcile`: whether the ledger and the vendor's own books agree about a day."""

import json
from collections import Counter
from datetime import UTC, date, datetime
from typing import Annotated

import typer
from pydantic import TypeAdapter

from nanobanana_pipeline.audit.reconcile import Reconciliation, reconcile
from nanobanana_pipeline.cli.terminal import INCOMPLETE, make_console, print_plain
from nanobanana_pipeline.provider.account import Account
from nanobanana_pipeline.settings import Settings
from nanobanana_pipeline.storage.bucket import open_bucket
from nanobanana_pipeline.wording import counted

__all__ = ["reconcile_command"]

_RECONCILIATION = TypeAdapter(Reconciliation)


def reconcile_command(
    *,
    day: Annotated[str, typer.Option(metavar="YYYY-MM-DD", help="The UTC day that is compared.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead.")] = False,
) -> None:
    """Compare the ledger with the vendor's own list of what it sold. Buys and writes nothing.

    Needs NANOBANANA_VENDOR_BOOKS=assets. S3 is asked for each entry of the ledger, and the provider
    for each sale that no entry knows.

    Exit codes: 0 they agree, 1 they differ, 2 wrong use or settings.
    """
    settings = Settings.load()
    account, store = Account.open(settings), open_bucket(settings, claim=False)
    report = reconcile(store, account, _day(day))
    if as_json:
        told = {"agrees": report.agrees, **_RECONCILIATION.dump_python(report, mode="json")}
        typer.echo(json.dumps(told, indent=1))
    else:
        _show(report)
    if not report.agrees:
        raise typer.Exit(INCOMPLETE)


def _day(text: str) -> date:
    try:
        day = date.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"--day wants a date such as 2026-08-31, not {text!r}") from None
    if day > datetime.now(UTC).date():
        raise typer.BadParameter(f"--day {day} has not begun (UTC)")
    return day


def _show(report: Reconciliation) -> None:
    console = make_console()
    print_plain(
        console,
        f"{report.day} (UTC): {counted(report.sold_in_both, 'request')} in both, "
        f"{report.being_drawn:,} being drawn, {report.in_doubt:,} in doubt; "
        f"{counted(report.sales_read, 'sale')} of the vendor's books read",
    )
    for found in report.differences:
        console.print(
            f"{found.kind}  {found.provider_id}  {found.request_key or ''}",
            style="red",
            soft_wrap=True,
        )
        print_plain(console, f"  {found.text}")
    if report.not_asked:
        print_plain(console, f"{counted(report.not_asked, 'id')} not read by fetch: too many")
    if report.agrees:
        console.print("the ledger and the vendor's books agree", style="green")
        return
    kinds = Counter(found.kind for found in report.differences)
    counts = ", ".join(f"{n:,} {kind}" for kind, n in sorted(kinds.items()))
    console.print(f"they differ: {counts}", style="bold red", soft_wrap=True)
