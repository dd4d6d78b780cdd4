"""The emulator's command line, on its own or as a command of a larger one."""

import contextlib
from pathlib import Path
from typing import Annotated, Literal

import typer
from pydantic import ValidationError

from nanobanana_pipeline.emulator.config import EmulatorConfig
from nanobanana_pipeline.emulator.moods import MOODS
from nanobanana_pipeline.emulator.server import serve


def emulator_command(  # noqa: PLR0913 - each argument is an option of the command line
    *,
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.")] = 0,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    data: Annotated[
        Path | None, typer.Option(help="Folder where purchases outlive a restart.")
    ] = None,
    mode: Annotated[
        Literal["queued", "sync"],
        typer.Option(help="Answer at once and let the client fetch, or answer when done."),
    ] = "queued",
    cap: Annotated[int, typer.Option(min=1, help="Generations under way at once.")] = 10,
    latency: Annotated[
        str, typer.Option(help="Seconds that a generation takes, shortest:longest.")
    ] = "1:3",
    image_format: Annotated[
        Literal["png", "jpg", "webp"], typer.Option("--format", help="How pictures are encoded.")
    ] = "png",
    mood: Annotated[
        list[str] | None,
        typer.Option(help=f"A misbehaviour and its rate, name=0.05. There are {', '.join(MOODS)}."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Makes latencies and moods repeatable.")] = 0,
    retry_after: Annotated[float, typer.Option(min=0, help="Seconds that a 429 asks to wait.")] = 2,
    expiry: Annotated[
        float, typer.Option(min=0, help="Seconds that outputs live after completion.")
    ] = 24 * 3600,
    slow_answer: Annotated[
        float, typer.Option(min=0, help="Seconds that the mood slow_answer adds.")
    ] = 5,
    late_webhook: Annotated[
        float, typer.Option(min=0, help="Seconds that the mood webhook_late adds.")
    ] = 60,
    keep_alive: Annotated[
        int, typer.Option(min=0, help="Seconds that an idle connection is kept open.")
    ] = 5,
) -> None:
    """Run the provider's emulator until Ctrl-C; prints its base URL when it is ready."""
    try:
        config = EmulatorConfig(
            mode=mode,
            cap=cap,
            retry_after_seconds=retry_after,
            latency_seconds=_read_latency(latency),
            image_format=image_format,
            expiry_seconds=expiry,
            slow_answer_seconds=slow_answer,
            late_webhook_seconds=late_webhook,
            moods=dict(_read_mood(each) for each in mood or []),
            seed=seed,
            data_dir=data,
            keep_alive_seconds=keep_alive,
        )
    except ValidationError as error:
        raise typer.BadParameter("; ".join(each["msg"] for each in error.errors())) from error
    try:
        with contextlib.suppress(KeyboardInterrupt):
            serve(config, host, port, on_ready=typer.echo)
    except (OSError, ValueError) as error:
        raise typer.BadParameter(str(error)) from error


def _read_latency(text: str) -> tuple[float, float]:
    shortest, _, longest = text.partition(":")
    try:
        return float(shortest), float(longest or shortest)
    except ValueError as error:
        raise typer.BadParameter(f"--latency wants seconds as 1:3 or 2, not {text!r}") from error


def _read_mood(text: str) -> tuple[str, float]:
    name, _, rate = text.partition("=")
    try:
        return name, float(rate)
    except ValueError as error:
        raise typer.BadParameter(f"--mood wants name=rate, as failed=0.05, not {text!r}") from error
