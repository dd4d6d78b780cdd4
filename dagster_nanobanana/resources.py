"""The bucket and the provider as Dagster resources. They hold no secrets.

What the environment says is read when a run needs it, and not named here: Dagster would write each
name into every launchpad.
"""

import json
from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import Field

from nanobanana_pipeline.bucket_keys import run_value_key
from nanobanana_pipeline.errors import StorageError
from nanobanana_pipeline.provider.account import Account
from nanobanana_pipeline.settings import Settings
from nanobanana_pipeline.storage import ObjectStore, s3_client
from nanobanana_pipeline.storage.bucket import open_bucket

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

__all__ = ["S3", "BucketValues", "NanobananaResource", "resources"]


class S3(dg.ConfigurableResource):  # type: ignore[type-arg]
    """Where S3 is. What is left out comes from AWS's own variables and files."""

    # dagster-aws has such a resource, whose import alone takes 0.4 s, and which retries by itself.

    profile_name: str | None = Field(
        default=None, description="A profile of AWS's configuration files; AWS_PROFILE."
    )
    region_name: str | None = Field(default=None, description="AWS_DEFAULT_REGION.")
    endpoint_url: str | None = Field(
        default=None, description="Of an S3 server that is not AWS's; AWS_ENDPOINT_URL_S3."
    )

    def get_client(self) -> "S3Client":
        """A client as the domain needs it: many sockets, and no retries of its own.

        Raises:
            StorageError: AWS's settings contradict each other.
        """
        return s3_client(
            profile=self.profile_name, region_name=self.region_name, endpoint_url=self.endpoint_url
        )


class NanobananaResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """Where pictures are bought and kept. A launch need not name any of it.

    What is left out comes from the environment of the run: `bucket` from `NANOBANANA_BUCKET`, and
    so on.
    """

    s3: dg.ResourceDependency[S3]
    api_key: str | None = Field(
        default=None,
        description="The provider's API key; NANOBANANA_API_KEY. As {env: NAME}, never the key "
        "itself: Dagster keeps what a run was launched with.",
    )
    base_url: str | None = Field(default=None, description="Where the provider answers.")
    bucket: str | None = Field(
        default=None, description="The S3 bucket that everything is written to."
    )
    prefix: str | None = Field(default=None, description="A path inside the bucket.")
    realm: str | None = Field(
        default=None, description="Whose pictures these are; part of every key."
    )
    slots: int | None = Field(default=None, description="Most requests at the provider at once.")
    allowed_hosts: str | None = Field(
        default=None, description="Hosts whose output URLs may be plain http, private or loopback."
    )
    webhook_url: str | None = Field(
        default=None, description="Where the provider reaches `nanobanana webhooks serve`."
    )
    webhook_secret: str | None = Field(
        default=None,
        description="What webhooks' addresses are signed with; NANOBANANA_WEBHOOK_SECRET. As "
        "{env: NAME}, as the key.",
    )
    preview_url: str | None = Field(
        default=None, description="The bucket's address for browsers, to show pictures from."
    )
    vendor_books: str | None = Field(
        default=None, description="Which of the vendor's books are asked: assets,balance,count."
    )
    price_per_image: str | None = Field(
        default=None, description="What an image costs, in your currency; unknown if left out."
    )
    max_images_per_day: str | None = Field(
        default=None, description="Cap on the images of a UTC day, over all runs and machines."
    )
    max_cost_per_day: str | None = Field(default=None, description="The same in money.")
    max_images_per_partition: str | None = Field(
        default=None, description="Cap on the images ever bought for a partition."
    )
    max_cost_per_partition: str | None = Field(default=None, description="The same in money.")
    max_images_per_run: str | None = Field(
        default=None, description="Cap on the images of one run."
    )
    max_cost_per_run: str | None = Field(default=None, description="The same in money.")

    def settings(self) -> Settings:
        """The settings, checked whole.

        Raises:
            SettingsError: names everything that is missing or contradictory.
        """
        given = {name: getattr(self, name) for name in Settings.model_fields}
        return Settings.load(**{name: value for name, value in given.items() if value is not None})

    def store(self) -> ObjectStore:
        """The bucket, once it is sure that it is fit and of the right realm.

        Raises:
            SettingsError: it holds another realm's pictures.
            StorageError: it cannot be used.
        """
        return open_bucket(self.settings(), client=self.s3.get_client())

    def account(self) -> Account:
        """The provider's account."""
        return Account.open(self.settings())


class BucketValues(dg.ConfigurableIOManager):
    """Hands small JSON values from op to op through the bucket, so that any executor will do."""

    nanobanana: dg.ResourceDependency[NanobananaResource]

    def handle_output(self, context: dg.OutputContext, obj: Any) -> None:  # noqa: ANN401
        """Store what an op gave."""
        key, body = run_value_key(*context.get_identifier()), json.dumps(obj).encode()
        self.nanobanana.store().put(key, body, content_type="application/json")

    def load_input(self, context: dg.InputContext) -> Any:  # noqa: ANN401
        """Read what the op before gave.

        Raises:
            StorageError: it is gone.
        """
        output = context.upstream_output
        if output is None:
            raise StorageError("this input has no op before it")
        store, key = self.nanobanana.store(), run_value_key(*output.get_identifier())
        found = store.get(key)
        if found is None:
            raise StorageError(f"{store.uri(key)} is gone: launch the partition again")
        return json.loads(found.body)


def resources() -> dict[str, Any]:
    """The resources of every job; the environment's variables say the rest."""
    s3 = S3()
    nanobanana = NanobananaResource(s3=s3)
    return {"s3": s3, "nanobanana": nanobanana, "io_manager": BucketValues(nanobanana=nanobanana)}
