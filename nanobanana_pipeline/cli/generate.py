"""`nanobanana generate`: the engine without Dagster."""

import contextlib
import signal
import time
import uuid
from collections.abc import Iterator
from decimal import Decimal, InvalidOperation
from functools import partial
from pathlib import PurePosixPath
from types import FrameType
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from nanobanana_pipeline.cli.show import partitions_table, print_carried, print_long
from nanobanana_pipeline.cli.status import all_settled
from nanobanana_pipeline.cli.terminal import INCOMPLETE, make_console
from nanobanana_pipeline.generation.engine import engine
from nanobanana_pipeline.generation.engine.timing import Timing
from nanobanana_pipeline.generation.launch_steps import collect, plan, settle_shard
from nanobanana_pipeline.generation.manifest.manifest import CurrentManifest, advice
from nanobanana_pipeline.generation.planning.cells import read_seeds
from nanobanana_pipeline.generation.planning.planner import Launch
from nanobanana_pipeline.generation.planning.run_files import RunPlan, list_unfinished
from nanobanana_pipeline.generation.recovery.rescue import expired_runs
from nanobanana_pipeline.generation.wallet import bill_note, is_short, read_balance, wallet_note
from nanobanana_pipeline.lineage.openlineage.recorder import record_expired_run, record_run
from nanobanana_pipeline.lineage.openlineage.run_facts import (
    launch_complete,
    launch_running,
    launch_start,
    prompt_set_complete,
    prompt_set_start,
)
from nanobanana_pipeline.money import Cap, cost_of
from nanobanana_pipeline.prompts.prompt_set import snapshot, valid_name
from nanobanana_pipeline.prompts.references import References
from nanobanana_pipeline.prompts.table import read_prompt_table
from nanobanana_pipeline.prompts.validation import check_prompts
from nanobanana_pipeline.provider.account import PROVIDER, Account
from nanobanana_pipeline.request import parameter_faults
from nanobanana_pipeline.settings import Settings
from nanobanana_pipeline.storage import ObjectStore
from nanobanana_pipeline.storage.bucket import open_bucket
from nanobanana_pipeline.wording import counted

__all__ = [
    "Limit",
    "Param",
    "Seeds",
    "SetNameOption",
    "TableFile",
    "generate_command",
    "parse_seeds",
    "print_outcome",
    "read_launch_parameters",
    "read_money",
]

PLAIN_PROGRESS_SECONDS = 10
ACCOUNTING_SECONDS = 10


TableFile = Annotated[
    str, typer.Argument(help="The prompt table: CSV, TSV, JSONL or Parquet; a path or s3:// URL.")
]
Seeds = Annotated[str, typer.Option(help="Seeds: 1-4, or 1,7,9-12.")]
SetNameOption = Annotated[
    str | None, typer.Option(help="The prompt set's name; the file's name if left out.")
]
Limit = Annotated[
    int | None, typer.Option(min=1, help="A pilot: so many rows only, always the same ones.")
]
Param = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=VALUE",
        help="A parameter for rows that have none: width=1024, base64=yes. Repeatable.",
    ),
]


def generate_command(
    file: TableFile,
    seeds: Seeds,
    *,
    name: SetNameOption = None,
    limit: Limit = None,
    param: Param = None,
    change_parameters: Annotated[
        bool,
        typer.Option("--change-parameters", help="Buy anew what was made with other parameters."),
    ] = False,
    max_images: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Buy at most so many images, over all seeds; 0 buys none, and brings what was "
            "bought before.",
        ),
    ] = None,
    max_cost: Annotated[
        str | None,
        typer.Option(
            metavar="AMOUNT",
            help="Spend at most so much money, over all seeds, by NANOBANANA_PRICE_PER_IMAGE.",
        ),
    ] = None,
    rebuy: Annotated[
        bool,
        typer.Option(
            "--rebuy", help="Buy again what is in doubt or lost, where no evidence settles it."
        ),
    ] = False,
) -> None:
    """Buy what is missing of a prompt table under some seeds, and store it on S3.

    Exits with 1 if cells are not settled. What a partition was made with before stays in force,
    unless --change-parameters says otherwise; `nanobanana quote` says first what it would cost.
    """
    chosen = parse_seeds(seeds)
    parameters, delivery = read_launch_parameters(param or [])
    cap = Cap(max_images, read_money("--max-cost", max_cost))
    settings = Settings.load()
    account, store = Account.open(settings), open_bucket(settings)
    for expired in expired_runs(store, list_unfinished(store)):
        record_expired_run(store, "generated_images", expired.run_id)
    console = make_console()
    set_name = valid_name(name or PurePosixPath(file).name.partition(".")[0])
    references = References(account.downloader, store, keep=True)
    begin = partial(prompt_set_start, set_name, file)
    with record_run(store, "prompt_set", uuid.uuid4().hex, begin) as recording:
        checked = check_prompts(read_prompt_table(file, store), references)
        prompts = snapshot(store, set_name, checked)
        recording.set_facts(lambda: prompt_set_complete(store, checked, prompts))
    console.print(
        f"prompt set {prompts.name}: {counted(prompts.rows, 'row')}, "
        f"{prompts.quarantined:,} in quarantine"
    )
    print_carried(console, checked)
    print_long(console, checked)
    manifests, spent = [], 0
    before = read_balance(account)
    for seed in chosen:
        launch = Launch(
            prompt_set=set_name,
            seed=seed,
            run_id=uuid.uuid4().hex,
            parameters=parameters,
            delivery=delivery,
            change_parameters=change_parameters,
            limit=limit,
            rebuy=rebuy,
            max_images=cap.images,
            max_cost=cap.cost,
        )
        current, report = _launch(console, store, account, launch)
        manifests.append(current)
        spent += report.spent
        cap = cap.less(report.spent, account.budget.price)
        if report.halted or (cap.is_reached and max_images != 0):
            break  # the next seed would be refused as this one was
    console.print(partitions_table(manifests, store))
    after = read_balance(account) if before is not None else None
    if before is not None and after is not None:
        console.print(bill_note(before, after, cost_of(spent, account.budget.price)))
    if len(manifests) < len(chosen) or not all_settled(manifests):
        raise typer.Exit(INCOMPLETE)


def parse_seeds(text: str) -> list[int]:
    """Seeds from ``1-4`` or ``1,7,9-12``.

    Raises:
        typer.BadParameter: it says something else.
        PlanError: a seed that may not be bought.
    """
    try:
        return read_seeds(text)
    except ValueError as error:
        raise typer.BadParameter(f"--seeds {error}") from None


def read_money(option: str, text: str | None) -> Decimal | None:
    """An amount of money above 0, from an option.

    Raises:
        typer.BadParameter: it is none.
    """
    try:
        cost = None if text is None else Decimal(text)
    except InvalidOperation:
        cost = Decimal(-1)
    if cost is not None and not (cost.is_finite() and cost > 0):
        raise typer.BadParameter(f"{option} wants an amount of money above 0, not {text!r}")
    return cost


def read_launch_parameters(given: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parameters of a launch, from ``name=value`` pairs.

    Raises:
        typer.BadParameter: one breaks the provider's rules.
    """
    try:
        return PROVIDER.request_model.read_parameters(
            dict(pair.partition("=")[::2] for pair in given)
        )
    except ValidationError as error:
        raise typer.BadParameter(
            f"--param {parameter_faults(PROVIDER.request_model, error)}"
        ) from None


def _launch(
    console: Console, store: ObjectStore, account: Account, launch: Launch
) -> tuple[CurrentManifest, engine.Report]:
    begin = partial(launch_start, store, launch.prompt_set, launch.seed)
    with record_run(store, "generated_images", launch.run_id, begin) as recording:
        made = plan(store, account, launch)
        console.print(f"{launch.prompt_set}, seed {launch.seed}: {made}")
        balance = read_balance(account)
        if balance is not None:
            style = "yellow" if is_short(balance, made.cost) else ""
            console.print(wallet_note(balance, made.cost), style=style)
        recording.emit_running(lambda: launch_running(store, made))

        def account_for(report: engine.Report) -> CurrentManifest:
            current = collect(store, account, made, report)
            print_outcome(console, current, report)
            recording.set_facts(lambda: launch_complete(store, made, current, report))
            return current

        try:
            report = _settle(console, store, account, made)
        except KeyboardInterrupt:
            with _interrupts_held_back():
                console.print("stopped; the same command goes on from here", style="yellow")
                account_for(engine.Report())
            raise
        return account_for(report), report


@contextlib.contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Who presses Ctrl-C thrice stops the buying, not the accounting; but S3 may be silent."""
    until = time.monotonic() + ACCOUNTING_SECONDS

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        if time.monotonic() > until:
            raise KeyboardInterrupt

    before = {each: signal.signal(each, interrupt) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _settle(console: Console, store: ObjectStore, account: Account, made: RunPlan) -> engine.Report:
    report = engine.Report()
    timing = Timing(progress_seconds=1 if console.is_terminal else PLAIN_PROGRESS_SECONDS)
    columns = (BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("", total=made.buy + made.resume + made.look)
        for shard in made.shards:
            report += settle_shard(
                store,
                account,
                made.run_id,
                shard,
                on_progress=lambda p: (
                    bar.update(task, completed=p.finished, description=str(p))
                    if console.is_terminal
                    else console.print(str(p))
                ),
                timing=timing,
            )
    return report


def print_outcome(console: Console, current: CurrentManifest, report: engine.Report) -> None:
    """Name the reasons of what a run has not settled, and what to do about the partition's gaps."""
    for reason, count in report.reasons.items():
        console.print(f"  {counted(count, 'request')}: {reason}", style="yellow")
    if report.halted:
        console.print(f"stopped early: {report.halted}", style="bold red")
    for sentence in advice(current):
        console.print(f"  {sentence}")
