"""`nanobanana provider`: the provider's server, and where it delivers pictures."""

import os
from typing import Annotated

import typer
from pydantic import SecretStr, ValidationError

from nanobanana_pipeline.cli.show import table_of
from nanobanana_pipeline.cli.terminal import confirm, make_console, print_plain
from nanobanana_pipeline.errors import OperationFailed, OperationInDoubt, SettingsError
from nanobanana_pipeline.ledger import now_iso
from nanobanana_pipeline.provider.account import Account
from nanobanana_pipeline.provider.modelslab.delivery_check import check_delivery
from nanobanana_pipeline.provider.modelslab.operations import Operations, S3Details
from nanobanana_pipeline.provider.modelslab.own_bucket import (
    Place,
    change_places,
    check_apart,
)
from nanobanana_pipeline.provider.protocol import Books
from nanobanana_pipeline.settings import Settings
from nanobanana_pipeline.storage import ObjectStore, s3_client
from nanobanana_pipeline.storage.bucket import open_bucket
from nanobanana_pipeline.storage.bucket_check import check_copies

__all__ = ["provider_commands"]

KEY_ID = "NANOBANANA_PROVIDER_AWS_ACCESS_KEY_ID"
SECRET = "NANOBANANA_PROVIDER_AWS_SECRET_ACCESS_KEY"  # noqa: S105 - a variable's name

Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]

provider_commands = typer.Typer(
    no_args_is_help=True, help="Look after the provider's server, and where it delivers pictures."
)


@provider_commands.command("details")
def details() -> None:
    """Show what the provider's server tells of itself, and its books that are switched on."""
    settings = Settings.load()
    account = Account.open(settings)
    told = {**account.provider.health(), **_booked(account.books)}
    rows = [{"what": what, "value": str(value)} for what, value in told.items()]
    make_console().print(table_of(rows, settings.base_url))


@provider_commands.command("clear-queue")
def clear_queue(*, yes: Yes = False) -> None:
    """Forget everything that waits or is being drawn: what was paid for among it is lost."""
    operations = _operations(Settings.load())
    confirm(
        "clear-queue makes the provider forget every request that waits or is being drawn, whoever "
        "sent it: those that are paid for become lost",
        yes=yes,
    )
    operations.clear_queue()
    print_plain(make_console(), "the queue is cleared")


@provider_commands.command("clear-cache")
def clear_cache(*, yes: Yes = False) -> None:
    """Empty the server's cache: what follows may be slower for everybody."""
    operations = _operations(Settings.load())
    confirm("clear-cache may make what follows slower, for everybody on the server", yes=yes)
    operations.clear_cache()
    print_plain(make_console(), "the cache is cleared")


@provider_commands.command("restart")
def restart(*, yes: Yes = False) -> None:
    """Restart the server: it interrupts everybody, and what is being drawn may be lost."""
    operations = _operations(Settings.load())
    confirm(
        "restart interrupts everybody on the server: what is being drawn and paid for may be lost",
        yes=yes,
    )
    operations.restart_server()
    print_plain(make_console(), "the server restarts")


@provider_commands.command("update")
def update(*, yes: Yes = False) -> None:
    """Update the server's software: it interrupts everybody, and may draw differently after."""
    operations = _operations(Settings.load())
    confirm(
        "update interrupts everybody on the server: what is being drawn and paid for may be lost, "
        "and the same seed may give other pictures afterwards",
        yes=yes,
    )
    operations.update_server()
    print_plain(make_console(), "the server is updated")


@provider_commands.command("set-s3")
def set_s3(
    *,
    public_url: Annotated[
        str, typer.Option(help="What the provider joins file names to in its answers.")
    ],
    directory: Annotated[str, typer.Option(help="The folder in the bucket that it writes into.")],
    bucket_uri: Annotated[
        str | None,
        typer.Option(
            help="Where your own credentials find that folder: s3://bucket/folder. "
            "NANOBANANA_BUCKET and --directory if left out."
        ),
    ] = None,
    endpoint_url: Annotated[
        str | None,
        typer.Option(help="Where the provider finds S3. Your own endpoint, with the bucket."),
    ] = None,
    region: Annotated[
        str | None, typer.Option(help="The region that the provider is told. Your own.")
    ] = None,
) -> None:
    """Have all of the account's pictures written straight into your own bucket.

    The provider is given the key pair in NANOBANANA_PROVIDER_AWS_ACCESS_KEY_ID and
    NANOBANANA_PROVIDER_AWS_SECRET_ACCESS_KEY: make one that may do s3:PutObject and
    s3:PutObjectAcl in that folder, and nothing else. The bucket must allow public ACLs, which the
    provider sets; that is tried with the key before it is sent. It is stored nowhere here.
    """
    settings = Settings.load()
    operations, key_id, secret = _operations(settings), *_key_pair()
    store = open_bucket(settings)
    place = _place(public_url, bucket_uri or f"s3://{store.bucket}/{directory.strip('/')}")
    bucket, folder = place.bucket_and_folder
    for each in (folder, directory.strip("/")):
        check_apart(store, bucket, each)
    check_copies(store)
    check_delivery(store, bucket, folder, key_id, secret)
    own = s3_client().meta
    told = S3Details(
        public_url=public_url,
        region=region or own.region_name,
        endpoint_url=endpoint_url or f"{own.endpoint_url}/{bucket}",
        directory=directory.strip("/"),
        access_key_id=key_id,
        secret_access_key=secret,
    )
    _tell_of(operations, store, place, told)
    print_plain(
        make_console(),
        f"the provider writes into {place.uri} from now on, and answers {place.public_url}/…",
    )


@provider_commands.command("reset-s3")
def reset_s3(*, yes: Yes = False) -> None:
    """Have the provider keep pictures itself again, for 24 hours each."""
    settings = Settings.load()
    operations, store = _operations(settings), open_bucket(settings)
    confirm(
        "reset-s3 ends deliveries into your own bucket for everybody on the account: pictures must "
        "then be downloaded within 24 hours. Those delivered so far stay, and are still found",
        yes=yes,
    )
    operations.reset_s3()
    when = now_iso()
    change_places(store, lambda places: places.end(when))
    print_plain(
        make_console(),
        "the provider keeps pictures itself again; what it has written stays and is still found",
    )


def _booked(books: Books) -> dict[str, str]:
    """What the books say now; in place of what cannot be read, why."""
    told = {}
    for name, ask in (
        ("wallet", books.balance),
        ("requests under way, of the whole account", books.processing),
    ):
        if ask is not None:
            try:
                told[name] = str(ask())
            except OperationFailed as error:
                told[name] = str(error)
    return told


def _operations(settings: Settings) -> Operations:
    if settings.api_key is None:
        raise AssertionError  # Settings.load refuses that
    return Operations(settings.base_url, settings.api_key)


def _key_pair() -> tuple[SecretStr, SecretStr]:
    found = [os.environ.get(name, "").strip() for name in (KEY_ID, SECRET)]
    missing = [name for name, value in zip((KEY_ID, SECRET), found, strict=True) if not value]
    if missing:
        raise SettingsError(
            f"{' and '.join(missing)} not set: export a key pair for the provider that may do "
            "s3:PutObject and s3:PutObjectAcl in the folder, and nothing else"
        )
    return SecretStr(found[0]), SecretStr(found[1])


def _place(public_url: str, uri: str) -> Place:
    try:
        return Place(public_url=public_url.rstrip("/"), uri=uri.rstrip("/"), since=now_iso())
    except ValidationError as error:
        said = error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
        raise typer.BadParameter(said) from None


def _tell_of(operations: Operations, store: ObjectStore, place: Place, told: S3Details) -> None:
    """Write the place down, and tell the provider.

    In this order: a picture that lies in a place nobody has written down could be lost, while a
    place that stays unused harms nobody.
    """
    before, after = change_places(store, lambda places: places.add(place))
    try:
        operations.update_s3(told)
    except OperationInDoubt as error:
        raise OperationInDoubt(
            f"{error}. Pictures will be looked for there in any case: run the same command again "
            "to make sure, or reset-s3"
        ) from None
    except OperationFailed:
        change_places(store, lambda places: before if places == after else places)
        raise
