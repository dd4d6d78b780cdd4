"""`nanobanana webhooks`: the receiver of what the provider tells by itself."""

import contextlib
import socket
from typing import Annotated

import typer

from nanobanana_pipeline.bucket_keys import Folder
from nanobanana_pipeline.cli.terminal import make_console, print_plain
from nanobanana_pipeline.errors import LocalServerError, SettingsError
from nanobanana_pipeline.settings import Settings
from nanobanana_pipeline.storage.bucket import open_bucket
from nanobanana_pipeline.webhooks.inbox import Webhooks
from nanobanana_pipeline.webhooks.receiver import receiver_app, receiver_server

__all__ = ["webhook_commands"]

webhook_commands = typer.Typer(
    no_args_is_help=True, help="Hear from the provider when pictures are done."
)


@webhook_commands.command("serve")
def serve(
    *,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")
    ] = 8098,
) -> None:
    """Receive the provider's webhooks until Ctrl-C. Needs the bucket, and no API key."""
    settings = Settings.load_without_key()
    webhooks = Webhooks.from_settings(settings)
    if webhooks is None:
        raise SettingsError(
            "no webhooks are set up: export NANOBANANA_WEBHOOK_URL=<the https address where the "
            "provider reaches this command> and NANOBANANA_WEBHOOK_SECRET=$(openssl rand -hex 32), "
            "here and wherever pictures are bought"
        )
    store = open_bucket(settings)
    server = receiver_server(receiver_app(store, webhooks))
    with _listening(host, port) as listener, contextlib.suppress(KeyboardInterrupt):
        taken = listener.getsockname()[1]
        url = f"http://[{host}]:{taken}" if ":" in host else f"http://{host}:{taken}"
        print_plain(
            make_console(),
            f"listening on  {url}\n"
            f"keeping in    {store.uri(Folder.WEBHOOKS.prefix)}\n"
            f"The provider calls {webhooks.url.rstrip('/')}/webhooks/…: see to it that this leads "
            f"to {url}/webhooks/…",
        )
        server.run(sockets=[listener])


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise LocalServerError(
            f"cannot listen on {host}, port {port}: {error}; choose others with --host and --port"
        ) from error
