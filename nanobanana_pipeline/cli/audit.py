"""`nanobanana audit` and `nanobanana gc`: whether all agrees, and what nothing refers to."""

import contextlib
import json
import time
from collections import Counter
from collections.abc import Iterator
from enum import StrEnum
from typing import Annotated

import typer
from pydantic import TypeAdapter
from rich.console import Console

from nanobanana_pipeline.audit import AuditReport, find_garbage
from nanobanana_pipeline.audit import audit as audit_bucket
from nanobanana_pipeline.audit.read_ahead import AuditProgress
from nanobanana_pipeline.audit.report import NOTES, UNSETTLED_STATES
from nanobanana_pipeline.cli.show import table_of
from nanobanana_pipeline.cli.terminal import INCOMPLETE, make_console, print_plain
from nanobanana_pipeline.errors import PlanError
from nanobanana_pipeline.settings import Settings
from nanobanana_pipeline.storage import ObjectStore
from nanobanana_pipeline.storage.bucket import open_bucket
from nanobanana_pipeline.wording import counted, size_text, time_text

__all__ = ["audit_command", "gc"]

REFRESH_SECONDS = 0.2
DAY_SECONDS = 24 * 3600

_REPORT = TypeAdapter(AuditReport)


class ImagesRead(StrEnum):
    """Which pictures are read whole and hashed."""

    ALL = "all"
    SAMPLE = "sample"
    NONE = "none"


def audit_command(
    prompt_set: Annotated[
        str | None, typer.Argument(help="Only this one's, under --seed.", show_default="all of it")
    ] = None,
    *,
    seed: Annotated[
        int | None, typer.Option(help="Of the one partition that is looked at.")
    ] = None,
    images: Annotated[
        ImagesRead, typer.Option(help="Which pictures are read whole and hashed.")
    ] = ImagesRead.SAMPLE,
    sample: Annotated[
        int, typer.Option(min=1, help="How many of them; always the same ones.")
    ] = 100,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead.")] = False,
) -> None:
    """Look whether ledger, pictures, manifests, runs and budgets agree. Writes nothing.

    Of a partition its manifest, the entries of its requests and their pictures are looked at; what
    nobody names, runs and budgets are not.

    Exit codes: 0 all agrees, 1 something does not, 2 wrong use or settings. Doubts, losses,
    refusals and failures are told of, and are no disagreements; nor are manifests that do not know
    yet what another partition has bought, and what builds of releases that were killed have left.
    """
    if (prompt_set is None) != (seed is None):
        raise typer.BadParameter("a partition is a prompt set and a --seed: name both, or neither")
    partition = None if prompt_set is None or seed is None else (prompt_set, seed)
    store = open_bucket(Settings.load(), claim=False)
    count = {ImagesRead.ALL: None, ImagesRead.SAMPLE: sample, ImagesRead.NONE: 0}[images]
    with _progress() as on_progress:
        report = audit_bucket(store, partition=partition, sample=count, on_progress=on_progress)
    if partition is not None and not report.manifests and report.agrees:
        raise PlanError(f"{prompt_set}, seed {seed} was never launched: see nanobanana status")
    if as_json:
        told = {"agrees": report.agrees, **_REPORT.dump_python(report, mode="json")}
        typer.echo(json.dumps(told, indent=1))
    else:
        _show(make_console(), store, report)
    if not report.agrees:
        raise typer.Exit(INCOMPLETE)


def gc(
    *,
    dry_run: Annotated[  # noqa: ARG001 - people expect it of such a command
        bool, typer.Option("--dry-run", help="List only, as it does without.")
    ] = False,
) -> None:
    """List what nothing in the bucket has referred to for 7 days. Deletes nothing."""
    store = open_bucket(Settings.load(), claim=False)
    objects: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    with _progress() as on_progress:
        for found in find_garbage(store, on_progress):
            objects[found.kind] += 1
            sizes[found.kind] += found.size
            days = f"{found.age_seconds / DAY_SECONDS:,.0f} days"
            typer.echo(f"{found.kind}\t{found.size:,} bytes\t{days}\t{store.uri(found.key)}")
    console = make_console()
    if not objects:
        console.print(f"everything in {store.uri('')} that is older than 7 days is referred to")
        return
    objects["total"], sizes["total"] = objects.total(), sizes.total()
    totals = [
        {"what": kind, "objects": f"{count:,}", "size": size_text(sizes[kind])}
        for kind, count in objects.items()
    ]
    console.print(table_of(totals, "nothing refers to"))
    print_plain(
        console,
        "nothing was deleted: that is for you, an address at a time, with aws s3 rm ADDRESS "
        "(--endpoint-url for another S3)",
    )


@contextlib.contextmanager
def _progress() -> Iterator[AuditProgress]:
    """Says on a terminal what is being looked at, a few times a second."""
    console, shown = Console(stderr=True), 0.0
    with console.status("listing") if console.is_terminal else contextlib.nullcontext() as status:

        def tell(what: str, count: int) -> None:
            nonlocal shown
            if status is not None and time.monotonic() - shown > REFRESH_SECONDS:
                shown = time.monotonic()
                status.update(f"{what}: {count:,}")

        yield tell


def _show(console: Console, store: ObjectStore, report: AuditReport) -> None:
    states = ", ".join(f"{n:,} {state}" for state, n in sorted(report.states.items())) or "none"
    print_plain(
        console,
        f"{store.uri('')}: {report.states.total():,} in the ledger ({states}), "
        f"{counted(report.images, 'image')} ({report.images_read:,} read whole), "
        f"{counted(report.manifests, 'manifest')}, {counted(report.runs, 'run')}",
    )
    if report.unsettled:
        rows = [
            {
                "state": found.state,
                "request": found.request_key,
                "run": found.run_id,
                "for": time_text(found.age_seconds),
                "cause": found.reason or "",
            }
            for found in report.unsettled
        ]
        title = "ended without all pictures (no disagreement)"
        console.print(table_of(rows, title))
        _say_rest(console, sum(report.states[state] for state in UNSETTLED_STATES), len(rows))
    for found in report.findings:
        style = "yellow" if found.kind in NOTES else "red"
        console.print(f"{found.kind}  {store.uri(found.key)}", style=style, soft_wrap=True)
        print_plain(console, f"  {found.text}")
    _say_rest(console, report.counts.total(), len(report.findings))
    counts = ", ".join(f"{n:,} {kind}" for kind, n in sorted(report.counts.items()))
    if report.agrees:
        notes = f"; to note: {counts}" if counts else ""
        console.print(f"everything agrees{notes}", style="green", soft_wrap=True)
    else:
        console.print(f"does not agree: {counts}", style="bold red", soft_wrap=True)


def _say_rest(console: Console, count: int, listed: int) -> None:
    if count > listed:
        console.print(f"and {count - listed:,} more, not listed")
